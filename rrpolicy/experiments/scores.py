"""Numbers about a pair and its reward: R² of the gradient on held-out data and where guided sampling goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import Row, result_row
from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.steps import steer
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.metrics import explained_by_level, explained_when_guided
from rrpolicy.rewards.relative_reward import RelativeReward

HELD_OUT = 0.1  # of the episodes: where the extracted reward is scored
N_GROUPS = 8  # disjoint groups of held-out events, whose spread gives the interval of R²
GROUP_SIZE = 128


def split_data(data: Sequence[TrajectoryDataset], seed: int) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
    """What to extract from and what to score on: disjoint episodes. One episode alone serves as both."""
    pairs = [one.split(HELD_OUT, seed) if one.n_episodes > 1 else (one, one) for one in data]
    return [train for train, _ in pairs], [held_out for _, held_out in pairs]


def explained_rows(
    reward: RelativeReward,
    base: DiffusionAgent,
    expert: DiffusionAgent,
    data: Sequence[TrajectoryDataset] | None,
    recipe: Recipe,
    seed: int = 0,
) -> list[Row]:
    """
    R² of ∇ρ for the score difference per noise level: of each head on noised events, and of the steering head on the
    x_t that guided sampling visits. Intervals over disjoint groups of events.

    :param data: held-out data; None for samples of the two agents
    """
    generator = torch.Generator().manual_seed(seed + 1)
    groups = as_events(data, base, expert, seed + 1).draw(N_GROUPS * GROUP_SIZE, generator).split(GROUP_SIZE)
    levels = sorted({round(f * (base.process.n_diffusion_steps - 1)) for f in (0, 0.1, 0.25, 0.5, 0.75, 1)})
    steering = steer(base, reward, recipe)
    rows = []
    for head in reward.heads:
        by_level = [explained_by_level(reward, base, expert, x0, levels, head, seed) for x0 in groups]
        rows += _level_rows(f"r2_{head}_noised", by_level)
    guided = [_when_guided(reward, base, expert, x0, steering, seed) for x0 in groups]
    return rows + _level_rows("r2_guided", guided)


def _when_guided(
    reward: RelativeReward, base: DiffusionAgent, expert: DiffusionAgent, x0: Tensor, steering: GuidedPlanner, seed: int
) -> dict[int, float]:
    n_steps, solver = steering.planning.n_sampling_steps, steering.planning.sampler
    return explained_when_guided(reward, base, expert, x0, n_steps, steering.scale, steering.max_shift, seed, solver)


def _level_rows(name: str, by_level: Sequence[Mapping[int, float]]) -> list[Row]:
    return [
        result_row("reward", f"{name}_t{level}", np.array([group[level] for group in by_level]))
        for level in sorted(by_level[0])
    ]


def plain_row(agent: str, metric: str, value: float) -> Row:
    """A row for a number that has no spread."""
    return {"agent": agent, "metric": metric, "mean": value, "ci_low": value, "ci_high": value, "n": 1}
