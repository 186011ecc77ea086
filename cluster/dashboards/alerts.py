"""What should call a person: each alert defined once, for Prometheus, Grafana and Kubernetes.

A query tells how things stand, and has data on every healthy run that has its figures; the number
beside it says above what that is wrong. Kept apart, both can be tried out.
"""

import sys
from dataclasses import dataclass
from typing import Literal

from cluster.dashboards.promql import grown, over_time, value
from cluster.metrics.table import BY_KEY


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One rule."""

    name: str
    severity: Literal["warning", "critical"]
    """critical: the run stands still, or soon will; warning: it goes on, perhaps for nothing."""
    query: str
    above: float
    """What it must not be above."""
    lasting: str
    """How long it must hold, such as `5m`."""
    summary: str
    """One line with the run, or the host, and the value; without `$`, which Grafana takes for a
    variable of its environment."""
    meaning: str
    """What the value is, and what it says."""
    remedy: str
    keys: tuple[str, ...]
    """Figures of the table that the query cannot do without; empty for Ray's own."""

    @property
    def expr(self) -> str:
        """As Prometheus has it: data only where it is wrong."""
        return f"({self.query}) > {self.above:g}"


def _ratio(over: str, under: str) -> str:
    """A fraction whose denominator may be 0."""
    return f"({over}) / clamp_min({under}, 1e-9)"


REWARD, SPREAD = "reward/total/mean", "reward/total/std"
TOKENS = "length/mean"
HOST_MEMORY = (
    "max by (instance) (last_over_time(ray_node_mem_used[1m]) / "
    "last_over_time(ray_node_mem_total[1m]))"
)
"""Ray's own: of the container, where there is one. It is not in every scrape: nodes look at their
memory less often than they may be told to export."""

