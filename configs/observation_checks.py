"""What is shown of a run and measured of it must fit the run."""

from configs.schema import RunConfig


def loggers_are_fed(config: RunConfig) -> str | None:
    metrics = config.cluster.metrics
    named = [name for name, settings in metrics.loggers if settings is not None]
    if metrics.enabled or not named:
        return None
    return (
        f"cluster.metrics.enabled=false feeds no loggers: set it to true, or cluster.metrics."
        f"loggers.{named[0]} to null"
    )


def loggers_have_one_training(config: RunConfig) -> str | None:
    named = [name for name, settings in config.cluster.metrics.loggers if settings is not None]
    if config.feedback.mixture is None or not named:
        return None
    return (
        f"cluster.metrics.loggers.{named[0]}: feedback.mixture is many trainings, each with steps "
        "of its own, and loggers take one; set it to null and follow the run's pages"
    )


def profiled_steps_are_taken(config: RunConfig) -> str | None:
    profile, steps = config.cluster.learner.profile, config.algorithm.num_steps
    if profile is None or profile.first_step + profile.num_steps - 1 <= steps:
        return None
    return (
        f"cluster.learner.profile.first_step={profile.first_step} with num_steps="
        f"{profile.num_steps} goes beyond algorithm.num_steps={steps}: lower one of them"
    )
