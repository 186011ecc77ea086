"""What the collector tells of a run in telemetry, beside its memory."""

from cluster.scoring import REFERENCE
from cluster.walk import Walk


def of_walk(walk: Walk) -> dict[str, float]:
    """Queues, retries and judges, by key of the table of metrics; from any thread."""
    groups = dict(walk.judges.rewards)
    if walk.judges.reference is not None:
        groups[REFERENCE] = walk.judges.reference
    return {
        "queue/waiting_groups": float(walk.fleet.num_waiting),
        "queue/ready_batches": float(walk.num_ready),
        "fleet/retried_groups": float(walk.fleet.num_retried),
        **{f"judge/{name}/latency_s": seconds for name, seconds in dict(walk.latency_s).items()},
        **{f"judge/{name}/retries": float(group.retries) for name, group in groups.items()},
    }
