"""How far ρ can be believed: what it explains, what no scalar can, and whether its values are log odds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.noise import randn
from rrpolicy.common.stats import Measure, auroc, clustered_mean, wilson_interval
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.score_model import ScoreModel, pinned_mask
from rrpolicy.rewards.targets import noised

N_PROBES = 4
N_BINS = 8
STEP = 1e-2  # of σ, between two points of a directional derivative
CURL_LEVELS = (0.25, 0.5, 0.75)  # of the noisiest level
MOST_LOG_ODDS = 50.0


@usual_torch()
@torch.no_grad()
def curl_share(
    base: ScoreModel, expert: ScoreModel, x0: Tensor, seed: int = 0, levels: Sequence[float] = CURL_LEVELS
) -> Measure:
    """
    Share of the Jacobian of the score difference that is antisymmetric: 0 for the gradient of a scalar, 1 for a
    rotation; about 0.5 for noise.

        ‖(J - Jᵀ)/2‖² / ‖J‖²,   ‖(J - Jᵀ)/2‖² = (‖J‖² - tr J²)/2,

    by probes of random signs u, v: E[(uᵀJv)²] = ‖J‖² and E[(uᵀJv)(vᵀJu)] = tr J² (Hutchinson 1989), with central
    differences for Jv, so that any model will do.

    :param x0: clean events (N, *event_shape)
    :param seed: of noise and probes
    :param levels: noise levels, as shares of the noisiest
    :return: with its 95 % bootstrap interval over events; NaN where the models are one
    """
    generator = torch.Generator().manual_seed(seed)
    pinned, process = pinned_mask(base), base.process
    squares, traces = torch.zeros(len(x0), dtype=torch.float64), torch.zeros(len(x0), dtype=torch.float64)
    for part in levels:
        t = torch.full((len(x0),), round(part * (process.n_diffusion_steps - 1)), device=x0.device)
        x_t = noised(base, x0, t, generator)
        h = STEP * process.levels(x_t, t)[1]
        for _ in range(N_PROBES):
            u, v = (torch.where(pinned, 0.0, randn(x0.shape, generator, x0.device).sign()) for _ in range(2))
            along_u, along_v = (_derivative(base, expert, x_t, t, one, h) for one in (u, v))
            uv, vu = ((one * other).flatten(1).sum(dim=1).double().cpu() for one, other in ((u, along_v), (v, along_u)))
            squares += (uv**2 + vu**2) / 2
            traces += uv * vu
    return _ratio((squares - traces).numpy() / 2, squares.numpy(), seed)


def _derivative(base: ScoreModel, expert: ScoreModel, x_t: Tensor, t: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """J v of σ times the score difference, by central differences."""

    def difference(x: Tensor) -> Tensor:
        return base.eps(x, t) - expert.eps(x, t)

    return (difference(x_t + h * v) - difference(x_t - h * v)) / (2 * STEP)


def _ratio(above: Array, below: Array, seed: int, n_resamples: int = 500) -> Measure:
    n = len(below)
    if not below.sum() > 0:
        return Measure(math.nan, math.nan, math.nan, n)
    rows = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    drawn = above[rows].sum(axis=1) / np.maximum(below[rows].sum(axis=1), 1e-300)
    low, high = np.quantile(drawn, (0.025, 0.975))
    value, low, high = (float(np.clip(one, 0, 1)) for one in (above.sum() / below.sum(), low, high))
    return Measure(value, low, high, n)


# ---------------------------------------------------------------------- values


@dataclass(frozen=True)
class Bin:
    """Events with similar ρ: the share of the expert's that ρ says there are, and the share that there is."""

    rho: float
    predicted: float
    observed: Measure


@dataclass(frozen=True)
class Calibration:
    """
    ρ as log odds of "the expert's, not the base's", at as many samples of each.

    :param slope: of the logistic regression of the label on ρ; 1 where ρ is the log odds, below 1 where it is too large
    :param intercept: 0 where ρ is the log odds
    :param auroc: of ρ
    :param log_loss: of ρ as it is, nats an event; ln 2 = 0.69 is that of a coin
    :param classifier_auroc: of a classifier that was trained on other samples; NaN without one
    :param classifier_log_loss: of that classifier
    :param correlation: Pearson's, of ρ and the classifier's log odds
    :param bins: events ordered by ρ, in bins of equal size
    :param separation: a lower bound of the total variation, by ρ or by the classifier, whichever has the larger AUROC
    """

    slope: float
    intercept: float
    auroc: Measure
    log_loss: Measure
    classifier_auroc: Measure | None
    classifier_log_loss: Measure | None
    correlation: float
    bins: tuple[Bin, ...]
    separation: Measure


