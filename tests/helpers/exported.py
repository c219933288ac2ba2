"""ONNX files of kept archives, under ``tests/data/onnx``: what the code of their day exported, read for ever.

In ``tests``, ``python -m helpers.exported`` writes those that are missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.old_archives import ARCHIVES
from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward
from rrpolicy.common.typing import Array
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


if __name__ == "__main__":
    for each in SOURCES:
        if not (FOLDER / f"{each}.onnx").exists():
            export_onnx(source(each), FOLDER / each)
