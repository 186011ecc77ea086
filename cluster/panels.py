"""Which charts a report draws, under which words, from which metrics."""

from dataclasses import dataclass

from cluster.run_record import RunRecord


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart to draw where its metrics exist: (metric, label) each."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    explanation: str = ""
    is_stacked: bool = False


MOVED = (
    Panel(
        title="KL to the reference",
        unit="nats per reply",
        metrics=(("kl/ref_k1", "k1"), ("kl/ref_k3", "k3")),
        explanation="How far the policy has moved from where it started.",
    ),
    Panel(
        title="Reply length",
        unit="tokens",
        metrics=(("length/mean", "mean"), ("length/max", "longest")),
    ),
    Panel(
        title="Entropy",
        unit="nats per token",
        metrics=(("entropy", "entropy"),),
        explanation="How undecided the policy still is; near 0 it has stopped exploring.",
    ),
    Panel(
        title="Replies that ended by themselves",
        unit="share",
        metrics=(("eos_rate", "ended"),),
        explanation="The others ran into the length limit.",
    ),
    Panel(
        title="Groups without a signal",
        unit="share",
        metrics=(("zero_std_groups", "equal rewards"),),
        explanation="Prompts whose replies all earned the same: they teach nothing.",
    ),
    Panel(title="KL coefficient", unit="", metrics=(("kl/coef", "coefficient"),)),
)
LEARNED = (
    Panel(
        title="Loss",
        unit="mean",
        metrics=(
            ("loss/nll", "training, nats per token"),
            ("loss/bradley_terry", "training, nats per pair"),
            ("validation/loss", "validation"),
        ),
    ),
    Panel(
        title="Pairs ordered as labelled",
        unit="share; chance is 0.5",
        metrics=(("accuracy", "training"), ("validation/accuracy", "validation")),
    ),
    Panel(
        title="Margin",
        unit="chosen minus rejected",
        metrics=(("margin", "margin"),),
        explanation="By how much the chosen reply is scored above the rejected one.",
    ),
    Panel(title="Preference loss", unit="mean", metrics=(("loss/preference", "loss"),)),
    Panel(
        title="Better replies that gained more",
        unit="share; 0.5 before the first step",
        metrics=(("preference/accuracy", "training"),),
        explanation="How often the policy raised the better reply above the worse one.",
    ),
    Panel(
        title="Margin of log-ratios",
        unit="nats, best minus worst",
        metrics=(("preference/margin", "margin"),),
    ),
    Panel(
        title="What is explored",
        unit="nats, log-ratio to the reference",
        metrics=(("preference/explored_log_ratio", "explored replies"),),
        explanation="Optimism (SELM, XPO) makes them less likely, to leave room for others.",
    ),
    Panel(
        title="What the loss compared",
        unit="per step",
        metrics=(("units", "units"), ("groups", "groups")),
        explanation="Groups whose replies could not be told apart give no unit.",
    ),
    Panel(title="Policy loss", unit="", metrics=(("loss/policy", "policy"),)),
    Panel(title="Value loss", unit="", metrics=(("loss/value", "value"),)),
    Panel(
        title="Explained variance",
        unit="of the returns",
        metrics=(("explained_variance", "critic"),),
        explanation="1 is a perfect critic, 0 one that knows only the mean.",
    ),
    Panel(title="Gradient norm", unit="before clipping", metrics=(("grad_norm", "norm"),)),
    Panel(title="Learning rate", unit="", metrics=(("learning_rate", "rate"),)),
)
RAN = (
    Panel(
        title="Where a step's time goes",
        unit="seconds",
        metrics=(
            ("time/sample", "sample"),
            ("time/score", "score"),
            ("time/train", "train"),
            ("time/sync", "sync"),
            ("time/checkpoint", "checkpoint"),
            ("time/idle", "idle"),
        ),
        is_stacked=True,
    ),
    Panel(title="Speed", unit="tokens per second", metrics=(("tokens_per_s", "speed"),)),
    Panel(
        title="Staleness",
        unit="learner versions",
        metrics=(("staleness/mean", "mean"), ("staleness/max", "oldest")),
        explanation="How many updates lie between sampling a reply and learning from it.",
    ),
    Panel(
        title="Engine against learner",
        unit="nats, largest gap",
        metrics=(("probe/gap", "gap"),),
        explanation="Log-probs of fixed sequences on both sides, after each weight sync.",
    ),
    Panel(
        title="Pause for new weights",
        unit="seconds",
        metrics=(("sync/pause_s", "pause"),),
    ),
)


_DECIDED = {
    "decides": (
        "Which reward decides",
        "share of replies",
        "Of the rewards that the lowest is taken of, which it is; of groups, 1 for the worst-off.",
    ),
    "multiplier": ("Multipliers of the constraints", "", ""),
    "slack": (
        "Room above the bounds",
        "mean reward less its bound",
        "Below 0 a constraint is broken.",
    ),
}


def feedback_panels(record: RunRecord) -> list[Panel]:
    """How several rewards became one score, what was judged, and what of it was learned from."""
    keys = sorted({key for row in record.rows for key in row})
    panels = []
    for part, (title, unit, explanation) in _DECIDED.items():
        head = f"feedback/{part}/"
        metrics = tuple((key, key.removeprefix(head)) for key in keys if key.startswith(head))
        panels.append(Panel(title=title, unit=unit, metrics=metrics, explanation=explanation))
    return [
        *panels,
        Panel(
            title="Pairs that the curating reward agrees with",
            unit="share",
            metrics=(("feedback/kept_fraction", "kept"),),
            explanation="The others are not learned from.",
        ),
        Panel(
            title="Labels",
            unit="judged replies per step",
            metrics=(("labels", "labels"),),
            explanation="Of groups that were sampled again too; not of what was left unlabelled.",
        ),
    ]


def reward_panels(record: RunRecord) -> list[Panel]:
    """The true reward, the one that is learned from with its spread, and the parts of each."""
    whole = [name for name in record.reward_names if "/" not in name]
    gold = [name for name in whole if name in record.gold_names]
    learned = [(f"reward/{name}/mean", name) for name in whole if name not in gold]
    panels = [
        Panel(
            title="True reward",
            unit="mean over replies",
            metrics=tuple((f"reward/{name}/mean", name) for name in gold),
            explanation="Known by rule in the built-in world; judges only approximate it.",
        ),
        Panel(
            title="Reward it learns from",
            unit="mean over replies",
            metrics=(("reward/total/mean", "combined"), *learned),
            explanation="Shaded: from the 10th to the 90th percentile of the replies.",
        ),
    ]
    for name in whole:
        parts = [part for part in record.reward_names if part.startswith(f"{name}/")]
        metrics = tuple((f"reward/{part}/mean", part.removeprefix(f"{name}/")) for part in parts)
        panels.append(Panel(title=f"Parts of {name}", unit="mean over replies", metrics=metrics))
    return panels
