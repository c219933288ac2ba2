"""Reverse diffusion as one pure loop over a few noise levels.

A sampler takes a noise predictor: guidance, conditioning and randomness are arguments. DDPM (Ho et al. 2020),
DDIM (Song et al. 2021, eq. 12) and DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) are each a `Solver`, a function of a
`Step`; any other function of this kind can take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from rrpolicy.common.noise import randn
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import Denoiser, ScoreModel, clip_of, pinned_mask, sampled_pinned

N_STEPS = 20  # of :func:`sample_model` by default
SolverName = Literal["ddim", "ddpm", "dpm++"]
Noise = Callable[[Tensor], Tensor]
"""x -> standard normal noise in the shape of x."""


@dataclass(frozen=True)
class Step:
    """
    The arguments of a solver: one step from a noise level to the next.

    :param process: gives α and σ of a level, ``process.alpha(t)`` and ``process.sigma(t)``
    :param x_t: events (B, *event_shape) at level ``t``
    :param x0: the clean events estimated there, clipped where the sampler clips
    :param eps: the noise that goes with them, x_t = α x0 + σ eps
    :param t: the level
    :param s: the next level, below ``t``
    :param noise: source of standard normal noise, for solvers that draw some
    :param previous: level and ``x0`` of the step before; None at the first
    """

    process: DiffusionProcess
    x_t: Tensor
    x0: Tensor
    eps: Tensor
    t: int
    s: int
    noise: Noise
    previous: tuple[int, Tensor] | None


class Solver(Protocol):
    """How events at level ``step.t`` become events at level ``step.s``."""

    def __call__(self, step: Step, /) -> Tensor:
        """x_s (B, *event_shape)."""
        ...


def ddim(step: Step) -> Tensor:
    """x_s = α_s x̂0 + σ_s ε̂: deterministic (Song et al. 2021, eq. 12 with σ = 0)."""
    return step.process.alpha(step.s) * step.x0 + step.process.sigma(step.s) * step.eps


def ddpm(step: Step) -> Tensor:
    """x_s = α_s x̂0 + √(σ_s² - σ̃²) ε̂ + σ̃ z with the posterior variance σ̃²: ancestral (Ho et al. 2020)."""
    process, t = step.process, step.t
    alpha_s, sigma_s = process.alpha(step.s), process.sigma(step.s)
    a = process.alpha(t) / alpha_s
    posterior_variance = (sigma_s / process.sigma(t)) ** 2 * (1 - a**2)
    direction_std = sigma_s**2 * a / process.sigma(t)  # √(σ_s² - σ̃²) without the cancellation
    return alpha_s * step.x0 + direction_std * step.eps + posterior_variance.sqrt() * step.noise(step.x0)


def dpm_solver(step: Step) -> Tensor:
    """x_s = (σ_s/σ_t) x_t - α_s (e^{-h} - 1) D, D extrapolated from the last two x̂0: second order, deterministic."""
    process, t, s = step.process, step.t, step.s
    log_snr_t = _log_snr(process, t)
    h = _log_snr(process, s) - log_snr_t
    direction = step.x0
    if step.previous is not None:
        level, previous_x0 = step.previous
        ratio = (log_snr_t - _log_snr(process, level)) / h
        direction = step.x0 + (step.x0 - previous_x0) / (2 * ratio)
    return process.sigma(s) / process.sigma(t) * step.x_t - process.alpha(s) * torch.expm1(-h) * direction


def _log_snr(process: DiffusionProcess, t: int) -> Tensor:
    return torch.log(process.alpha(t) / process.sigma(t))


SOLVERS: Mapping[str, Solver] = {"ddim": ddim, "ddpm": ddpm, "dpm++": dpm_solver}


def solver_of(sampler: SolverName | Solver) -> Solver:
    """
    The solver that a name stands for; a function is one itself.

    :raises ValueError: for another name, naming those that there are
    """
    solver = SOLVERS.get(sampler) if isinstance(sampler, str) else sampler
    if solver is None or not callable(solver):
        names = get_args(SolverName)
        raise ValueError(f"sampler is {sampler!r:.60}, it must be one of {names} or a function of a Step")
    return solver


def sample(
    denoiser: Denoiser,
    process: DiffusionProcess,
    x_t: Tensor,
    timesteps: Sequence[int],
    *,
    solver: SolverName | Solver = "ddim",
    noise: Noise | None = None,
    pin: Callable[[Tensor], Tensor] = lambda x: x,
    clip: float | None = None,
    visit: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """
    Run the reverse process from ``x_t`` at ``timesteps[0]`` down to clean samples.

    :param denoiser: (x_t, t) -> predicted noise
    :param x_t: start (B, *event_shape): noise, or a re-noised earlier sample (warm start)
    :param timesteps: decreasing noise levels to visit; after the last one comes the clean sample
    :param solver: ``"ddim"``, ``"ddpm"`` (ancestral: draws ``noise`` after every step but the last), ``"dpm++"`` or a
        function of a `Step`
    :param noise: source of the ancestral noise; default: the global generator
    :param pin: re-imposes conditioned entries; applied before every prediction and to the result
    :param clip: clamp each x0 estimate to [-clip, clip]
    :param visit: called with every (x_t, t) at which noise is predicted
    :return: x0 (B, *event_shape)
    :raises ValueError: for an unknown solver, no levels, or a solver that returns events of another shape
    """
    advance = solver_of(solver)
    noise = torch.randn_like if noise is None else noise
    previous: tuple[int, Tensor] | None = None
    for i, level in enumerate(timesteps):
        x_t = pin(x_t)
        t = torch.full((x_t.shape[0],), level, dtype=torch.int64, device=x_t.device)
        if visit is not None:
            visit(x_t, t)
        # 1. Estimate the clean sample: x̂0 = (x_t - σ ε̂) / α
        eps = denoiser(x_t, t)
        of_all = torch.full((1,), level, dtype=torch.int64, device=x_t.device)
        x0 = process.x0_from_eps(x_t, of_all, eps)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
            eps = process.eps_from_x0(x_t, of_all, x0)
        if i + 1 == len(timesteps):
            return pin(x0)
        # 2. Step to the next level
        step = Step(process, x_t, x0, eps, int(level), int(timesteps[i + 1]), noise, previous)
        x_t, previous = advance(step), (int(level), x0)
        if not isinstance(x_t, Tensor) or x_t.shape != x0.shape:
            found = tuple(x_t.shape) if isinstance(x_t, Tensor) else type(x_t).__name__
            raise ValueError(f"the solver returned {found}, wanted events of shape {tuple(x0.shape)}")
    raise ValueError("timesteps is empty, at least one noise level is needed")


def sample_model(
    model: ScoreModel,
    n: int | None = None,
    *,
    generator: torch.Generator,
    clean: Tensor | None = None,
    n_sampling_steps: int | None = None,
    solver: SolverName | Solver = "ddim",
    denoiser: Denoiser | None = None,
    chunk: int | None = None,
    visit: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """
    Clean events of a model, from noise: pinned, clipped and on the noise levels as the model has them.

    :param model: gives levels, event shape, pinned entries and the bound of clean entries
    :param n: how many; None where ``clean`` is given
    :param generator: of all noise
    :param clean: events (n, *event_shape) whose pinned entries are kept; None: the model's ``sample_pinned``
    :param n_sampling_steps: denoising steps; None: `N_STEPS`, or all levels where there are fewer
    :param solver: as in :func:`sample`
    :param denoiser: in place of the model's own, such as a guided one
    :param chunk: events at a time, which bounds the memory; None for all at once
    :param visit: called with every (x_t, t) at which noise is predicted
    :return: (n, *event_shape)
    :raises ValueError: for a model with pinned entries that cannot sample them, where ``clean`` is not given
    """
    pinned = pinned_mask(model)
    with usual_torch(), torch.no_grad():
        if clean is None:
            if n is None:
                raise ValueError("n is None, wanted a number of events where no clean ones are given")
            blank = torch.zeros(n, *model.event_shape, device=pinned.device)
            clean = sampled_pinned(model, n, generator) if pinned.any() else blank
        steps = min(N_STEPS, model.process.n_diffusion_steps) if n_sampling_steps is None else n_sampling_steps
        levels, parts = model.process.timesteps(steps), []
        for part in clean.split(chunk or max(len(clean), 1)):
            sampled = sample(
                model.eps if denoiser is None else denoiser,
                model.process,
                randn(part.shape, generator, part.device),
                levels,
                solver=solver,
                noise=lambda x: randn(x.shape, generator, x.device),
                pin=partial(_pin, pinned, part),
                clip=clip_of(model),
                visit=visit,
            )
            parts.append(sampled)
    return torch.cat(parts)


def _pin(pinned: Tensor, clean: Tensor, x: Tensor) -> Tensor:
    return torch.where(pinned, clean, x)
