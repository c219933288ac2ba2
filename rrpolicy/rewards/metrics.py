"""How well ρ explains the difference of two models, and where its maximum lies.

The explained fraction R²(t) = 1 - E‖∇ρ - Δs‖² / E‖Δs‖² is reported on noised data and on the x_t that guided sampling
visits: the second is where steering happens, and the first can look good without it. EPIC, the distance between two
rewards, has a file of its own and is offered here, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import Solver, SolverName, sample_model
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.dard import dard_distance
from rrpolicy.rewards.epic import Coverage, epic_distance, state_reward
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.protocol import RewardFunction, reward_gradient
from rrpolicy.rewards.relative_reward import Head, RelativeReward
from rrpolicy.rewards.targets import eps_difference, noised

__all__ = [
    "Coverage",
    "SteeringCheck",
    "check_steering",
    "dard_distance",
    "epic_distance",
    "explained_by_level",
    "explained_by_name",
    "explained_fraction",
    "explained_when_guided",
    "predicted_difference",
    "split_episodes",
    "state_reward",
    "winsorized_fraction",
]

CHUNK = 2048
MARGIN = 0.2  # of R² that may be lost from recorded to steered events
LEVELS = (0, 0.1, 0.25, 0.5, 0.75, 1)  # at which noised events are looked at, in parts of the noisiest


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

    It has no lower bound: at events where the two models hardly differ, as in a rare mode that both have alike, a small
    error makes it -1000 and less. :func:`winsorized_fraction` has one.

    :param x_t: (B, *event_shape), clean at pinned entries
    :param t: levels (B,)
    :param head: of the reward
    :param x0: clean events (B, *event_shape), at which the step head is evaluated at the cleanest levels
    :return: 1 for a perfect fit, 0 for ρ = const; 1 when both are zero everywhere
    """
    residual, total = 0.0, 0.0
    clean = [None] * -(-len(x_t) // CHUNK) if x0 is None else x0.split(CHUNK)
    for x, level, without_noise in zip(x_t.split(CHUNK), t.split(CHUNK), clean, strict=True):
        wanted = eps_difference(base, expert, x, level)
        got = predicted_difference(reward, base.process, x, level, head, without_noise)
        residual += float(((got - wanted) ** 2).sum())
        total += float((wanted**2).sum())
    if total == 0:
        return 1.0 if residual == 0 else -float("inf")
    return 1 - residual / total


def predicted_difference(
    reward: RewardFunction,
    process: DiffusionProcess,
    x_t: Tensor,
    t: Tensor,
    head: Head | None = None,
    x0: Tensor | None = None,
) -> Tensor:
    """
    σ∇ρ (B, *event_shape), which is ε_base - ε_expert where ρ is right.

    :param x_t: (B, *event_shape), clean at pinned entries
    :param t: levels (B,)
    :param head: of the reward
    :param x0: clean events, at which the step head is evaluated at the cleanest levels
    """
    inputs = x_t
    if head == "step" and x0 is not None and isinstance(reward, RelativeReward):
        inputs = reward.step_inputs(x0, x_t, t)
    options = {} if head is None else {"head": head}
    return process.levels(x_t, t)[1] * reward_gradient(reward, inputs, t, **options)


def winsorized_fraction(residual: Tensor, total: Tensor) -> float:
    """
    Explained fraction with every square bounded by the median of ‖Δε‖²: 1 - Σ min(‖σ∇ρ - Δε‖², m) / Σ min(‖Δε‖², m).

    R² is dominated by few events: by one of a rare mode at which the two models hardly differ and ρ errs by little,
    and by one far off the data, whose square is thousands of typical ones. Here no event counts for more than a typical
    difference (Tukey 1962, winsorizing at the median), so the number lies between -1 and 1: one wrong event among n
    takes away at most 2/n, and where ρ errs by less than a typical difference, it still explains something.

    :param residual: ‖σ∇ρ - Δε‖² of each event (B,)
    :param total: ‖Δε‖² (B,), at one noise level or at some whose differences are of a size
    :return: 1 for a perfect fit, 0 for ρ = const; 1 when both are zero everywhere
    """
    differing = total[total > 0]
    if not len(differing):
        return 1.0 if float(residual.sum()) == 0 else -1.0
    bound = differing.median()
    errors, sizes = torch.nan_to_num(residual, nan=float("inf")).clamp(max=bound), total.clamp(max=bound)
    return max(1 - float(errors.sum() / sizes.sum()), -1.0)


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
        t = torch.full((len(x0),), level, dtype=torch.int64, device=x0.device)
        x_t = noised(base, x0, t, generator)
        result[level] = explained_fraction(reward, base, expert, x_t, t, head, x0)
    return result


def explained_when_guided(
    reward: RewardFunction,
    base: ScoreModel,
    expert: ScoreModel,
    x0: Tensor,
    **steering: Any,
) -> dict[int, float]:
    """
    R² per noise level on the x_t that guided sampling visits; pinned entries are taken from ``x0``.

    :param steering: ``n_sampling_steps``, ``scale``, ``max_shift``, ``solver`` and ``seed`` of guided sampling
    """
    visited = _visited(reward, base, x0, **steering)
    return {int(t[0]): explained_fraction(reward, base, expert, x_t, t) for x_t, t in visited}


def _visited(
    reward: RewardFunction,
    base: ScoreModel,
    x0: Tensor,
    n_sampling_steps: int = 5,
    scale: float = 1.0,
    max_shift: float | None = None,
    seed: int = 0,
    solver: SolverName | Solver = "ddim",
) -> list[tuple[Tensor, Tensor]]:
    """x_t and t of each step of guided sampling."""
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
    return visited


@dataclass(frozen=True)
class SteeringCheck:
    """
    Whether ρ explains the difference of two models where it leads to, as it does where they were compared.

    :param recorded: R² on noised events of the data, at the noise levels that sampling visits
    :param steered: R² on the x_t of the steered base at the same levels
    """

    recorded: float
    steered: float

    @property
    def suffices(self) -> bool:
        """Whether extraction from data alone suffices: at most `MARGIN` is lost."""
        return self.steered >= self.recorded - MARGIN

    @property
    def advice(self) -> str:
        """One sentence with both numbers and the remedy; empty where none is needed."""
        if self.suffices:
            return ""
        return (
            f"the reward explains {self.recorded:.2f} of the difference of the two models at the data and "
            f"{self.steered:.2f} where the steered base goes (R²): continue the extraction there, "
            "rrpolicy.agents.refine(extractor, data, env)"
        )


def check_steering(
    reward: RewardFunction, base: ScoreModel, expert: ScoreModel, x0: Tensor, seed: int = 0, **steering: Any
) -> SteeringCheck:
    """
    Compare R² where the steered base goes with R² at data, both at the noise levels that sampling visits.

    :param x0: clean events (N, *event_shape), held out; their pinned entries are those of the samples
    :param seed: of the noise
    :param steering: ``n_sampling_steps``, ``scale``, ``max_shift`` and ``solver`` of guided sampling
    """
    visited = _visited(reward, base, x0, seed=seed, **steering)
    generator = torch.Generator().manual_seed(seed)
    at_data = [(noised(base, x0, t, generator), t) for _, t in visited]
    recorded, steered = (
        explained_fraction(reward, base, expert, torch.cat([x_t for x_t, _ in pairs]), torch.cat([t for _, t in pairs]))
        for pairs in (at_data, visited)
    )
    return SteeringCheck(recorded, steered)


def explained_by_name(
    reward: RelativeReward,
    base: ScoreModel,
    expert: ScoreModel,
    groups: Sequence[Tensor],
    seed: int = 0,
    **steering: Any,
) -> dict[tuple[str, int], Array]:
    """
    R² of ∇ρ for the score difference, of each head on noised events and on the x_t that guided sampling visits.

    :param groups: clean events (n, *event_shape) each, disjoint, whose spread gives an interval
    :param seed: of the noise
    :param steering: arguments of :func:`explained_when_guided`
    :return: (name, noise level) -> R² of each group; names are ``r2_<head>_noised`` and ``r2_guided``
    """
    last = base.process.n_diffusion_steps - 1
    levels = sorted({round(part * last) for part in LEVELS})
    found: dict[str, list[Mapping[int, float]]] = {
        f"r2_{head}_noised": [explained_by_level(reward, base, expert, x0, levels, head, seed) for x0 in groups]
        for head in reward.heads
    }
    found["r2_guided"] = [explained_when_guided(reward, base, expert, x0, seed=seed, **steering) for x0 in groups]
    return {
        (name, level): np.array([group[level] for group in by_level])
        for name, by_level in found.items()
        for level in sorted(by_level[0])
    }


def split_episodes(
    data: Sequence[TrajectoryDataset], held_out: float = 0.1, seed: int = 0
) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
    """
    What to extract from and what to score on: disjoint episodes. One episode alone serves as both.

    :param held_out: share of the episodes that is scored on
    :param seed: of the choice
    """
    pairs = [one.split(held_out, seed) if one.n_episodes > 1 else (one, one) for one in data]
    return [train for train, _ in pairs], [rest for _, rest in pairs]
