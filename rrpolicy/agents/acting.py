"""Acting by plans, without torch: observations in, actions out, the plan being executed carried in ``state``.

A `PlanFollower` gets one window per environment in one batched call, executes ``n_action_steps`` of it and plans again.
Everything it remembers is in ``state``, a `Memory`. Where plans come from is left to subclasses: a `Planner` samples
them by torch, an `OnnxPolicy` by ONNX Runtime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from gymnasium import spaces

from rrpolicy.agents.memory import Memory
from rrpolicy.agents.options import Planning
from rrpolicy.common.arguments import flag
from rrpolicy.common.typing import Array, State
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.envs.controller import Controller

FLAT = "wrap the environment in rrpolicy.common.spaces.FlatSpaces, which flattens its observations"


class PlanFollower(ABC):
    """Base of everything that acts by planned windows."""

    observation_space: spaces.Box
    action_space: spaces.Box
    layout: TrajectoryLayout
    controller: Controller | None
    planning: Planning

    # ------------------------------------------------------------------ hooks

    @property
    @abstractmethod
    def normalizer(self) -> Normalizer:
        """Environment units to normalised ones."""

    @abstractmethod
    def _plan(self, known: Array, previous: Array | None, seeds: Array | None) -> Array:
        """
        Windows from the present on, one for each environment.

        :param known: (n_envs, n_observation_rows, obs_dim), environment units
        :param previous: (n_envs, H, D) normalised, what is left of the plans before, for a warm start; None for none
        :param seeds: (n_envs,) of the noise; None for noise of the planner's own generator
        :return: (n_envs, H, D) normalised
        """

    # ------------------------------------------------------------------ public

    def predict(
        self,
        observation: Array,
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State]:
        """
        SB3's ``PolicyPredictor``.

        :param observation: (obs_dim,) or (n_envs, obs_dim), environment units
        :param state: what the previous call returned; None at the very first step
        :param episode_start: (n_envs,) bool, True where an episode has just begun
        :param deterministic: plan from noise that the first observation of the episode and the number of the plan
            decide (both are in ``state``), so that the action is a function of observation and state
        :return: actions in the shape of the batch, clipped to the action space; state
        :raises ValueError: for a wrong shape, NaN or infinite observations or a state of another batch
        """
        observations, deterministic = self._check_observation(observation), flag("deterministic", deterministic)
        n_envs = len(observations)
        memory = Memory.of(state, n_envs, self.layout)
        plans, age = memory.plans, memory.age
        begins = np.broadcast_to(False if episode_start is None else episode_start, n_envs).astype(bool)
        fresh = begins | (age < 0)
        due = fresh | (age >= self.planning.n_action_steps)
        if fresh.any():
            memory = memory.begun(fresh, observations, self.normalizer)
        if due.any():
            plans, age, known = plans.copy(), age.copy(), memory.known(observations, self.layout)
            seeds = np.array(memory.seeds()) if deterministic else None
            warm = due & ~fresh & (self.planning.warm_start is not None)
            left = self._shift(plans[warm]) if warm.any() else None
            for group, previous in ((due & ~warm, None), (warm, left)):  # one call, two only while some begin
                if group.any():
                    plans[group] = self._plan(known[group], previous, None if seeds is None else seeds[group])
            age[due] = 0
            memory = memory._replace(noise=memory.noise + np.stack([np.zeros_like(age), due], axis=1))
        actions = self._act(observations, plans, age)
        if not np.isfinite(actions).all():
            raise ValueError(
                "the planned actions hold NaN or infinite numbers: the weights or the normaliser are "
                "beyond what can be computed with"
            )
        actions = np.clip(actions, self.action_space.low, self.action_space.high).astype(self.action_space.dtype)
        return (actions if np.ndim(observation) == 2 else actions[0]), Memory(
            plans, age + 1, memory.noise, memory.moved_on(observations)
        )

    def __call__(
        self, observations: Array, states: State | None = None, episode_starts: Array | None = None
    ) -> tuple[Array, State]:
        """``imitation``'s policy callable: stochastic :meth:`predict`."""
        return self.predict(observations, states, episode_starts, deterministic=False)

    def plan(self, observation: Array, deterministic: bool = True) -> Array:
        """
        The planned observation entries from here, for drawing, as at the beginning of an episode.

        :param observation: (obs_dim,) or (n_envs, obs_dim)
        :return: (H, n_columns) or (n_envs, H, n_columns) in environment units, columns as in ``layout.columns``
        """
        observations = self._check_observation(observation)
        begun = np.ones(len(observations), dtype=bool)
        memory = Memory.of(None, len(observations), self.layout).begun(begun, observations, self.normalizer)
        seeds = np.array(memory.seeds()) if deterministic else None
        planned = self.planned_observations(self._plan(memory.known(observations, self.layout), None, seeds))
        return planned if np.ndim(observation) == 2 else planned[0]

    def planned_observations(self, plans: Array) -> Array:
        """Normalised plans (..., H, D) -> planned observation entries (..., H, n_columns), environment units."""
        return self.layout.observations_of(self.normalizer.packed(self.layout).denormalize(plans))

    # ------------------------------------------------------------------ acting

    def _shift(self, plans: Array) -> Array:
        """What is left of executed plans, the last row repeated; what ends between two rows is interpolated."""
        last = self.layout.horizon - 1
        place = np.minimum(np.arange(last + 1) + self.planning.n_action_steps / self.layout.stride, last)
        row = np.minimum(place.astype(int), last - 1)
        part = (place - row).astype(np.float32)[:, None]
        return plans[:, row] * (1 - part) + plans[:, row + 1] * part

    def _act(self, observations: Array, plans: Array, age: Array) -> Array:
        """Actions (n_envs, act_dim) for environments that are ``age`` steps into their plans."""
        envs, last, stride = np.arange(len(plans)), self.layout.horizon - 1, self.layout.stride
        present = self.layout.present
        unpack = self.normalizer.packed(self.layout).denormalize
        if self.controller is None and stride == 1:
            return self.layout.actions_of(unpack(plans[envs, np.minimum(present + age, last)]))
        # between rows that are several steps apart lies the straight line, after the last one its end
        lookahead = 0.0 if self.controller is None else self.planning.lookahead
        ahead = np.minimum(present + age / stride + lookahead, last)
        row = np.minimum(ahead.astype(int), last - 1)
        part = (ahead - row).astype(np.float32)[:, None]
        target = unpack(plans[envs, row] * (1 - part) + plans[envs, row + 1] * part)
        if self.controller is None:
            return self.layout.actions_of(target)
        return self.controller.action(observations, self.layout.observations_of(target))

    # ------------------------------------------------------------------ checks

    def _check_observation(self, observation: Array) -> Array:
        width = self.layout.observation_dim
        if isinstance(observation, Mapping | tuple):
            raise ValueError(
                f"observation is a {type(observation).__name__}, wanted a vector ({width},) or "
                f"(n_envs, {width}): {FLAT}"
            )
        values = np.asarray(observation, dtype=np.float32)
        if values.ndim not in (1, 2) or values.shape[-1] != width:
            wanted = f"wanted ({width},) or (n_envs, {width})" + (f": {FLAT}" if values.ndim > 2 else "")
            raise ValueError(f"observation has shape {values.shape}, {wanted}")
        if not np.isfinite(values).all():
            wanted = f"finite values of shape ({width},) or (n_envs, {width})"
            raise ValueError(f"observation of shape {values.shape} holds NaN or inf, wanted {wanted}")
        return values.reshape(-1, width)
