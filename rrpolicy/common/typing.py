"""Types that more than one layer speaks: arrays, the memory of an agent, and the one method that makes an agent.
``Predictor`` is Stable-Baselines3's ``PolicyPredictor`` restated with the memory that planners need, so consumers
depend on this protocol and never on a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Array = np.ndarray
State = tuple[np.ndarray, ...]
"""Memory of an agent between two calls of ``predict``: arrays with a leading ``n_envs`` axis."""

AnyArray = TypeVar("AnyArray", np.ndarray, "torch.Tensor")
"""A function of this type returns numpy for numpy and torch for torch."""


class Predictor(Protocol):
    """Anything that acts: the contract shared with Stable-Baselines3's evaluation helpers."""

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State | None]:
        """Choose an action.

        :param observation: one observation ``(obs_dim,)`` or a batch ``(n_envs, obs_dim)``, environment units
        :param state: what the previous call returned, ``None`` at first
        :param episode_start: ``(n_envs,)`` booleans, True where a new episode begins
        :param deterministic: whether equal inputs give equal actions
        :return: actions in environment units, shaped like the observation's batch, and the new state
        """
        ...
