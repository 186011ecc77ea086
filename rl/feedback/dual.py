"""Multipliers of constraints, solved once and before training (One-Shot Safety Alignment).

max_pi E[r] - beta KL(pi || pi_ref) subject to E[g_i] >= b_i has a smooth convex dual that needs
samples of the reference policy only (arXiv 2405.19544):

    D(lambda) = beta E_x log E_{y ~ pi_ref} exp((r + sum_i lambda_i (g_i - b_i)) / beta)

With lambda* = argmin_{lambda >= 0} D, aligning once to r + lambda* g meets the bounds. Shapes: P
prompts, N sampled replies each, C constraints. The paper's code descends by projected gradient;
here a projected Newton step is tried first, which needs a few rounds instead of hundreds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_ARMIJO = 1e-4
_MAX_HALVINGS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class DualProblem:
    """Samples of the reference policy, all in float64; exact where they list a finite set."""

    rewards: Tensor
    """(P, N)"""
    slacks: Tensor
    """(C, P, N) g_i - b_i"""
    beta: float
    """Strength of the KL, in the unit of the reward per nat."""

    def value(self, multipliers: Tensor) -> float:
        """D at `multipliers` (C,), in the unit of the reward."""
        per_prompt = torch.logsumexp(self._tilted(multipliers), -1)  # (P,)
        return self.beta * (float(per_prompt.mean()) - math.log(self.rewards.shape[1]))

    def derivatives(self, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (C,), the slacks' mean under the tilted policy, and Hessian (C, C) of D."""
        policy = torch.softmax(self._tilted(multipliers), -1)  # (P, N)
        means = torch.einsum("cpn,pn->cp", self.slacks, policy)
        centred = self.slacks - means[..., None]  # (C, P, N)
        covariance = torch.einsum("apn,bpn,pn->ab", centred, centred, policy)
        return means.mean(-1), covariance / (self.beta * len(policy))

    def _tilted(self, multipliers: Tensor) -> Tensor:
        return (self.rewards + torch.tensordot(multipliers, self.slacks, 1)) / self.beta


def one_shot_multipliers(
    rewards: Tensor,
    constraints: Mapping[str, Tensor],
    bounds: Mapping[str, float],
    *,
    beta: float,
    tolerance: float = 1e-6,
    max_rounds: int = 200,
) -> dict[str, float]:
    """lambda* >= 0 per constraint, in the unit of the reward per unit of the constraint.

    `rewards` and each of `constraints` are (P, N), replies drawn from the reference policy. Bounds
    are met up to `tolerance` times the largest |g_i - b_i|. Raises ValueError where names or shapes
    do not match, where no policy on these samples meets the bounds (no finite lambda), and after
    `max_rounds` Newton steps; a few are usual.
    """
    names = list(constraints)
    if set(names) != set(bounds) or not names:
        raise ValueError(
            f"bounds: {sorted(bounds)} but constraints {sorted(names)}; give each one bound"
        )
    shapes = {tuple(value.shape) for value in (rewards, *constraints.values())}
    if len(shapes) != 1 or rewards.ndim != 2 or not rewards.numel():
        raise ValueError(f"samples have shapes {sorted(shapes)}; give (prompts, replies) for all")
    if not beta > 0:
        raise ValueError(f"beta is {beta}: the dual needs a KL penalty above 0")
    rewards = rewards.detach().to("cpu", torch.float64)
    slacks = torch.stack([constraints[name].to(rewards) - bounds[name] for name in names])
    if not bool(slacks.isfinite().all() and rewards.isfinite().all()):
        raise ValueError("samples or bounds are not finite; drop such samples first")
    for name, reach in zip(names, slacks.amax(-1).mean(-1).tolist(), strict=True):
        if reach < 0:
            raise ValueError(
                f"bounds: {name} >= {bounds[name]:g} is out of reach, the best sampled replies "
                f"average {bounds[name] + reach:g}; lower the bound or sample more replies"
            )
    scales = slacks.abs().amax((1, 2))  # (C,) so that one tolerance suits every unit
    scales = torch.where(scales > 0, scales, 1.0)
    problem = DualProblem(rewards=rewards, slacks=slacks / scales[:, None, None], beta=beta)
    solution = _minimise(problem, tolerance, max_rounds) / scales
    return dict(zip(names, solution.tolist(), strict=True))


def _minimise(problem: DualProblem, tolerance: float, max_rounds: int) -> Tensor:
    """(C,) argmin of D over lambda >= 0, by projected Newton with projected gradient behind it."""
    rewards, beta = problem.rewards, problem.beta
    # Weak duality: a feasible policy on the samples earns at least this, and D is never below it.
    floor = float(rewards.amin(-1).mean()) - beta * math.log(rewards.shape[1])
    reach = float(rewards.max() - rewards.min()) + beta
    point = torch.zeros(len(problem.slacks), dtype=torch.float64)
    for _ in range(max_rounds):
        gradient, hessian = problem.derivatives(point)
        is_free = (point > 0) | (gradient < 0)
        if not bool((gradient[is_free].abs() > tolerance).any()):
            return point
        value = problem.value(point)
        if value < floor - 1e-9 * (1 + abs(floor)):
            raise ValueError(
                "bounds: no finite multipliers, no policy on these samples meets all bounds at "
                "once; lower a bound or sample more replies"
            )
        longest = reach + float(point.norm())
        directions = [_newton(gradient, hessian, is_free, longest), -gradient * is_free]
        steps = (_descend(problem, point, value, gradient, each) for each in directions)
        step = next((found for found in steps if found is not None), None)
        if step is None:
            break
        point = step
    raise ValueError(
        f"bounds: no multipliers found in {max_rounds} rounds; lower a bound that is almost out of "
        "reach, or sample more replies"
    )


def _newton(gradient: Tensor, hessian: Tensor, is_free: Tensor, longest: float) -> Tensor:
    """(C,) the Newton step over free coordinates, damped where flat, no longer than `longest`."""
    free = hessian[is_free][:, is_free]
    damping = 1e-10 * (1 + free.diagonal().max()) * torch.eye(len(free), dtype=free.dtype)
    direction = torch.zeros_like(gradient)
    direction[is_free] = -torch.linalg.solve(free + damping, gradient[is_free])
    return direction * min(1.0, longest / float(direction.norm()))


def _descend(
    problem: DualProblem, point: Tensor, value: float, gradient: Tensor, direction: Tensor
) -> Tensor | None:
    """The first halving of `direction`, projected to lambda >= 0, that lowers D enough."""
    rounding = 1e-14 * (1 + abs(value))
    for halving in range(_MAX_HALVINGS):
        candidate = (point + 0.5**halving * direction).clamp(min=0)
        slope = float(gradient @ (candidate - point))
        if slope < 0 and problem.value(candidate) <= value + _ARMIJO * slope + rounding:
            return candidate
    return None
