"""What a relative reward is fitted to: score differences and values, computed from the two models alone.

Gradient targets are Δε = ε_base - ε_expert = σ_t (s_expert - s_base). Value targets estimate ρ itself by the
difference of the two models' likelihood bounds (Song, Durkan, Murray, Ermon 2021), which fixes the constant that
gradients leave free for every level and every separated mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rrpolicy.common.callbacks import note
from rrpolicy.common.device import CPU, precise
from rrpolicy.common.noise import rand, randint, randn, send
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel, pinned_mask

CHUNK = 4096  # events whose randomness is drawn at once
PIECE = 512  # events per model call on a CPU, whose caches hold what lies between the layers
FEW_LEVELS, CLEAN_SHARE = 50, 0.05  # of more levels than that, this share of events is drawn at the cleanest fiftieth
MAX_RATIO = 2.6  # of the σ of two levels that count as neighbours by their noise
LEAST_SIGNAL = 0.1  # is added to α in the chance of a level: networks err where nothing of the event is left, too
SMALL_STEP = 0.3  # of σ_t, by which values look around x_t at its own level


@dataclass(frozen=True)
class Targets:
    """A buffer of training pairs."""

    x0: Tensor | None  # (N, *event_shape) normalised; None where only a window head is to learn
    x_t: Tensor  # (N, *event_shape) normalised, clean at pinned entries
    t: Tensor  # (N,) int64
    eps_difference: Tensor  # (N, *event_shape), zero at pinned entries
    value: Tensor | None  # (N,) nats, noisy

    def __len__(self) -> int:
        return len(self.t)

    def rows(self, index: Tensor) -> Targets:
        """Some of them, in the order of ``index`` (n,)."""
        x0, value = self.x0, self.value
        return Targets(
            None if x0 is None else x0[index],
            self.x_t[index],
            self.t[index],
            self.eps_difference[index],
            None if value is None else value[index],
        )

    def to(self, device: torch.device) -> Targets:
        """The same pairs on a device."""
        x0, value = self.x0, self.value
        return Targets(
            None if x0 is None else send(x0, device),
            send(self.x_t, device),
            send(self.t, device),
            send(self.eps_difference, device),
            None if value is None else send(value, device),
        )

    @classmethod
    def joined(cls, parts: Sequence[Targets]) -> Targets:
        """All of them; clean events and values only where every part has them."""
        x0 = [part.x0 for part in parts if part.x0 is not None]
        value = [part.value for part in parts if part.value is not None]
        return cls(
            torch.cat(x0) if len(x0) == len(parts) else None,
            torch.cat([part.x_t for part in parts]),
            torch.cat([part.t for part in parts]),
            torch.cat([part.eps_difference for part in parts]),
            torch.cat(value) if len(value) == len(parts) else None,
        )


def eps_difference(base: ScoreModel, expert: ScoreModel, x_t: Tensor, t: Tensor) -> Tensor:
    """ε_base - ε_expert (B, *event_shape), zero at pinned entries."""
    with torch.no_grad():
        difference = _eps(base, x_t, t) - _eps(expert, x_t, t)
    return torch.where(pinned_mask(base), 0.0, difference)


def _eps(model: ScoreModel, x_t: Tensor, t: Tensor) -> Tensor:
    """A model's predictions (B, *event_shape)."""
    if x_t.device != CPU or len(x_t) <= PIECE:
        return model.eps(x_t, t)
    return torch.cat([model.eps(*piece) for piece in zip(x_t.split(PIECE), t.split(PIECE), strict=True)])


