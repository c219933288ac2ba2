"""How well ρ explains the difference of two models, and where its maximum lies.

The explained fraction R²(t) = 1 - E‖∇ρ - Δs‖² / E‖Δs‖² is reported on noised data and on the x_t that guided sampling
visits: the second is where steering happens, and the first can look good without it. EPIC, the distance between two
rewards, has a file of its own and is offered here, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rrpolicy.diffusion.sampling import Solver, SolverName, sample_model
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.epic import Coverage, epic_distance, state_reward
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.protocol import RewardFunction, reward_gradient
from rrpolicy.rewards.relative_reward import Head, RelativeReward
from rrpolicy.rewards.targets import eps_difference, noised

__all__ = [
    "Coverage",
    "epic_distance",
    "explained_by_level",
    "explained_fraction",
    "explained_when_guided",
    "state_reward",
]

CHUNK = 2048


def explained_fraction(
    reward: RewardFunction,
    base: ScoreModel,
    expert: ScoreModel,
    x_t: Tensor,
    t: Tensor,
    head: Head | None = None,
    x0: Tensor | None = None,
) -> float:
    """
    R² of σ∇ρ for ε_base - ε_expert at the given noised events (so every level counts with its σ²).

    :param x_t: (B, *event_shape), clean at pinned entries
    :param t: levels (B,)
    :param head: of the reward
    :param x0: clean events (B, *event_shape), at which the step head is evaluated at the cleanest levels
    :return: 1 for a perfect fit, 0 for ρ = const; 1 when both are zero everywhere
    """
    residual, total = 0.0, 0.0
    inputs = x_t
    if head == "step" and x0 is not None and isinstance(reward, RelativeReward):
        inputs = reward.step_inputs(x0, x_t, t)
    options = {} if head is None else {"head": head}
    for x, at, level in zip(x_t.split(CHUNK), inputs.split(CHUNK), t.split(CHUNK), strict=True):
        wanted = eps_difference(base, expert, x, level)
        got = base.process.levels(x, level)[1] * reward_gradient(reward, at, level, **options)
        residual += float(((got - wanted) ** 2).sum())
        total += float((wanted**2).sum())
    if total == 0:
        return 1.0 if residual == 0 else -float("inf")
    return 1 - residual / total


def explained_by_level(
    reward: RewardFunction,
    base: ScoreModel,
    expert: ScoreModel,
    x0: Tensor,
    levels: Sequence[int],
    head: Head | None = None,
    seed: int = 0,
) -> dict[int, float]:
    """R² per noise level on noised clean events ``x0`` (N, *event_shape)."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for level in levels:
        t = torch.full((len(x0),), level, dtype=torch.int64)
        x_t = noised(base, x0, t, generator)
        result[level] = explained_fraction(reward, base, expert, x_t, t, head, x0)
    return result


def explained_when_guided(
    reward: RewardFunction,
    base: ScoreModel,
    expert: ScoreModel,
    x0: Tensor,
    n_sampling_steps: int = 5,
    scale: float = 1.0,
    max_shift: float | None = None,
    seed: int = 0,
    solver: SolverName | Solver = "ddim",
) -> dict[int, float]:
    """R² per noise level on the x_t that guided sampling visits; pinned entries are taken from ``x0``."""
    visited: list[tuple[Tensor, Tensor]] = []
    sample_model(
        base,
        clean=x0,
        generator=torch.Generator().manual_seed(seed),
        n_sampling_steps=n_sampling_steps,
        solver=solver,
        denoiser=guided(base.eps, reward, base.process, scale, max_shift),
        visit=lambda x_t, t: visited.append((x_t.clone(), t)),
    )
    return {int(t[0]): explained_fraction(reward, base, expert, x_t, t) for x_t, t in visited}
