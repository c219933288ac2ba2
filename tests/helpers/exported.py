"""ONNX files of kept archives, under ``tests/data/onnx``: what the code of their day exported, read for ever.

In ``tests``, ``python -m helpers.exported`` writes those that are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from helpers.old_archives import ARCHIVES
from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward
from rrpolicy.common.typing import Array
from rrpolicy.experiments.demos.maze_page import write_graphs
from rrpolicy.export import export_onnx

FOLDER = Path(__file__).parents[1] / "data" / "onnx"
SOURCES: dict[str, Any] = {
    "planner": GuidedPlanner,
    "agent-history": DiffusionAgent,  # plans from several rows, and refines plans
    "agent-inverse": DiffusionAgent,  # follows plans by a network
    "reward": RelativeReward,
}


def source(name: str) -> Any:
    """The planner or reward that a file was exported from."""
    return SOURCES[name].load(ARCHIVES / name)


def episodes(agent: Any, deterministic: bool, n_envs: int = 3, n_steps: int = 9) -> Array:
    """Actions (n_steps, n_envs, act_dim) at random observations, one environment beginning anew on its way."""
    rng, state, actions = np.random.default_rng(1), None, []
    agent.set_random_seed(5)
    for step in range(n_steps):
        observations = rng.uniform(-1, 1, (n_envs, 4)).astype(np.float32)
        begins = np.array([step in (0, 4), *[step == 0] * (n_envs - 1)])
        chosen, state = agent.predict(observations, state, begins, deterministic)
        actions.append(chosen)
    return np.array(actions)


def moved(module: nn.Module) -> None:
    """Other weights, so that no layer is without effect."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def reward_of(agent: DiffusionAgent) -> RelativeReward:
    sizes = {"width": 16, "n_blocks": 1}
    reward = RelativeReward.for_model(agent, window_kwargs={**sizes, "n_fourier_features": 2}, step_kwargs=sizes)
    moved(reward)
    return reward.requires_grad_(False).eval()


def page_planner() -> GuidedPlanner:
    """The planner of the files of the page, whose layers all have an effect."""
    planner: GuidedPlanner = source("planner")
    moved(planner.agent.averaged)  # type: ignore[attr-defined]
    moved(planner.reward)  # type: ignore[arg-type]
    planner.reward.gradient_scale.fill_(1.0)  # type: ignore[union-attr]
    return planner


if __name__ == "__main__":
    for each in SOURCES:
        if not (FOLDER / f"{each}.onnx").exists():
            export_onnx(source(each), FOLDER / each)
    if not (FOLDER / "page").exists():
        write_graphs(FOLDER / "page", page_planner())
