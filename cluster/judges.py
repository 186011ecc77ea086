"""Who judges in a run: its named rewards and its references, each a group of scoring actors."""

from dataclasses import dataclass

from cluster.references import has_reference, latest_reference
from cluster.scoring import ScoringGroup, reference_group, reward_groups
from configs.schema import RunConfig


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who scores replies: the named rewards, and the reference where the method has one."""

    rewards: dict[str, ScoringGroup]
    reference: ScoringGroup | None
    extra_references: tuple[ScoringGroup, ...] = ()

    def groups(self) -> list[ScoringGroup]:
        """All of them."""
        references = [self.reference] if self.reference else []
        return [*self.rewards.values(), *references, *self.extra_references]


def start_judges(config: RunConfig) -> Judges:
    """The groups of a run; they load when they are first asked."""
    has_one = has_reference(config)
    reference = reference_group(config, latest_reference(config)) if has_one else None
    extra = tuple(
        reference_group(config, path, f"extra-reference-{number}")
        for number, path in enumerate(config.model.extra_references)
    )
    return Judges(rewards=reward_groups(config), reference=reference, extra_references=extra)
