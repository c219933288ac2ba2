"""Reverse diffusion as one pure loop over a few noise levels.

A sampler sees only a noise predictor: guidance, conditioning and randomness are arguments. DDPM (Ho et al. 2020),
DDIM (Song et al. 2021, eq. 12) and DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) share everything but the update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import Denoiser

Solver = Literal["ddim", "ddpm", "dpm++"]
Noise = Callable[[Tensor], Tensor]
"""x -> standard normal noise in the shape of x."""


def check_solver(solver: str) -> Solver:
    """:raises ValueError: naming the solvers there are"""
    if solver not in get_args(Solver):
        raise ValueError(f"sampler is {solver!r}, it must be one of {get_args(Solver)}")
    return solver  # type: ignore[return-value]


def sample(
    denoiser: Denoiser,
    process: DiffusionProcess,
    x_t: Tensor,
    timesteps: Sequence[int],
    *,
    solver: Solver = "ddim",
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
    :param solver: ``"ddim"``, ``"ddpm"`` (ancestral: draws ``noise`` after every step but the last) or ``"dpm++"``
    :param noise: source of the ancestral noise; default: the global generator
    :param pin: re-imposes conditioned entries; applied before every prediction and to the result
    :param clip: clamp each x0 estimate to [-clip, clip]
    :param visit: called with every (x_t, t) that the denoiser is asked about
    :return: x0 (B, *event_shape)
    """
    check_solver(solver)
    noise = torch.randn_like if noise is None else noise
    previous: tuple[Tensor, Tensor] | None = None  # (x0 estimate, log-SNR) of the step before, for dpm++
    for i, level in enumerate(timesteps):
        x_t = pin(x_t)
        t = torch.full((len(x_t),), level, dtype=torch.int64, device=x_t.device)
        if visit is not None:
            visit(x_t, t)
        # 1. Estimate the clean sample: x̂0 = (x_t - σ ε̂) / α
        eps = denoiser(x_t, t)
        x0 = process.x0_from_eps(x_t, t, eps)
        if clip is not None:
            x0 = x0.clamp(-clip, clip)
            eps = process.eps_from_x0(x_t, t, x0)
        if i + 1 == len(timesteps):
            return pin(x0)
        # 2. Step to the next level
        following = int(timesteps[i + 1])
        if solver == "dpm++":
            x_t, previous = _multistep(process, x_t, x0, int(level), following, previous)
        else:
            x_t = _implicit(process, x0, eps, int(level), following, noise if solver == "ddpm" else None)
    raise ValueError("timesteps is empty, at least one noise level is needed")


def _implicit(process: DiffusionProcess, x0: Tensor, eps: Tensor, t: int, s: int, noise: Noise | None) -> Tensor:
    """x_s = α_s x̂0 + √(σ_s² - σ̃²) ε̂ + σ̃ z; with σ̃² the posterior variance (ancestral) or 0 (DDIM)."""
    alpha_s, sigma_s = process.alpha(s), process.sigma(s)
    if noise is None:
        return alpha_s * x0 + sigma_s * eps
    a = process.alpha(t) / alpha_s
    posterior_variance = (sigma_s / process.sigma(t)) ** 2 * (1 - a**2)
    direction_std = sigma_s**2 * a / process.sigma(t)  # √(σ_s² - σ̃²) without the cancellation
    return alpha_s * x0 + direction_std * eps + posterior_variance.sqrt() * noise(x0)


def _multistep(
    process: DiffusionProcess, x_t: Tensor, x0: Tensor, t: int, s: int, previous: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x_s = (σ_s/σ_t) x_t - α_s (e^{-h} - 1) D, D extrapolated from the last two x̂0 (second order)."""
    log_snr_t = torch.log(process.alpha(t) / process.sigma(t))
    h = torch.log(process.alpha(s) / process.sigma(s)) - log_snr_t
    direction = x0
    if previous is not None:
        previous_x0, previous_log_snr = previous
        ratio = (log_snr_t - previous_log_snr) / h
        direction = x0 + (x0 - previous_x0) / (2 * ratio)
    x_s = process.sigma(s) / process.sigma(t) * x_t - process.alpha(s) * torch.expm1(-h) * direction
    return x_s, (x0, log_snr_t)
