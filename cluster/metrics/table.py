"""Every figure of a run: its name in the run folder, its name in Prometheus, its unit and meaning.

    metrics.jsonl (one row a step) ─┐
    telemetry/ROLE.jsonl (seconds) ─┼─ key ─▶ METRICS ─▶ docs, panels, alerts, Prometheus
    events.jsonl ───────────────────┘

A part of a key in braces is a label. What is not in the table is still recorded, and drawn in the
report under "Everything else".
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

Kind = Literal["gauge", "counter", "histogram"]
Source = Literal["step", "live", "event"]

PREFIX = "attune_"
"""Of names in Prometheus; Ray puts `ray_` before it."""
ACTOR = "actor"
"""Label of figures that each process tells of itself: `learner-0`, `engine-1`, `collector`."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure, or a family of them that differ by labels."""

    key: str
    """In the run folder, such as `reward/{reward}/mean`."""
    unit: str
    """As axes are labelled; empty where it has none."""
    help: str
    """One sentence, in ASCII: Ray takes no other."""
    kind: Kind = "gauge"
    source: Source = "step"
    """`step`: a row of metrics.jsonl; `live`: telemetry; `event`: counted in events.jsonl."""
    per_actor: bool = False
    """Live figures that several processes tell, each of itself."""
    more: tuple[str, ...] = ()
    """Labels that are not in the key but follow from the run's configuration."""

    @cached_property
    def name(self) -> str:
        """In Prometheus, without Ray's `ray_` and a counter's `_total`."""
        words = [word for word in self.key.split("/") if not word.startswith("{")]
        return PREFIX + "_".join(words)

    @cached_property
    def exported(self) -> str:
        """In Prometheus, as it is asked for."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All labels but `run`."""
        in_key = tuple(re.findall(r"\{(\w+)\}", self.key))
        return (*in_key, *self.more, *((ACTOR,) if self.per_actor else ()))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts = re.split(r"(\{\w+\})", self.key)
        # Names of rewards have slashes: parts of a reward are called `gold/polite`.
        return re.compile(
            "".join(f"(?P<{p[1:-1]}>.+)" if p.startswith("{") else re.escape(p) for p in parts)
        )

    def match(self, key: str) -> dict[str, str] | None:
        """The labels that `key` holds, None where it is not of this metric."""
        found = self._pattern.fullmatch(key)
        return None if found is None else found.groupdict()


def _step(key: str, unit: str, help: str, **options: Kind | tuple[str, ...]) -> Metric:
    return Metric(key=key, unit=unit, help=help, **options)  # pyright: ignore[reportArgumentType]


def _live(
    key: str, unit: str, help: str, kind: Kind = "gauge", *, per_actor: bool = False
) -> Metric:
    return Metric(key=key, unit=unit, help=help, kind=kind, source="live", per_actor=per_actor)


