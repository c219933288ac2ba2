"""Gradient matching: ∇ρ against a score difference, and the units in which the two are compared.

Nuti et al. 2023, algorithm 1, with errors in units of the RMS of the score difference at each noise level.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.targets import Targets, level_means

VANISHING = 0.05  # the zoo's pairs of mazes and of images have .48 and more of what the spread of their values needs
ROW_FLOOR = 0.02  # the default of `row_floor`
UNITS = ("value_spread", "row_weight")  # (T,) and (H,), fixed with the first buffer


def gradient_loss(
    rho: Tensor,
    inputs: Tensor,
    eps_difference: Tensor,
    scale: Tensor,
    sigma: Tensor,
    pinned: Tensor,
    weight: Tensor | None = None,
    n_free: Tensor | None = None,
) -> Tensor:
    """
    σ∇ρ against Δε = ε_base - ε_expert, both in units of the RMS of Δε at each level.

    :param rho: (B,) of ``inputs``, with gradients
    :param inputs: (B, *event_shape)
    :param eps_difference: Δε (B, *event_shape)
    :param scale: (B,) RMS of the score difference at their levels; 0 where the models are one
    :param sigma: (B,)
    :param pinned: bool, entries that do not count
    :param weight: of the entries; None where all count the same
    :param n_free: of how many entries the mean is; None: those that are not pinned
    """
    agree = scale == 0  # at these levels the models are one: nothing to learn there
    scale = torch.where(agree, 1.0, scale)
    rms = (scale * sigma).view(-1, *(1,) * (inputs.ndim - 1))
    (gradient,) = torch.autograd.grad((rho / scale).sum(), inputs, create_graph=True)
    ignored = pinned | agree.view(rms.shape)
    residual = torch.where(ignored, 0.0, gradient - eps_difference / rms)
    squares = residual**2 if weight is None else residual**2 * weight
    return squares.sum() / ((~pinned).expand_as(residual).sum() if n_free is None else n_free)


def eps_rms(targets: Targets, process: DiffusionProcess, pinned: Tensor, by_noise: bool = True) -> Tensor:
    """
    RMS of Δε (T,) over free entries at each level.

    :param by_noise: see :func:`level_means`. A head that predicts in these units needs them right at every level. Where
        they only weigh gradients, too large a value at the cleanest levels serves: there, two networks differ by their
        errors above all, and values are the better targets
    """
    levels = torch.arange(process.n_diffusion_steps, device=targets.t.device)
    # Δx̂0 = σ/α Δε varies slowly with t, so that is what neighbouring levels may share
    x0_per_eps = process.sigma(levels) / process.alpha(levels)
    n_free = int((~pinned).sum())
    squares = (targets.eps_difference**2).flatten(1).sum(dim=1) / n_free * x0_per_eps[targets.t] ** 2
    return level_means(squares, targets.t, process.sigma(levels), by_noise).sqrt() / x0_per_eps


def value_spread(targets: Targets, process: DiffusionProcess) -> Tensor:
    """Mean absolute deviation (T,) of values at each level; 1 where there are none."""
    sigma = process.sigma(torch.arange(process.n_diffusion_steps, device=targets.t.device))
    if targets.value is None:
        return torch.ones_like(sigma)
    deviation = (targets.value - targets.value.median()).abs()
    return level_means(deviation, targets.t, sigma)


def level_units(
    targets: Targets, process: DiffusionProcess, pinned: Tensor, by_noise: bool, matched: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """
    RMS of Δε, spread of values and units of ρ, (T,) each: :func:`eps_rms`, :func:`value_spread`, :func:`score_scale`.

    :param matched: whether values are matched
    """
    rms, spread = eps_rms(targets, process, pinned, by_noise), value_spread(targets, process)
    return rms, spread, score_scale(rms, spread if matched else None, process, int((~pinned).sum()))


def score_scale(rms: Tensor, spread: Tensor | None, process: DiffusionProcess, n_free: int) -> Tensor:
    """
    Units (T,) in which heads predict and gradients are compared: RMS of the score difference, but where it vanishes.

    Where modes lie apart and differ in weight alone, ρ differs by the logs of the weights, and its gradient is zero at
    events with little noise. In units of that gradient no value can be told, and every slope between two modes is an
    error beyond measure: ρ becomes a constant. Events are of the size of 1, so the spread of values could need a
    gradient of spread / √n_free per entry. Where differences are less than `VANISHING` of that, no unit of a level with
    more signal than noise is smaller than that.

    :param rms: of Δε at each level (T,)
    :param spread: of values at each level (T,), nats; None where no values are matched
    :param n_free: entries of an event that are not pinned
    """
    levels = torch.arange(len(rms), device=rms.device)
    scale = rms / process.sigma(levels)
    if spread is None:
        return scale
    floor = torch.where(process.alpha(levels) > process.sigma(levels), spread / n_free**0.5, 0.0)
    return torch.maximum(scale, floor) if bool((scale < VANISHING * floor).any()) and bool(rms.any()) else scale


def row_weights(targets: Targets, rms: Tensor, pinned: Tensor, row_floor: float = ROW_FLOOR) -> Tensor:
    """
    1 / mean square (H,) of each row's score differences, 1 on average over free entries.

    :param row_floor: rows whose mean square is a smaller part of the average are not weighted any more for it
    """
    free = ~pinned
    relative = (targets.eps_difference / rms.clamp(min=1e-12)[targets.t].view(-1, 1, 1)) ** 2
    rows = torch.where(free, relative.mean(dim=0), 0.0).sum(dim=1) / free.sum(dim=1).clamp(min=1)
    weight = 1 / (rows / rows.mean().clamp(min=1e-12)).clamp(min=row_floor)
    return weight / weight.repeat_interleave(free.sum(dim=1)).mean()


def check_units(units: Mapping[str, Tensor], n_levels: int, n_rows: int) -> None:
    """
    Check units that were read from a file.

    :param units: of `UNITS`, by name
    :param n_levels: T
    :param n_rows: H
    :raises ValueError: for another number of them, or values that are not above 0
    """
    sizes = dict(zip(UNITS, (n_levels, n_rows), strict=True))
    for name, value in units.items():
        if value.shape != (sizes[name],) or not bool((value > 0).all()):
            raise ValueError(f"{name} has shape {tuple(value.shape)}, wanted {sizes[name]} numbers above 0")
