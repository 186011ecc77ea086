"""What the sizes of an elastic fleet and of its steps must be to each other."""

from configs.schema import RunConfig


def lateness(config: RunConfig) -> str | None:
    late, stale = config.algorithm.max_lateness, config.algorithm.max_staleness
    if late == 0:
        return None
    if late >= stale:
        return (
            f"algorithm.max_lateness={late} must be less than algorithm.max_staleness={stale}: "
            "lower it, or raise the other"
        )
    if config.feedback.selection is not None or config.algorithm.resample_rounds:
        return (
            f"algorithm.max_lateness={late} goes neither with feedback.selection nor with "
            "algorithm.resample_rounds, which need all groups of a step: set it to 0"
        )
    if config.algorithm.loss.name == "kto":
        return "algorithm.max_lateness does not go with kto, which mixes groups: set it to 0"
    return None


def fleet_sizes(config: RunConfig) -> str | None:
    fleet = config.cluster.rollout
    fewest = fleet.min_engines or fleet.num_engines
    most = fleet.max_engines or fleet.num_engines
    if fewest <= fleet.num_engines <= most:
        return None
    return (
        f"cluster.rollout.num_engines={fleet.num_engines}, which an elastic fleet starts with, is "
        f"not between min_engines={fewest} and max_engines={most}: change one of them"
    )


def learner_sizes(config: RunConfig) -> str | None:
    learner = config.cluster.learner
    if learner.min_workers is None or learner.min_workers <= learner.num_workers:
        return None
    return (
        f"cluster.learner.min_workers={learner.min_workers} is more than num_workers="
        f"{learner.num_workers}: lower it"
    )
