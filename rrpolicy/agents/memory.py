"""State of a planner between two calls of ``predict``: arrays with a leading ``n_envs`` axis (SB3's convention)."""

from __future__ import annotations

import zlib
from typing import NamedTuple, Self

import numpy as np

from rrpolicy.common.typing import Array, State
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer

CELLS = 4096  # of a normalised unit: starts of episodes that lie in one cell share the key of their noise


class Memory(NamedTuple):
    """
    The plan that is being executed, and what the next one is made of.

    :param plans: (n_envs, H, D) normalised
    :param age: (n_envs,) steps of the plan that have been executed; -1 before the first one
    :param noise: (n_envs, 2) the key of an episode's noise, set where it begins, and how many plans it has had
    :param history: (n_envs, past, obs_dim) observations of the steps before this one, oldest first
    """

    plans: Array
    age: Array
    noise: Array
    history: Array

    @classmethod
    def of(cls, state: State | None, n_envs: int, layout: TrajectoryLayout) -> Self:
        """
        What ``predict`` was given.

        :param state: what it returned before; None at the very first step
        :raises ValueError: for anything that it never returns, naming what
        """
        shapes = {
            "plans": (n_envs, *layout.event_shape),
            "ages": (n_envs,),
            "noise": (n_envs, 2),
            "history": (n_envs, layout.past, layout.observation_dim),
        }
        if state is None:
            plans, age, noise, history = shapes.values()
            return cls(
                np.zeros(plans, np.float32), np.full(age, -1), np.zeros(noise, np.int64), np.zeros(history, np.float32)
            )
        fits = isinstance(state, tuple | list) and len(state) == len(shapes)
        if not fits or not all(isinstance(array, np.ndarray) for array in state):
            raise ValueError(f"state is a {type(state).__name__}, wanted the arrays that predict returned, or None")
        for (name, shape), array in zip(shapes.items(), state, strict=True):
            if array.shape != shape:
                raise ValueError(f"state holds {name} of shape {array.shape}, wanted {shape} for {n_envs} environments")
            if array.dtype.kind != ("f" if name in ("plans", "history") else "i") or not np.isfinite(array).all():
                raise ValueError(
                    f"state holds {name} ({array.dtype}) that predict never returns, wanted finite plans "
                    "and history, whole ages and noise"
                )
        if (state[1] < -1).any() or (state[2] < 0).any():
            raise ValueError("state holds ages below -1 or noise below 0, which predict never returns")
        return cls(*state)

    def begun(self, fresh: Array, observations: Array, normalizer: Normalizer) -> Self:
        """
        The same where ``fresh`` (n_envs,) is False; elsewhere an episode begins with this observation.

        The key of its noise is made of the observation, so that an episode is the same whichever environments are
        stepped with it; a cell of ``1 / CELLS`` around the observation has the same key, so that the last bits of an
        observation do not decide.
        """
        noise, history = self.noise.copy(), self.history.copy()
        cells = np.rint(normalizer.observations.normalize_bounded(observations[fresh]) * CELLS).astype(np.int64)
        noise[fresh] = [(zlib.crc32(cell.tobytes()), 0) for cell in cells]
        history[fresh] = observations[fresh, None]
        return self._replace(noise=noise, history=history)

    def known(self, observations: Array, layout: TrajectoryLayout) -> Array:
        """Observations (n_envs, n_observation_rows, obs_dim) of the rows up to the present one."""
        return np.concatenate([self.history, observations[:, None]], axis=1)[:, :: layout.stride]

    def moved_on(self, observations: Array) -> Array:
        """The history one step later."""
        return np.concatenate([self.history, observations[:, None]], axis=1)[:, 1:]

    def seeds(self) -> list[int]:
        """Seeds of the noise of the next plans, one for each environment."""
        return [zlib.crc32(row.tobytes()) for row in self.noise]