REWARDS = (
    _step("reward/total/mean", "", "Mean of the reward that is learned from."),
    _step("reward/total/std", "", "Its standard deviation over the replies of a step."),
    _step("reward/total/p10", "", "Its 10th percentile."),
    _step("reward/total/p50", "", "Its median."),
    _step("reward/total/p90", "", "Its 90th percentile."),
    _step(
        "reward/{reward}/mean", "",
        "Mean of one named reward; `of` is gold for the truth by rule, part for a reward's parts, "
        "judge for the others.",
        more=("of",),
    ),
    _step("reward/{reward}/p10", "", "10th percentile of one named reward.", more=("of",)),
    _step("reward/{reward}/p50", "", "Median of one named reward.", more=("of",)),
    _step("reward/{reward}/p90", "", "90th percentile of one named reward.", more=("of",)),
    _step("zero_std_groups", "share", "Groups whose replies all earned the same: no signal."),
    _step("feedback/decides/{reward}", "share", "Replies, or groups, that a reward decided."),
    _step("feedback/multiplier/{reward}", "", "Lagrange multiplier of a constrained reward."),
    _step("feedback/slack/{reward}", "", "Mean of a constrained reward less its bound."),
    _step("feedback/kept_fraction", "share", "Pairs that the curating reward agrees with."),
    _step("labels", "replies", "Replies judged for one step."),
    _step("labels/used", "replies", "Replies judged since the run began."),
    _step("labels/budget", "replies", "What `feedback.label_budget` allows in all."),
)  # fmt: skip
POLICY = (
    _step("kl/ref_k1", "nats per reply", "KL divergence to the reference, estimator k1."),
    _step("kl/ref_k3", "nats per reply", "The same by k3: never negative, less noisy."),
    _step("kl/coef", "", "Coefficient of the KL penalty."),
    _step("entropy", "nats per token", "Entropy of the policy where it sampled."),
    _step("length/mean", "tokens", "Mean length of the replies."),
    _step("length/max", "tokens", "Longest reply of a step."),
    _step("eos_rate", "share", "Replies that ended by themselves."),
    _step("preference/margin", "nats", "Implicit reward, better reply less worse."),
    _step("preference/accuracy", "share", "Pairs whose better reply gained more."),
    _step("preference/log_ratio", "nats", "Mean log-ratio of policy to reference."),
    _step("preference/explored_log_ratio", "nats", "Log-ratio of the explored replies."),
    _step("accuracy", "share", "Pairs ordered as labelled, in training."),
    _step("margin", "", "Score of the chosen reply less the rejected one's."),
    _step("validation/accuracy", "share", "Pairs ordered as labelled, held out."),
    _step("validation/loss", "", "Loss on held-out rows."),
    _step("validation/pairs", "pairs", "Held-out pairs that were judged."),
    _step("validation/chosen_score", "", "Mean score of the better replies, held out."),
)  # fmt: skip
LEARNING = (
    _step("loss/policy", "", "Policy loss."),
    _step("loss/value", "", "Loss of the critic."),
    _step("loss/preference", "", "Loss of pairs, lists or points."),
    _step("loss/nll", "nats per token", "Negative log-likelihood of demonstrations."),
    _step("loss/bradley_terry", "nats per pair", "Loss of a reward model."),
    _step("grad_norm", "", "Norm of the gradient before clipping."),
    _step("learning_rate", "", "Learning rate of the policy."),
    _step("clip_fraction", "share", "Tokens whose ratio was clipped."),
    _step("approx_kl", "nats", "KL of the update itself, old policy to new."),
    _step("ratio/mean", "", "Mean ratio of the new policy to the old one."),
    _step("explained_variance", "", "Share of the returns' variance that the critic explains."),
    _step("correction/weight_mean", "", "Mean importance weight, learner against engine."),
    _step("correction/weight_min", "", "Smallest importance weight."),
    _step("correction/weight_max", "", "Largest importance weight."),
    _step("correction/out_of_bounds", "share", "Weights outside the bounds of the correction."),
    _step("correction/ess", "tokens", "Effective sample size: (sum of w)^2 / sum of w^2."),
    _step("correction/kl_k1", "nats", "KL of engine to learner on the same tokens, k1."),
    _step("correction/kl_k3", "nats", "The same by k3."),
    _step("correction/chi2", "", "Mean squared weight less 1."),
    _step("correction/ppl_ratio", "", "Perplexity under the learner over that under the engine."),
    _step("correction/error", "", "Mean exp|difference| of log-probs; near 1 is right."),
    _step("units", "per step", "Pairs, lists or points that the loss compared."),
    _step("groups", "per step", "Groups that gave any."),
)  # fmt: skip
FLOW = (
    _step("step", "", "Learner steps finished."),
    _step("policy_version", "", "Version of the learner's weights."),
    _step("unix_time", "seconds since 1970", "When the newest step ended, or the run began."),
    _step("num_tokens", "tokens", "Response tokens learned from in a step."),
    _step("tokens_per_s", "tokens per second", "Response tokens learned from."),
    _step("time/step", "seconds", "One learner step in all."),
    _step("time/sample", "seconds", "From leasing prompts to their whole replies."),
    _step("time/score", "seconds", "From then until judges and reference had answered."),
    _step("time/train", "seconds", "Update of the weights."),
    _step("time/sync", "seconds", "Publishing weights to the engines, with the probe."),
    _step("time/checkpoint", "seconds", "Copying the learner's state."),
    _step("time/wait", "seconds", "The learner waited for its batch."),
    _step("time/idle", "seconds", "The learner had nothing to do."),
    _step("sync/pause_s", "seconds", "Longest pause of an engine for new weights."),
    _step("sync/transfer_s", "seconds", "Sending the weights."),
    _step("sync/begin_s", "seconds", "Until all engines were ready to receive."),
    _step("sync/receive_s", "seconds", "Slowest engine's receiving."),
    _step("sync/install_s", "seconds", "Slowest engine's installing of what it received."),
    _step("sync/engines", "engines", "Engines that took the newest weights."),
    _step("probe/gap", "nats", "Largest difference of engine and learner log-probs after a sync."),
    _step("probe/tolerance", "nats", "What that may be before the run stops."),
    _step("staleness/mean", "versions", "Updates between sampling a reply and learning from it."),
    _step("staleness/max", "versions", "The same for the oldest reply of a step."),
    _step("staleness/replies/{age}", "replies", "Replies by that age.", kind="histogram"),
    _step("late_groups", "groups", "Groups that a step took later than they were leased for."),
    _live("queue/waiting_groups", "groups", "Prompt groups that are asked for and not whole."),
    _live("queue/ready_batches", "batches", "Whole batches that the learner has not taken yet."),
    _live(
        "phase_seconds/{phase}", "seconds", "Time a process spent in a phase.", "counter",
        per_actor=True,
    ),
    _live("idle_share", "share", "How much of its time a process waits.", per_actor=True),
    _live("engine/tokens", "tokens", "Response tokens sampled.", "counter", per_actor=True),
    _live("engine/running", "sequences", "Sequences an engine works on.", per_actor=True),
    _live("engine/waiting", "sequences", "Sequences that wait for a place.", per_actor=True),
    _live("engine/kv_cache", "share", "KV cache in use.", per_actor=True),
    _live("judge/{judge}/latency_s", "seconds", "Last answer of a judge or the reference."),
)  # fmt: skip
FLEET = (
    _step("learner/world_size", "ranks", "Ranks of the learner."),
    _live("fleet/wanted", "engines", "Engines the run asks for."),
    _live("fleet/live", "engines", "Engines that have weights and get work."),
    _live("fleet/healthy", "engines", "Live engines whose last health check was answered."),
    _live("fleet/restarts", "processes", "Engines and collectors that were replaced.", "counter"),
    _live("fleet/retried_groups", "groups", "Groups asked for again after a failure.", "counter"),
    _live("engine/version", "version", "Weights that an engine samples from.", per_actor=True),
    _live("judge/{judge}/retries", "calls", "Calls of a judge that were made again.", "counter"),
    Metric(
        key="events/{kind}", unit="events", kind="counter", source="event",
        help="Lines of events.jsonl by kind: what failed, joined, left or was replaced.",
    ),
)  # fmt: skip
MEMORY = (
    _live("memory/host_mib", "MiB", "Private memory, with a process's children.", per_actor=True),
    _live("memory/device_mib", "MiB", "Device memory that a process holds.", per_actor=True),
)  # fmt: skip
METRICS = (*REWARDS, *POLICY, *LEARNING, *FLOW, *FLEET, *MEMORY)
BY_KEY = {metric.key: metric for metric in METRICS}

STALENESS_BOUNDS = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5)
"""Upper bounds of the histogram's buckets; Ray takes none that is 0 or less."""
IDLE = ("take", "wait", "idle", "start")
"""Phases in which a process waits for others."""


@lru_cache(maxsize=4096)
def find(key: str) -> tuple[Metric, dict[str, str]] | None:
    """The metric that a key of a run folder belongs to, with the labels in it."""
    if key in BY_KEY:
        return BY_KEY[key], {}
    for metric in METRICS:
        if "{" in metric.key and (labels := metric.match(key)) is not None:
            return metric, labels
    return None
