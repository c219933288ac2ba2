"""The smallest robot: a recipe that goes through every step, an untrained demonstrator, short episodes, and a zoo."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import SAC

from helpers.agents import shorten
from helpers.pictures import small_pictures
from helpers.recipes import NETWORK, toml
from rrpolicy import zoo
from rrpolicy.experiments import Task
from rrpolicy.experiments.locomotion import Demonstrations
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.experiments.zoo_build import RobotZooBuild, robot_unit

ENV_ID = "Hopper-v5"
BASE, EXPERT, REWARD = (f"{ENV_ID}/{name}" for name in ("base", "expert", "reward"))
AGENT = {"sb3/sac-Hopper-v3": 1.0}
SMALL = {"batch_size": 16, "total_timesteps": 6}
RECIPE: dict[str, Any] = {
    "name": "hopper",
    "environments": ["Hopper-*"],
    "data": {
        "noisy": {
            "base": {"agents": AGENT, "n_transitions": 400, "action_noise": 0.5},
            "expert": {"agents": AGENT, "n_transitions": 400},
        },
        "mixture": {
            "base": {"agents": AGENT, "n_transitions": 300, "epsilon": 0.5},
            "expert": {"agents": AGENT, "n_transitions": 300},
        },
    },
    "agent": {
        "horizon": 4,
        "n_diffusion_steps": 20,
        "n_sampling_steps": 2,
        "n_action_steps": 1,
        "clip": 5.0,
        "batch_size": 16,
        "normalizer_mode": "gaussian",
        "policy_kwargs": NETWORK,
    },
    "base": {"total_timesteps": 8},
    "expert": {"total_timesteps": 8},
    "extraction": {
        **SMALL,
        "heads": ["window"],
        "buffer_size": 64,
        "value_coef": 0.0,
        "first_action_weight": 10.0,
        "window_kwargs": NETWORK,
    },
    "rounds": {"total_timesteps": 4, "n_rounds": 1, "n_plans": 32, "n_visited": 40, "n_envs": 2},
    "discriminator": {**SMALL, "window_kwargs": NETWORK},
    "steering": {"scale": 1.0},
    "cloning": {"n_steps": 10},
    "scores": {"n_groups": 2},
    "evaluation": {"n_eval_episodes": 2},
}


def short_hopper(self: Task, render_mode: str | None = None, **more: Any) -> gym.Env:
    return gym.make("Hopper-v5", render_mode=render_mode, disable_env_checker=True)


@contextmanager
def small() -> Iterator[None]:
    """Short episodes, few plans in a round and few pictures."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, "Hopper-v5", 12)
        patch.setattr(Task, "make", short_hopper)
        small_pictures(patch)
        yield


def untrained_agents(folder: Path) -> Path:
    """A collection of pretrained agents that holds one, untrained."""
    model = SAC("MlpPolicy", ENV_ID, buffer_size=1, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    (path := folder / "sac" / "Hopper-v3_1").mkdir(parents=True)
    model.save(path / "Hopper-v3.zip")
    return folder


def robot_zoo(folder: Path, **changes: Any) -> RobotZooBuild:
    """A build of a zoo with its recipe; agents and archives lie beside the zoo."""
    agents = folder.parent / "agents"
    if not agents.exists():
        untrained_agents(agents)
    (folder / "recipes").mkdir(parents=True, exist_ok=True)
    (folder / "recipes" / "hopper.toml").write_text(toml(RECIPE), encoding="utf-8")
    work = folder.parent / "work"
    arguments: dict[str, Any] = {"folder": folder, "date": "2026-01-02", **changes}
    unit = robot_unit(ENV_ID, RECIPE, arguments.pop("case", "noisy"))
    return RobotZooBuild(unit, RECIPE, work, Demonstrations(work / "data", agents), **arguments)


@contextmanager
def built_zoo(folder: Path) -> Iterator[Path]:
    """A built zoo, which names are looked up in, among short episodes."""
    with small(), pytest.MonkeyPatch.context() as patch:
        robot_zoo(folder).run()
        patch.setenv(zoo.FOLDER_VARIABLE, str(folder))
        patch.setenv(RECIPES_VARIABLE, str(folder / "recipes"))
        yield folder
