"""The smallest recipe that still goes through every step, and a zoo built with it."""

import copy
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from rrpolicy.experiments import Task
from rrpolicy.experiments.zoo_build import MazeZooBuild
from rrpolicy.rl import on_reward
from rrpolicy.rl.on_reward import Settings

ENV_ID = "PointMaze_UMaze-v3"
NETWORK = {"width": 16, "n_blocks": 1, "n_fourier_features": 4}
GOAL = (3.0, 1.0)

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "environments": ["PointMaze_*"],
    "data": {"base_transitions": 1000, "expert_transitions": 2000},
    "agent": {
        "policy": "MlpPolicy",
        "horizon": 8,
        "stride": 8,
        "observation_columns": [0, 1],
        "controller": {},
        "n_diffusion_steps": 10,
        "n_sampling_steps": 2,
        "n_action_steps": 40,
        "batch_size": 16,
        "padding": False,
        "policy_kwargs": NETWORK,
    },
    "base": {"total_timesteps": 10},
    "expert": {"total_timesteps": 10, "learning_rate": 1e-2},
    "extraction": {
        "total_timesteps": 10,
        "batch_size": 16,
        "buffer_size": 64,
        "window_kwargs": NETWORK,
        "step_kwargs": NETWORK,
    },
    "rounds": {"total_timesteps": 3, "n_plans": 64, "n_visited": 60, "n_envs": 2},
    "discriminator": {"total_timesteps": 10, "batch_size": 16, "window_kwargs": NETWORK},
    "map": {"points_per_cell": 4},
    "steering": {"scale": 1.0},
    "scores": {"n_groups": 2},
    "evaluation": {"n_eval_episodes": 2},
}


def recipe(**changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe with some sections' entries changed."""
    values = copy.deepcopy(RECIPE)
    for name, entries in changes.items():
        values[name] |= entries
    return values


def toml(values: dict[str, Any] = RECIPE) -> str:
    """A recipe as text."""
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for name, entries in values.items():
        if isinstance(entries, dict):
            lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in entries.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {_value(entry)}' for key, entry in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def quick_training(patch: pytest.MonkeyPatch, settings: Mapping[str, Settings], n_transitions: int) -> None:
    """
    Have agents that are trained on a reward, and the base's data that normalise it, be small.

    :param settings: of the algorithms, which are those that there are
    :param n_transitions: of the base's data
    """
    patch.setattr(on_reward, "SETTINGS", settings)
    patch.setattr(on_reward, "N_BASE_TRANSITIONS", n_transitions)


def build_zoo(folder: Path) -> Path:
    """A zoo with a base, an expert and a reward in a new folder: a copy of one that is made once in a process."""
    return shutil.copytree(_zoo().name, folder)


@cache
def _zoo() -> "TemporaryDirectory[str]":
    made = TemporaryDirectory()
    folder = Path(made.name)
    (folder / "recipes").mkdir()
    (folder / "recipes" / "tiny.toml").write_text(toml(), encoding="utf-8")
    MazeZooBuild(Task.create(ENV_ID), [GOAL], RECIPE, folder=folder, date="2026-01-02").run()
    return made