ALERTS = (
    Alert(
        name="AttuneRewardCollapse",
        severity="warning",
        query=_ratio(
            f"{over_time('max_over_time', REWARD, '1h')} - "
            f"{over_time('avg_over_time', REWARD, '5m')}",
            over_time("max_over_time", SPREAD, "1h"),
        ),
        above=2,
        lasting="5m",
        summary="{{ .Labels.run }}: the reward fell by {{ .Value | humanize }} standard deviations",
        meaning="Best step of the last hour less the mean of 5 minutes, in standard deviations of "
        "the replies. A good policy is being unlearned.",
        remedy="Look at KL, entropy and gradient norm from where it fell; go on from an earlier "
        "checkpoint with a lower learning rate or a higher KL coefficient.",
        keys=(REWARD, SPREAD),
    ),
    Alert(
        name="AttuneKLBlowUp",
        severity="warning",
        query=_ratio(
            over_time("avg_over_time", "kl/ref_k1", "5m"), over_time("avg_over_time", TOKENS, "5m")
        ),
        above=1,
        lasting="10m",
        summary="{{ .Labels.run }}: {{ .Value | humanize }} nats of KL to the reference per token",
        meaning="KL to the reference per token. Above 1 replies have little to do with what the "
        "reference would write, and judges are asked about what they never saw.",
        remedy="Read the newest samples; raise algorithm.kl.coef or lower the learning rate.",
        keys=("kl/ref_k1", TOKENS),
    ),
    Alert(
        name="AttuneNoSignal",
        severity="warning",
        query=over_time("avg_over_time", "zero_std_groups", "15m"),
        above=0.9,
        lasting="15m",
        summary="{{ .Labels.run }}: {{ .Value | humanizePercentage }} of groups earned the same",
        meaning="Share of prompts whose replies all earned the same. They teach nothing.",
        remedy="Prompts are too easy or too hard, or the reward is too coarse; more samples per "
        "prompt help a little.",
        keys=("zero_std_groups",),
    ),
    Alert(
        name="AttuneProbeGap",
        severity="warning",
        query=_ratio(over_time("max_over_time", "probe/gap", "10m"), value("probe/tolerance")),
        above=0.5,
        lasting="0s",
        summary="{{ .Labels.run }}: the probe's gap is {{ .Value | humanizePercentage }} of what "
        "stops the run",
        meaning="Largest gap of engine and learner log-probs after a sync, over its tolerance. "
        "At 1 the run stops.",
        remedy="Engines and learner differ in numbers: see dtype and attention kernels; if the gap "
        "is known to be harmless, raise cluster.sync.probe_tolerance.",
        keys=("probe/gap", "probe/tolerance"),
    ),
    Alert(
        name="AttuneNoProgress",
        severity="critical",
        query=f"(time() - {value('unix_time')}) / "
        f"clamp_min({value('time/step')} or 180 + 0 * {value('unix_time')}, 60)",
        above=5,
        lasting="10m",
        summary="{{ .Labels.run }}: no step for {{ .Value | humanize }} times the last one's time",
        meaning="Time since the newest step ended, in times of a step (of a minute at least; of 3 "
        "minutes before the first). The queue is stuck, or somebody hangs.",
        remedy="`attune inspect RUN` says which phase each process is in; the dashboard Flow says "
        "who waits for whom.",
        keys=("unix_time", "time/step"),
    ),
    Alert(
        name="AttuneEnginesMissing",
        severity="warning",
        query=f"{value('fleet/wanted')} - {value('fleet/live')}",
        above=0,
        lasting="5m",
        summary="{{ .Labels.run }}: {{ .Value }} engines are missing",
        meaning="Engines that are wanted less those that live. The run goes on with fewer.",
        remedy="See the reason in events.jsonl and in the engines' logs; without nodes for them, "
        "lower cluster.rollout.num_engines or `attune scale RUN N`.",
        keys=("fleet/wanted", "fleet/live"),
    ),
    Alert(
        name="AttuneLearnerRestarts",
        severity="critical",
        query=grown("events/{kind}", "30m", where=(("kind", "learner_failure"),), zero="unix_time"),
        above=2,
        lasting="0s",
        summary="{{ .Labels.run }}: the learner failed {{ .Value }} times in 30 minutes",
        meaning="Failures of the learner in 30 minutes. Each costs the steps since a checkpoint.",
        remedy="`attune inspect RUN --failure` and the learners' logs; a node that fails again and "
        "again is better taken away.",
        keys=("unix_time",),
    ),
    Alert(
        name="AttuneJudgeFailing",
        severity="warning",
        query=grown("judge/{judge}/retries", "10m"),
        above=2,
        lasting="0s",
        summary="{{ .Labels.run }}: {{ .Value }} calls of {{ .Labels.judge }} failed in 10 minutes",
        meaning="Calls of a judge that were made again in 10 minutes. After feedback.attempts of "
        "one call the run ends.",
        remedy="See judge_failed in events.jsonl for the reason; mend the reward's code or raise "
        "feedback.deadline_s.",
        keys=("judge/{judge}/latency_s",),
    ),
    Alert(
        name="AttuneHostMemory",
        severity="critical",
        query=HOST_MEMORY,
        above=0.92,
        lasting="2m",
        summary="{{ .Labels.instance }}: {{ .Value | humanizePercentage }} of memory is used",
        meaning="Memory in use on a node of Ray's, of what it may use. At 0.95 Ray begins to kill "
        "processes.",
        remedy="The dashboard Memory says which process grew, `attune plan CONFIG` how much each "
        "should take. Use fewer or smaller processes a node.",
        keys=(),
    ),
)
BY_NAME = {alert.name: alert for alert in ALERTS}
assert all(key in BY_KEY for alert in ALERTS for key in alert.keys)


def table() -> str:
    """All alerts as a table in Markdown."""
    lines = [
        "| alert | severity | what it looks at | fires | what to do |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{alert.name}` | {alert.severity} | {alert.meaning} | {fires(alert)} | {alert.remedy} |"
        for alert in ALERTS
    ]
    return "\n".join(lines) + "\n"


def fires(alert: Alert) -> str:
    """When, in words."""
    return f"above {alert.above:g}" + (f" for {alert.lasting}" if alert.lasting != "0s" else "")


if __name__ == "__main__":
    sys.stdout.write(table())
