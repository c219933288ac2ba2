"""Guidance as composition: a guided denoiser is a denoiser, which any sampler takes.

ε ← ε_base - scale · σ_t · ∇ρ (classifier guidance, Dhariwal & Nichol 2021, algorithm 2): at scale 1 an exact ρ turns
the base into the expert, with any sampler and any number of steps. For rewards that know nothing of noised events there
is the gradient at the clean estimate (Q-Guided Flow, Peng et al. 2026), an approximation for which no scale is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rrpolicy.common.arguments import number
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import Denoiser
from rrpolicy.rewards.protocol import RewardFunction, reward_gradient

GradientAt = Literal["noised", "clean"]
GRADIENTS_AT: tuple[GradientAt, ...] = ("noised", "clean")


def guided(
    denoiser: Denoiser,
    reward: RewardFunction,
    process: DiffusionProcess,
    scale: float | Tensor,
    max_shift: float | None = None,
    bound_at: Callable[[Tensor], None] | None = None,
    pinned: Tensor | None = None,
    gradient_at: GradientAt = "noised",
) -> Denoiser:
    """
    Steer a denoiser with a reward.

    :param denoiser: the base's noise predictor
    :param reward: ρ, or any function or module of (x_t, t)
    :param process: noise levels of the base
    :param scale: strength; 0 is the base itself. A tensor (B,) is one for each event, and is not checked
    :param max_shift: largest change of an entry of the clean estimate in one step, normalised units; None for no bound
    :param bound_at: called after each step with the places where the bound was reached, bool (B, *event_shape); only
        with ``max_shift``
    :param pinned: bool (*event_shape), entries that are not steered; None for those of the reward
    :param gradient_at: ``"noised"``: ∇ρ(x_t, t); ``"clean"``: ∇ρ(x̂0, 0) at the base's clean estimate, which moves by
        scale · σ/(α+σ) · ∇ρ, as in Q-Guided Flow at the same signal-to-noise ratio
    :return: noise predictor of the steered model
    :raises ValueError: for a scale or a bound that is NaN or infinite, a bound that is not above 0, or another place of
        the gradient
    """
    check_gradient_at(gradient_at)
    if not isinstance(scale, Tensor) and not math.isfinite(number("scale", scale)):
        raise ValueError(f"scale is {scale}, it must be finite")
    if max_shift is not None:
        number("max_shift", max_shift, above=0)
    if not isinstance(scale, Tensor) and scale == 0:
        return denoiser

    def steered(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.levels(x_t, t)
        eps = denoiser(x_t, t)
        if gradient_at == "clean":
            gradient = reward_gradient(reward, process.x0_from_eps(x_t, t, eps), torch.zeros_like(t))
            factor = alpha / (alpha + sigma)
        else:
            gradient, factor = reward_gradient(reward, x_t, t), sigma
        strength = scale.view(-1, *(1,) * (x_t.ndim - 1)) if isinstance(scale, Tensor) else scale
        change = strength * factor * (gradient if pinned is None else torch.where(pinned, 0.0, gradient))
        if max_shift is not None:  # x̂0 moves by change · σ/α
            bound = max_shift * alpha / sigma
            if bound_at is not None:
                bound_at(change.abs() > bound)
            change = torch.minimum(torch.maximum(change, -bound), bound)
        return eps - change

    return steered


def check_gradient_at(gradient_at: str) -> GradientAt:
    """
    The place of the gradient.

    :raises ValueError: when it is neither ``"noised"`` nor ``"clean"``
    """
    if gradient_at not in GRADIENTS_AT:
        raise ValueError(f"gradient_at is {gradient_at!r}, it must be 'noised' or 'clean'")
    return gradient_at