def calibration(rho_base: Array, rho_expert: Array, logit_base: Any = None, logit_expert: Any = None) -> Calibration:
    """
    Compare ρ with the odds that there are.

    :param rho_base: (n,) ρ of the base's samples
    :param rho_expert: (m,) of the expert's
    :param logit_base: log odds of a held-out classifier at the same samples; None for none
    :param logit_expert: as many as ``rho_expert``
    """
    rho, label = np.concatenate([rho_base, rho_expert]), np.repeat([False, True], [len(rho_base), len(rho_expert)])
    slope, intercept = logistic_fit(rho, label)
    known = logit_base is not None and logit_expert is not None
    logit = np.concatenate([logit_base, logit_expert]) if known else None
    varies = logit is not None and min(np.ptp(rho), np.ptp(logit)) > 0
    area, other = auroc(rho, label), None if logit is None else auroc(logit, label)
    best = logit if logit is not None and other is not None and other.value > area.value else rho
    return Calibration(
        slope,
        intercept,
        area,
        clustered_mean(_log_losses(rho, label)),
        other,
        None if logit is None else clustered_mean(_log_losses(logit, label)),
        float(np.corrcoef(rho, logit)[0, 1]) if varies and logit is not None else math.nan,
        _bins(rho, label),
        total_variation_seen(best[~label], best[label]),
    )


def logistic_fit(x: Array, label: Array, n_steps: int = 50) -> tuple[float, float]:
    """
    Slope and intercept of P(label) = σ(slope x + intercept), by Newton's method on standardised x with a weak prior.

    :param x: (n,)
    :param label: (n,) booleans
    """
    centre, width = float(np.median(x)), float(np.std(x))
    if width == 0:
        return 0.0, 0.0
    design = np.column_stack([(x - centre) / width, np.ones(len(x))])
    weights = np.zeros(2)
    for _ in range(n_steps):
        p = 1 / (1 + np.exp(-np.clip(design @ weights, -MOST_LOG_ODDS, MOST_LOG_ODDS)))
        gradient = design.T @ (p - label) + 1e-3 * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step * min(1.0, 5.0 / max(float(np.abs(step).max()), 1e-12))
    slope = float(weights[0] / width)
    return slope, float(weights[1] - slope * centre)


def _log_losses(logit: Array, label: Array) -> Array:
    signed = np.where(label, -logit, logit)
    return np.asarray(np.logaddexp(0.0, np.clip(signed, -1e6, 1e6)))


def _bins(rho: Array, label: Array) -> tuple[Bin, ...]:
    found = []
    for rows in np.array_split(np.argsort(rho, kind="stable"), min(N_BINS, len(rho))):
        positive, n = float(label[rows].sum()), len(rows)
        predicted = float((1 / (1 + np.exp(-np.clip(rho[rows], -MOST_LOG_ODDS, MOST_LOG_ODDS)))).mean())
        found.append(Bin(float(rho[rows].mean()), predicted, Measure(positive / n, *wilson_interval(positive, n), n)))
    return tuple(found)


def likelihood_ratio_bound(rho_base: Array, rho_expert: Array) -> float:
    """
    A lower bound of KL(expert‖base) by ρ alone (Donsker & Varadhan 1975): E_expert ρ - ln E_base e^ρ, nats, as far as
    the two means of samples are those of the models.
    """
    high = float(rho_base.max())
    return float(rho_expert.mean() - high - math.log(np.exp(rho_base - high).mean()))


def total_variation_seen(base: Array, expert: Array) -> Measure:
    """
    A lower bound of the total variation: how much more often the expert's samples lie above a threshold of a score.

    The threshold is chosen on the even samples, the difference is that of the odd ones.

    :param base: (n,) scores of the base's samples, such as ρ
    :param expert: (m,) of the expert's
    :return: with its 95 % bootstrap interval, not below 0
    """
    both = np.concatenate([base[::2], expert[::2]])
    gains = [float((expert[::2] > one).mean() - (base[::2] > one).mean()) for one in both]
    above = float(both[int(np.argmax(gains))])
    hits, misses = (expert[1::2] > above).astype(np.float64), (base[1::2] > above).astype(np.float64)
    rng = np.random.default_rng(0)
    drawn = [rng.choice(hits, len(hits)).mean() - rng.choice(misses, len(misses)).mean() for _ in range(500)]
    low, high = (max(float(one), 0.0) for one in np.quantile(drawn, (0.025, 0.975)))
    return Measure(max(float(hits.mean() - misses.mean()), 0.0), low, high, len(hits) + len(misses))


def agreement(members: Array) -> float:
    """The lowest Pearson correlation of two of the rewards; NaN for one alone, or where one is constant."""
    if len(members) < 2 or bool((np.ptp(members, axis=1) == 0).any()):
        return math.nan
    found = np.corrcoef(members)
    return float(found[~np.eye(len(members), dtype=bool)].min())
