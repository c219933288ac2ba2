"""On-policy rounds: ρ is also fitted where steering leads, at every x_t on the way of the steered base's plans.

Offline, plans start from states of the data. In closed loop they start from states that base and steered base visit:
such rounds use the environment's dynamics, but neither its reward nor any label. Plans of the two models alone are
compared as well; noised anew, like data, plans of the steered base would be other x_t than those that it visits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.planning import CHUNK, Planner
from rrpolicy.data.collect import collect
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.experiments.recipes import Recipe, total_timesteps
from rrpolicy.experiments.steps import extract, steer
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.targets import Targets, targets_along

N_PLANS = 4096  # of the steered base in a round, and as many of its two models together
N_VISITED = 6000  # environment steps of each agent in a round
N_ENVS = 16


def extract_on_policy(
    base: DiffusionAgent,
    expert: DiffusionAgent,
    data: Sequence[TrajectoryDataset],
    recipe: Recipe,
    seed: int = 0,
    n_rounds: int = 1,
    make_env: Callable[[], gym.Env] | None = None,
) -> RewardExtractor:
    """
    Extraction followed by rounds that also compare the two agents where the steered base plans.

    :param data: where they are compared, [base data, expert data]
    :param recipe: its section ``[rounds]`` may hold the gradient steps of a round, a third of the extraction's if not
    :param n_rounds: how many; half of what is learned from then are pairs of this and earlier rounds
    :param make_env: for rounds in closed loop; None: plans start from states of ``data``
    """
    extractor = extract(base, expert, data, recipe, seed)
    steps = total_timesteps(recipe, "rounds") if "rounds" in recipe else total_timesteps(recipe, "extraction") // 3
    generator = torch.Generator().manual_seed(seed + 1)
    events = as_events(data, base, expert, seed)
    compared: list[Targets] = []
    for index in range(n_rounds):
        planner = steer(base, extractor.reward, recipe)
        if make_env is None:
            starts = events.draw(2 * N_PLANS, generator)
        else:
            visited = TrajectoryDataset.concatenate(
                [_visited(agent, make_env, seed + 1000 * (index + 1)) for agent in (planner, base)]
            )
            chosen = torch.randint(len(visited), (2 * N_PLANS,), generator=generator).numpy()
            known = visited.windows(base.layout, chosen).observations[:, : base.layout.n_observation_rows]
            starts = base.pinned_at(known)
        n_value_draws = extractor.n_value_draws if extractor.value_coef > 0 else 0
        for agent, own in ((planner, starts[:N_PLANS]), *zip((base, expert), starts[N_PLANS:].chunk(2), strict=True)):
            compared.append(_compared(base, expert, agent, own, generator, n_value_draws))
        pairs = Targets.joined(compared)
        extractor.learn(data, steps, log_interval=0, reset_num_timesteps=False, pairs=pairs)
    return extractor


def _compared(
    base: DiffusionAgent,
    expert: DiffusionAgent,
    agent: Planner,
    starts: Tensor,
    generator: torch.Generator,
    n_value_draws: int,
) -> Targets:
    """Base and expert at every x_t on the way of an agent's plans from ``starts`` (n, H, D)."""
    parts = []
    for part in starts.split(CHUNK):  # sampled in one go each, so that a plan can be told from its x_t
        way: list[tuple[Tensor, Tensor]] = []
        plans = agent.sample_at(part, generator, partial(_note, way))
        parts.append(targets_along(base, expert, plans, way, generator, n_value_draws))
    return Targets.joined(parts)


def _note(way: list[tuple[Tensor, Tensor]], x_t: Tensor, t: Tensor) -> None:
    way.append((x_t, t))


def _visited(agent: Planner, make_env: Callable[[], gym.Env], seed: int) -> TrajectoryDataset:
    """Episodes of an agent at work."""
    envs = DummyVecEnv([make_env] * N_ENVS)
    try:
        return collect(agent, envs, N_VISITED, seed)
    finally:
        envs.close()
