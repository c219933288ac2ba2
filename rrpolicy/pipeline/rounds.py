"""On-policy rounds: ρ is also fitted where steering leads, at plans of the steered base beside those of its two models.

Offline, plans start from states of the data. In closed loop they start from states that base and steered base visit:
such rounds use the environment's dynamics, but neither its reward nor any label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common.typing import Array
from rrpolicy.data.collect import collect
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.pipeline.recipes import Recipe, total_timesteps
from rrpolicy.pipeline.steps import extract, steer
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.extractor import RewardExtractor

N_PLANS = 4096  # of each of the three models in a round, and as many events of the data as plans
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
    :param n_rounds: how many; what earlier rounds have visited is kept
    :param make_env: for rounds in closed loop; None: plans start from states of ``data``
    """
    extractor = extract(base, expert, data, recipe, seed)
    steps = total_timesteps(recipe, "rounds") if "rounds" in recipe else total_timesteps(recipe, "extraction") // 3
    generator = torch.Generator().manual_seed(seed + 1)
    events = as_events(data, base, expert, seed)
    visited: list[Array] = []
    for index in range(n_rounds):
        planner = steer(base, extractor.reward, recipe)
        if make_env is None:
            starts = events.draw(3 * N_PLANS, generator)
        else:
            visited += [_visited(agent, make_env, seed + 1000 * (index + 1)) for agent in (planner, base)]
            states = np.concatenate(visited)
            starts = base.pinned_at(states[torch.randint(len(states), (3 * N_PLANS,), generator=generator).numpy()])
        agents = (base, expert, planner)
        plans = [one.sample_at(own, generator) for one, own in zip(agents, starts.split(N_PLANS), strict=True)]
        clean = events.draw(3 * N_PLANS, generator)
        extractor.learn(torch.cat([clean, *plans]), steps, log_interval=0, reset_num_timesteps=False)
    return extractor


def _visited(agent: DiffusionAgent | GuidedPlanner, make_env: Callable[[], gym.Env], seed: int) -> Array:
    """Observations (n, obs_dim) of an agent at work, environment units."""
    envs = DummyVecEnv([make_env] * N_ENVS)
    try:
        return collect(agent, envs, N_VISITED, seed).observations
    finally:
        envs.close()
