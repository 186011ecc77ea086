"""Named rewards (B,) of the same replies -> one score (B,): sum, minimum, or Lagrangian.

The weighted sum is `rl.rewards.combine_rewards`. As there, parts named `name/part` weigh nothing.
A minimum compares rewards as they are: bring them to one scale first, and leave out those that are
only recorded.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rl.rewards import combine_rewards


def minimum_per_sample(rewards: Mapping[str, Tensor]) -> Tensor:
    """(B,): min_u r_u(x, y), each reply judged by whoever likes it least.

    What the code of MaxMin-RLHF (arXiv 2402.08925) optimises; never above `minimum_per_group`.
    Raises ValueError where no reward is named.
    """
    return torch.stack([rewards[name] for name in _names(rewards)]).amin(0)


def minimum_per_group(
    rewards: Mapping[str, Tensor], means: Mapping[str, float] | None = None
) -> Tensor:
    """(B,): the rewards of the group of annotators u with the lowest mean, argmin_u E[r_u].

    The objective max_pi min_u E[r_u] of MaxMin-RLHF (arXiv 2402.08925): its gradient is that of the
    worst-off group. `means` are E[r_u] per name over all ranks and sampled replies; where None, the
    means of the rows given. The first of equals decides. Raises ValueError for a group without a
    mean, or where no reward is named.
    """
    names = _names(rewards)
    if means is None:
        means = {name: float(rewards[name].mean()) for name in names}
    missing = [name for name in names if name not in means]
    if missing:
        raise ValueError(f"means: none for {missing}; give the mean reward of every group")
    return rewards[min(names, key=means.__getitem__)]


def lagrangian(
    objective: Tensor,
    constraints: Mapping[str, Tensor],
    multipliers: Mapping[str, float],
    bounds: Mapping[str, float],
) -> Tensor:
    """(B,): r + sum_i lambda_i (g_i - b_i), for max E[r] subject to E[g_i] >= b_i.

    `objective` r and every constraint g_i are (B,), a bound b_i is in the unit of its g_i; a cost
    that must stay below c is the constraint -cost >= -c. The multipliers lambda_i >= 0 come from
    `dual.one_shot_multipliers` (arXiv 2405.19544) or from ascent during training. Raises ValueError
    where names do not match one to one, or for a negative multiplier.
    """
    names = {name for name in constraints if "/" not in name}
    if names != set(multipliers) or names != set(bounds):
        raise ValueError(
            f"constraints {sorted(names)}, multipliers {sorted(multipliers)}, bounds "
            f"{sorted(bounds)}; give every constraint one multiplier and one bound"
        )
    negative = [name for name, value in multipliers.items() if not value >= 0]
    if negative:
        raise ValueError(f"multipliers: {negative} below 0; a bound can only pull towards itself")
    if not multipliers:
        return objective
    offset = sum(multipliers[name] * bounds[name] for name in multipliers)
    return objective + combine_rewards(constraints, multipliers) - offset


def _names(rewards: Mapping[str, Tensor]) -> list[str]:
    names = [name for name in rewards if "/" not in name]
    if not names:
        raise ValueError("rewards: no reward to combine; name at least one")
    return names