def noised(base: ScoreModel, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """x_t (B, *event_shape) of clean events at levels ``t``, pinned entries left clean."""
    noise = randn(x0.shape, generator, x0.device)
    return torch.where(pinned_mask(base), x0, base.process.q_sample(x0, t, noise))


def value_targets(
    base: ScoreModel, expert: ScoreModel, x_t: Tensor, t: Tensor, generator: torch.Generator, n_draws: int = 2
) -> Tensor:
    """
    Estimates of ρ_t(x_t) = log p_expert,t / p_base,t, the difference of two likelihood bounds (Song et al. 2021).

        ρ_t(x_t) = ½ ∫_{s≥t} F(s) d(-ln ᾱ_s),   F(s) = E[ δ·(s_base + s_expert + 2 z/√v) ],   δ = s_base - s_expert,

    with x_s = a x_t + √v z, a = α_s/α_t, v = σ_s² - a² σ_t². The integral is a sum over levels (:func:`quadrature`),
    at s = t over points a little off x_t. It is estimated with ``n_draws`` stratified levels, each with the antithetic
    pair ±z, which cancels the leading noise. Chances of a level go with its weight and with 1/σ^1.5, since two networks
    differ most where little noise is left, and fall where little of the event is left.

    :param x_t: (B, *event_shape), clean at pinned entries
    :param t: levels (B,)
    :param n_draws: levels s per event
    :return: (B,) in nats
    """
    process, pinned = base.process, pinned_mask(base)
    levels = torch.arange(process.n_diffusion_steps, device=x_t.device)
    likely = (process.alpha(levels) + LEAST_SIGNAL) / process.sigma(levels) ** 1.5
    first, later = quadrature(process, x_t.device)
    likely = likely.to(first.dtype)
    below = (later * likely).cumsum(dim=0)
    at_t = (first * likely)[t]
    mass = at_t + below[-1] - below[t]  # of level t and of all later ones
    total = torch.zeros(len(x_t), device=x_t.device)
    for draw in range(n_draws):
        stratum = (draw + rand(len(t), generator, t.device)) / n_draws
        beyond = stratum * mass - at_t
        same = beyond < 0
        s = torch.searchsorted(below, below[t] + beyond, right=True).clamp(max=len(levels) - 1)
        s = torch.where(same, t, s)
        alpha_t, sigma_t = process.levels(x_t, t)
        alpha_s, sigma_s = process.levels(x_t, s)
        a = alpha_s / alpha_t
        std = (sigma_s**2 - (a * sigma_t) ** 2).clamp(min=1e-12).sqrt()
        std = torch.where(same.view(std.shape), SMALL_STEP * sigma_t, std)
        z = randn(x_t.shape, generator, x_t.device)
        weight = (mass / likely[s]).float() / n_draws
        for sign in (1.0, -1.0):
            x_s = torch.where(pinned, x_t, a * x_t + sign * std * z)
            with torch.no_grad():
                base_score = process.score_from_eps(s, _eps(base, x_s, s))
                expert_score = process.score_from_eps(s, _eps(expert, x_s, s))
            integrand = (base_score - expert_score) * (base_score + expert_score + 2 * sign * z / std)
            total += 0.25 * weight * torch.where(pinned, 0.0, integrand).flatten(1).sum(dim=1)
    return total


def quadrature(process: DiffusionProcess, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """
    Weights of levels in an integral ∫ F(s) d(-ln ᾱ_s) from a level t to pure noise, float64.

    They are exact for integrands that are constant, as near clean events, or proportional to ᾱ, as near pure noise, so
    few levels serve as well as many.

    :param device: of the weights

    :return: the weight (T,) of the level t at which the integral begins, and that of every level after it
    """
    levels = torch.arange(process.n_diffusion_steps, device=device)
    alphas_cumprod = process.alpha(levels).to(precise(device)) ** 2
    ratio = alphas_cumprod[:-1] / alphas_cumprod[1:]
    left = 1 - ratio.log() / (ratio - 1)  # of the ends of each interval between levels
    right = ratio.log() - left
    tail = torch.ones_like(left[:1])  # beyond the last level
    first = torch.cat([left, tail])
    return first, first + torch.cat([torch.zeros_like(tail), right])


def make_targets(
    base: ScoreModel, expert: ScoreModel, x0: Tensor, generator: torch.Generator, n_value_draws: int
) -> Targets:
    """
    Noise clean events to random levels and evaluate both models there.

    :param x0: clean events (N, *event_shape), normalised
    :param n_value_draws: later levels per value target; 0 for gradients alone
    """
    parts, done = [], 0
    for chunk in x0.split(CHUNK):
        t = send(draw_levels(base.process.n_diffusion_steps, len(chunk), generator), chunk.device)
        x_t = noised(base, chunk, t, generator)
        parts.append(targets_at(base, expert, chunk, x_t, t, generator, n_value_draws))
        done += len(chunk)
        note("targets", done / len(x0))
    return Targets.joined(parts)


def draw_levels(n_levels: int, n: int, generator: torch.Generator) -> Tensor:
    """
    Levels (n,) at which events are compared: uniform, but of many levels enough at the cleanest ones, at which events
    are scored.
    """
    t = randint(n_levels, (n,), generator, generator.device)
    if n_levels > FEW_LEVELS:
        clean = rand(n, generator, generator.device) < CLEAN_SHARE
        t = torch.where(clean, t // FEW_LEVELS, t)
    return t


def targets_at(
    base: ScoreModel,
    expert: ScoreModel,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    generator: torch.Generator,
    n_value_draws: int,
) -> Targets:
    """
    Evaluate both models at events that are noised already.

    :param x0: (N, *event_shape) the clean events
    :param x_t: (N, *event_shape)
    :param t: (N,)
    :param n_value_draws: later levels per value target; 0 for gradients alone
    """
    parts = []
    for begin in range(0, len(t), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        difference = eps_difference(base, expert, x_t[chunk], t[chunk])
        value = value_targets(base, expert, x_t[chunk], t[chunk], generator, n_value_draws) if n_value_draws else None
        parts.append(Targets(x0[chunk], x_t[chunk], t[chunk], difference, value))
    return Targets.joined(parts)


def targets_along(
    base: ScoreModel,
    expert: ScoreModel,
    x0: Tensor,
    visited: Sequence[tuple[Tensor, Tensor]],
    generator: torch.Generator,
    n_value_draws: int,
) -> Targets:
    """
    Evaluate both models at every x_t that a sampler visited.

    :param x0: (N, *event_shape), the clean events that it returned
    :param visited: (x_t (N, *event_shape), t (N,)) of each of its steps
    :param n_value_draws: later levels per value target; 0 for gradients alone
    """
    x_t, t = (torch.cat(tensors) for tensors in zip(*visited, strict=True))
    return targets_at(base, expert, x0.repeat(len(visited), *(1,) * (x0.ndim - 1)), x_t, t, generator, n_value_draws)


def level_means(values: Tensor, t: Tensor, sigma: Tensor, by_noise: bool = False) -> Tensor:
    """
    Mean of ``values`` (N,) at each level (T,), averaged over neighbouring levels.

    :param t: (N,)
    :param sigma: (T,)
    :param by_noise: only levels of a similar σ are neighbours: few of them at the cleanest of many levels, where σ
        multiplies from one to the next
    """
    n_levels, log_sigma = len(sigma), sigma.log()
    reach, index = max(n_levels // 25, 1), torch.arange(n_levels, device=t.device)
    near = (index[:, None] - index).abs() <= reach
    if by_noise and n_levels > FEW_LEVELS:
        near &= (log_sigma[:, None] - log_sigma).abs() <= math.log(MAX_RATIO)
    sums = torch.zeros(n_levels, device=t.device).index_add_(0, t, values)
    counts = torch.zeros(n_levels, device=t.device).index_add_(0, t, torch.ones_like(values))
    means, seen = (near.float() @ sums) / (near.float() @ counts).clamp(min=1), (near.float() @ counts) > 0
    known = seen.nonzero().flatten()  # a recording may leave gaps, which take after the nearest level
    nearest = (index[:, None] - known).abs().argmin(dim=1)
    return torch.where(seen, means, means[known[nearest]])
