"""A toy environment for tests and examples: a point in the plane that is moved by its action.

It needs neither MuJoCo nor a time limit wrapper, and an episode costs less than a millisecond per step.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class DriftEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A point (x, y) that is moved by a tenth of the action; the reward is how far it moved in x.

    The observation is (x, y, the last step's move in x, 3.0): one column is the reward and one is constant, as columns
    of real data are. The best agent takes the action (1, ·) in every step and reaches a return of ``0.1 * n_steps``.
    Episodes begin uniformly in [-1, 1]² and are truncated after ``n_steps``.

    :param n_steps: steps of an episode
    :param render_mode: ``"rgb_array"`` for pictures (32, 32, 3), which become brighter with every step, or None
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  as in gymnasium

    def __init__(self, n_steps: int = 10, render_mode: str | None = None) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode = render_mode
        self._n_steps = n_steps

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode at a random place."""
        super().reset(seed=seed)
        self._step, self._last = 0, 0.0
        self._xy = self.np_random.uniform(-1, 1, 2)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the point by a tenth of ``action`` (2,)."""
        self._step += 1
        self._last = 0.1 * float(action[0])
        self._xy = self._xy + 0.1 * np.asarray(action, dtype=np.float64)
        return self._observation(), self._last, False, self._step >= self._n_steps, {}

    def render(self) -> np.ndarray:
        """A grey picture (32, 32, 3), brighter with every step."""
        return np.full((32, 32, 3), min(20 * self._step, 255), dtype=np.uint8)

    def _observation(self) -> np.ndarray:
        return np.array([*self._xy, self._last, 3.0])
