"""The smallest things that the tests train and act with: an environment, data from it and narrow networks.

A base drifts at random, an expert drifts to the right; one observation column is constant.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import KVWriter

from rrpolicy import DiffusionAgent, Normalizer, TrajectoryDataset
from rrpolicy.agents.arguments import grouped
from rrpolicy.agents.options import PlanningOptions
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs.controller import PDController
from rrpolicy.testing import DriftEnv as Drift

NARROW = {"width": 32, "n_blocks": 1, "n_fourier_features": 4}
SMALL: dict[str, Any] = {
    "horizon": 8,
    "n_diffusion_steps": 10,
    "batch_size": 16,
    "policy_kwargs": NARROW,
    "seed": 0,
}


def make_dataset(drift: float = 0.0, n_episodes: int = 8, length: int = 24, seed: int = 0) -> TrajectoryDataset:
    """Episodes of `Drift` with smooth random actions whose first entry leans towards ``drift``."""
    rng = np.random.default_rng(seed)
    observations, actions = [], []
    for _ in range(n_episodes):
        steering = np.clip(np.cumsum(rng.normal(0, 0.3, (length, 2)), axis=0), -1, 1)
        steering[:, 0] = np.clip(steering[:, 0] + drift, -1, 1)
        xy = rng.uniform(-1, 1, 2) + 0.1 * np.cumsum(np.vstack([np.zeros(2), steering[:-1]]), axis=0)
        last = 0.1 * np.concatenate([[0.0], steering[:-1, 0]])
        observations.append(np.column_stack([xy, last, np.full(length, 3.0)]))
        actions.append(steering)
    return TrajectoryDataset.from_arrays(
        np.concatenate(observations), np.concatenate(actions), episode_lengths=[length] * n_episodes
    )


DATASET = make_dataset()
EXPERT_DATASET = make_dataset(drift=1.0, seed=1)
NORMALIZER = Normalizer.fit(TrajectoryDataset.concatenate([DATASET, EXPERT_DATASET]))


def make_agent(cls: type[DiffusionAgent] = DiffusionAgent, **kwargs: Any) -> DiffusionAgent:
    """An untrained agent that can act; options of planning and of the process are given flat, as recipes do."""
    arguments = {"policy": "MlpPolicy", "env": Drift(), **SMALL, "normalizer": NORMALIZER, **kwargs}
    return cls(**grouped(arguments))


def maze_planner(maze: gym.Env, columns: tuple[int, int] = (0, 1)) -> DiffusionAgent:
    """An untrained planner of positions in a maze, which a controller follows."""
    return DiffusionAgent(
        "MlpPolicy",
        maze,
        horizon=4,
        stride=3,
        observation_columns=columns,
        controller=PDController(),
        process=DiffusionProcess(5),
        planning=PlanningOptions(n_sampling_steps=2),
        policy_kwargs={"width": 16, "n_blocks": 1},
        seed=0,
        normalizer=Normalizer.from_bounds((np.full(4, -2.0), np.full(4, 2.0)), (-np.ones(2), np.ones(2))),
    )


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"warm_start": 5, "n_action_steps": 3, "n_sampling_steps": 3},
    "controller": {"controller": PDController(velocity_columns=(2, 3)), "observation_columns": (0, 1), "stride": 2},
    "strided": {"stride": 3, "sampler": "ddpm", "observation_columns": (0, 2)},
    "unet": {"policy": "UnetPolicy", "policy_kwargs": {"width": 8, "multipliers": (1, 2)}, "sampler": "dpm++"},
    "transformer": {"policy": "TransformerPolicy", "policy_kwargs": {"width": 16, "n_blocks": 1, "n_heads": 2}},
    "history": {"n_observation_rows": 3, "stride": 2, "warm_start": 5, "n_action_steps": 3, "n_sampling_steps": 3},
    "history-controller": {
        "n_observation_rows": 2,
        "controller": PDController(velocity_columns=(2, 3)),
        "observation_columns": (0, 1),
    },
    "inverse": {"controller": "inverse-dynamics", "controller_kwargs": {"width": 16, "n_blocks": 1}},
}
"""Agents that act in different ways, each of which must keep every promise."""


def agent_of_kind(name: str) -> DiffusionAgent:
    """An untrained agent of one of `KINDS`."""
    return make_agent(**KINDS[name])


def same_tensors(one: Any, other: Any) -> bool:
    """Whether two nested structures of tensors and numbers are equal bit for bit."""
    if isinstance(one, dict):
        same_names = isinstance(other, dict) and one.keys() == other.keys()
        return same_names and all(same_tensors(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same_tensors(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def shorten(patch: pytest.MonkeyPatch, env_id: str, n_steps: int) -> None:
    """Register an environment with a shorter time limit, so that its quick episodes are the registered ones."""
    spec = copy.copy(gym.spec(env_id))
    spec.max_episode_steps = n_steps
    patch.setitem(gym.registry, env_id, spec)


def few_own_samples(patch: pytest.MonkeyPatch, n: int = 64) -> None:
    """Have models that are compared at their own samples draw so many of each, in place of thousands."""
    patch.setattr("rrpolicy.rewards.events.N_OWN_SAMPLES", n)


class Lines(KVWriter):
    """Every line that is logged, with its step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.seen.append((step, dict(key_values)))

    def close(self) -> None:
        pass
