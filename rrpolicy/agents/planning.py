"""Acting by planning: observations in, actions out, the plan being executed carried in ``state``.

A `Planner` samples one window per environment in one batched call, executes ``n_action_steps`` of it and plans again.
Everything it remembers is in ``state``, a `Memory`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rrpolicy.agents.memory import Memory
from rrpolicy.agents.options import Planning
from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.device import randn
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array, State
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.plausibility import denoising_errors
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import Noise, sample, solver_of
from rrpolicy.diffusion.score_model import Denoiser
from rrpolicy.envs.controller import Controller

FLAT = "wrap the environment in rrpolicy.common.spaces.FlatSpaces, which flattens its observations"
CHUNK = 2048  # plans sampled at a time where many are wanted, which bounds the memory


class Planner(ABC):
    """Base of everything that acts by sampling windows."""

    observation_space: spaces.Box
    action_space: spaces.Box
    layout: TrajectoryLayout
    process: DiffusionProcess
    controller: Controller | None
    planning: Planning
    device: torch.device
    _acting_generator: torch.Generator

    # ------------------------------------------------------------------ hooks

    @property
    @abstractmethod
    def normalizer(self) -> Normalizer:
        """Environment units to normalised ones."""

    @abstractmethod
    def _denoiser(self) -> Denoiser:
        """The noise predictor that plans are sampled from."""

    def _value(self, plans: Tensor) -> Tensor:
        """
        Values (n,) of candidates (n, H, D), the best of which is kept: here, minus their denoising error.

        Few denoising steps now and then leave a plan between two modes, such as through a wall, which this finds.
        """
        pinned = torch.tensor(self.layout.pinned, device=self.device)
        return -denoising_errors(self._denoiser(), self.process, plans, pinned)

    # ------------------------------------------------------------------ public

    @usual_torch()
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
            for group, previous in ((due & ~warm, None), (warm, plans[warm])):  # one call, two only while some begin
                if group.any():
                    plans[group] = self._plan(known[group], previous, None if seeds is None else seeds[group]).numpy()
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

    @usual_torch()
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
        planned = self.planned_observations(self._plan(memory.known(observations, self.layout), None, seeds).numpy())
        return planned if np.ndim(observation) == 2 else planned[0]

    def with_planning(self, **options: Any) -> Self:
        """
        The same agent, weights shared, with other options of planning.

        :param options: of :class:`PlanningOptions`
        :raises TypeError: for an option that there is not
        :raises ValueError: for one that is out of range
        """
        other = copy.copy(self)
        other.planning = replace(self.planning, **options)
        other._check_planning()
        other._acting_generator = torch.Generator()
        other._acting_generator.set_state(self._acting_generator.get_state())
        return other

    def set_random_seed(self, seed: int | None) -> None:
        """
        Seed the noise of stochastic planning; what is planned deterministically, and training, do not change.

        :param seed: the same seed gives the same actions for the same observations; None changes nothing
        """
        if seed is not None:
            self._acting_generator.manual_seed(whole("seed", seed))

    def planned_observations(self, plans: Array) -> Array:
        """Normalised plans (..., H, D) -> planned observation entries (..., H, n_columns), environment units."""
        return self.layout.observations_of(self.normalizer.packed(self.layout).denormalize(plans))

    # ------------------------------------------------------------------ sampling

    def pinned_at(self, observations: Array) -> Tensor:
        """
        What is known of windows that begin at these observations.

        :param observations: (n, n_observation_rows, obs_dim), environment units, the present one last
        :return: (n, H, D) normalised, zeros where nothing is pinned
        """
        windows = torch.zeros(len(observations), *self.layout.event_shape)
        normalised = self.normalizer.observations.normalize_bounded(observations)[..., list(self.layout.columns)]
        rows = slice(self.layout.n_observation_rows)
        windows[:, rows, self.layout.observation_slice] = torch.as_tensor(normalised, dtype=torch.float32)
        return windows.to(self.device)

    @torch.no_grad()
    def _plan(self, known: Array, previous: Array | None, seeds: Array | None) -> Tensor:
        """One batched call: (n_envs, n_observation_rows, obs_dim) -> normalised plans (n_envs, H, D)."""
        n_envs, n_candidates = len(known), self.planning.n_candidates
        current = self.pinned_at(known).repeat_interleave(n_candidates, dim=0)
        noise = self._noise(seeds)
        x_t, levels = noise(current), self._levels()
        if previous is not None and self.planning.warm_start is not None:
            levels = self.process.timesteps(
                min(self.planning.n_sampling_steps, self.planning.warm_start + 1), self.planning.warm_start
            )
            shifted = torch.as_tensor(self._shift(previous)).to(self.device).repeat_interleave(n_candidates, dim=0)
            t = torch.full((len(shifted),), self.planning.warm_start, dtype=torch.int64, device=self.device)
            x_t = self.process.q_sample(shifted, t, x_t)
        plans = self._denoise(current, x_t, levels, noise)
        if n_candidates == 1:
            return plans.cpu()
        best = self._value(plans).view(n_envs, n_candidates).argmax(dim=1)
        return plans.view(n_envs, n_candidates, *plans.shape[1:])[torch.arange(n_envs, device=self.device), best].cpu()

    @usual_torch()
    @torch.no_grad()
    def sample_at(
        self, windows: Tensor, generator: torch.Generator, visit: Callable[[Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """
        A plan for each window, whatever it holds beside what is pinned.

        :param windows: (n, H, D) normalised
        :param generator: of the noise
        :param visit: called with every x_t (m, H, D) of the sampler and its levels (m,), m windows at a time
        :return: (n, H, D) normalised
        """

        def noise(like: Tensor) -> Tensor:
            return randn(like.shape, generator, like.device)

        parts, levels = windows.to(self.device).split(CHUNK), self._levels()
        return torch.cat([self._denoise(part, noise(part), levels, noise, visit) for part in parts])

    def _levels(self) -> list[int]:
        return self.process.timesteps(self.planning.n_sampling_steps)

    def _denoise(
        self,
        windows: Tensor,
        x_t: Tensor,
        levels: list[int],
        noise: Noise,
        visit: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Plans from ``x_t`` (n, H, D) on, pinned as in ``windows`` (n, H, D)."""
        pinned = torch.tensor(self.layout.pinned, device=self.device)
        return sample(
            self._denoiser(),
            self.process,
            x_t,
            levels,
            solver=self.planning.sampler,
            noise=noise,
            pin=lambda x: torch.where(pinned, windows, x),
            clip=self.planning.clip,
            visit=visit,
        )

    def _noise(self, seeds: Array | None) -> Noise:
        """
        Noise of every environment's own: from the acting generator, or from seeds (n_envs,).

        One noise for all environments would be one error that all episodes share, and their interval too narrow.
        """
        generators = [self._acting_generator]
        if seeds is not None:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]

        def draw(like: Tensor) -> Tensor:
            shape = (len(like) // len(generators), *like.shape[1:])
            return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(like.device)

        return draw

    def _shift(self, plans: Array) -> Array:
        """What is left of executed plans, the last row repeated; what ends between two rows is interpolated."""
        last = self.layout.horizon - 1
        place = np.minimum(np.arange(last + 1) + self.planning.n_action_steps / self.layout.stride, last)
        row = np.minimum(place.astype(int), last - 1)
        part = (place - row).astype(np.float32)[:, None]
        return plans[:, row] * (1 - part) + plans[:, row + 1] * part

    # ------------------------------------------------------------------ acting

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

    def _check_planning(self) -> None:
        """
        Check the options of planning against layout and process.

        :raises ValueError: when a plan is too short for ``n_action_steps`` or an option is out of range
        """
        longest = self.layout.longest_execution
        if not 1 <= self.planning.n_action_steps <= longest:
            raise ValueError(f"n_action_steps is {self.planning.n_action_steps}, it must lie in 1..{longest}")
        if self.planning.clip is not None:
            number("clip", self.planning.clip, above=0)
        if self.layout.plan_actions:
            number("lookahead", self.planning.lookahead, above=0)
        elif not 0 < self.planning.lookahead <= longest / self.layout.stride:
            most = longest // self.layout.stride
            raise ValueError(f"lookahead is {self.planning.lookahead}, it must lie above 0 and up to {most}")
        solver_of(self.planning.sampler)
        whole("n_candidates", self.planning.n_candidates, 1)
        n_levels = self.process.n_diffusion_steps
        if not 1 <= self.planning.n_sampling_steps <= n_levels:
            raise ValueError(f"n_sampling_steps is {self.planning.n_sampling_steps}, it must lie in 1..{n_levels}")
        if self.planning.warm_start is not None and not 0 <= self.planning.warm_start < n_levels:
            raise ValueError(f"warm_start is {self.planning.warm_start}, it must be None or lie in 0..{n_levels - 1}")
