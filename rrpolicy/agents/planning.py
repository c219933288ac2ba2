"""Acting by planning: the plans that are followed are sampled from a noise predictor, by torch.

A `Planner` samples one window per environment in one batched call; how windows become actions is said by its base, the
`PlanFollower`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from rrpolicy.agents.acting import PlanFollower
from rrpolicy.common.arguments import number, whole
from rrpolicy.common.device import CPU
from rrpolicy.common.noise import generator, moved, randn, send, twin
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.plausibility import denoising_errors
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import SOLVERS, Noise, ddpm, sample, solver_of
from rrpolicy.diffusion.score_model import Denoiser, pinned_on
from rrpolicy.export.compiled import plan_graph
from rrpolicy.export.session import PlanGraph

CHUNK = 2048  # plans sampled at a time where many are wanted, which bounds the memory


class Planner(PlanFollower):
    """Base of everything that acts by sampling windows."""

    process: DiffusionProcess
    device: torch.device
    fast_noise: bool = False
    _acting_generator: torch.Generator
    _graph: PlanGraph | None = None  # computes plans where the planner is compiled

    # ------------------------------------------------------------------ hooks

    @abstractmethod
    def _denoiser(self) -> Denoiser:
        """The noise predictor that plans are sampled from."""

    def _value(self, plans: Tensor) -> Tensor:
        """
        Values (n,) of candidates (n, H, D), the best of which is kept: here, minus their denoising error.

        Few denoising steps now and then leave a plan between two modes, such as through a wall, which this finds.
        """
        pinned = pinned_on(self.layout, self.device)
        return -denoising_errors(self._denoiser(), self.process, plans, pinned)

    # ------------------------------------------------------------------ public

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
        other._graph = None
        other._acting_generator = twin(self._acting_generator)
        return other

    def compile(self) -> Self:
        """
        The same agent, whose plans are computed by ONNX Runtime: the same actions up to rounding, several times faster.

        Its graph holds the weights and options of now. It is kept in the folder ``RRPOLICY_CACHE`` (default:
        ``~/.cache/rrpolicy``) for planners of this library's agents and rewards, and made anew for others.

        :return: a copy; what is trained or changed later, the copy does not know
        :raises ValueError: without the extra ``fast``, on another device than the CPU, or for an own network, reward
            or solver that cannot be exported, naming it
        """
        other = self.with_planning()
        other._graph = plan_graph(other, self._digest())
        return other

    def _digest(self) -> str | None:
        """Of everything that decides about plans; None where that cannot be told, as of functions."""
        return None

    def set_random_seed(self, seed: int | None) -> None:
        """
        Seed the noise of stochastic planning; what is planned deterministically, and training, do not change.

        :param seed: the same seed gives the same actions for the same observations; None changes nothing
        """
        if seed is not None:
            self._acting_generator.manual_seed(whole("seed", seed))

    # ------------------------------------------------------------------ sampling

    def pinned_at(self, observations: Array) -> Tensor:
        """
        What is known of windows that begin at these observations.

        :param observations: (n, n_observation_rows, obs_dim), environment units, the present one last
        :return: (n, H, D) normalised, zeros where nothing is pinned
        """
        windows = torch.zeros(len(observations), *self.layout.event_shape, device=self.device)
        normalised = self.normalizer.observations.normalize_bounded(observations)[..., list(self.layout.columns)]
        rows = slice(self.layout.n_observation_rows)
        known = torch.as_tensor(normalised, dtype=torch.float32)
        windows[:, rows, self.layout.observation_slice] = send(known, self.device)
        return windows

    @usual_torch()
    @torch.no_grad()
    def _plan(self, known: Array, previous: Array | None, seeds: Array | None) -> Array:
        noise = self._noise(seeds)
        if self._graph is not None:
            like = torch.empty(len(known) * self.planning.n_candidates, *self.layout.event_shape)
            drawn = torch.stack([noise(like) for _ in range(self.n_draws)]).numpy()
            return self._graph(known, previous, drawn.reshape(len(drawn), len(known), -1, *self.layout.event_shape))
        left = None if previous is None else send(torch.as_tensor(previous), self.device)
        return self.sampled(self.pinned_at(known), left, noise).cpu().numpy()

    def sampled(
        self,
        pinned: Tensor,
        previous: Tensor | None,
        noise: Noise,
        denoiser: Denoiser | None = None,
        value: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """
        The best of ``n_candidates`` plans for each window, as a function of tensors alone.

        :param pinned: (n, H, D) what is known, as :meth:`pinned_at` gives it
        :param previous: (n, H, D) plans to be refined from the noise level ``warm_start``; None to plan from noise
        :param noise: source of standard normal noise
        :param denoiser: in place of the planner's own noise predictor, such as one that is being exported
        :param value: in place of the planner's own values of candidates
        :return: (n, H, D) normalised
        """
        n_candidates = self.planning.n_candidates
        current = pinned.repeat_interleave(n_candidates, dim=0)
        x_t, levels = noise(current), self._levels(warm=previous is not None)
        if previous is not None and self.planning.warm_start is not None:
            left = previous.repeat_interleave(n_candidates, dim=0)
            t = torch.full((left.shape[0],), self.planning.warm_start, dtype=torch.int64, device=self.device)
            x_t = self.process.q_sample(left, t, x_t)
        plans = self._denoise(current, x_t, levels, noise, denoiser=denoiser)
        if n_candidates == 1:
            return plans
        best = (value or self._value)(plans).view(-1, n_candidates).argmax(dim=1)
        first = torch.arange(pinned.shape[0], device=self.device) * n_candidates
        return plans.index_select(0, first + best)

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

    @property
    def n_draws(self) -> int:
        """How often a plan draws noise: once, and with ancestral and own solvers up to once a step."""
        sampler = self.planning.sampler
        steady = isinstance(sampler, str) and SOLVERS[sampler] is not ddpm
        return 1 if steady else self.planning.n_sampling_steps

    def _levels(self, warm: bool = False) -> list[int]:
        """Noise levels of a plan, from noise or from the plan before."""
        n_steps, start = self.planning.n_sampling_steps, self.planning.warm_start
        if not warm or start is None:
            return self.process.timesteps(n_steps)
        return self.process.timesteps(min(n_steps, start + 1), start)

    def _denoise(
        self,
        windows: Tensor,
        x_t: Tensor,
        levels: list[int],
        noise: Noise,
        visit: Callable[[Tensor, Tensor], None] | None = None,
        denoiser: Denoiser | None = None,
    ) -> Tensor:
        """Plans from ``x_t`` (n, H, D) on, pinned as in ``windows`` (n, H, D)."""
        pinned = pinned_on(self.layout, self.device)
        return sample(
            denoiser or self._denoiser(),
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
        place = self.device if self.fast_noise else CPU
        self._acting_generator = moved(self._acting_generator, place)
        sources = [self._acting_generator] if seeds is None else [generator(seed, place) for seed in seeds.tolist()]

        def draw(like: Tensor) -> Tensor:
            shape = (len(like) // len(sources), *like.shape[1:])
            return send(torch.cat([randn(shape, one, place) for one in sources]), like.device)

        return draw

    # ------------------------------------------------------------------ checks

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
