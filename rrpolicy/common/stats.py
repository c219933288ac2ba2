"""Statistics: means, rates, differences, ratios and ranks, each number with a 95 % interval where it has one.

Means of episodes are resampled (percentile bootstrap), means of a few training seeds have Student's (1908) interval,
rates Wilson's (1927), areas under a ROC curve DeLong, DeLong and Clarke-Pearson's (1988).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from rrpolicy.common.typing import Array

Z = 1.959963984540054  # normal quantile of a two-sided 95 % interval
QUANTILES = (0.025, 0.975)


class Measure(NamedTuple):
    """A number, its 95 % interval, and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    def columns(self) -> dict[str, float]:
        """As in a row of results: mean, ci_low, ci_high, n."""
        return {"mean": self.value, "ci_low": self.low, "ci_high": self.high, "n": self.n}


# ---------------------------------------------------------------------- means


def bootstrap_interval(
    values: Any, n_resamples: int = 2000, seed: int = 0, rate: bool | None = None
) -> tuple[float, float]:
    """
    95 % percentile bootstrap interval of a mean. A rate of 0 or 1, where resampling shows no spread, gets Wilson's
    interval instead (Wilson 1927), so its width is never 0.

    :param values: (n,) numbers or booleans
    :param n_resamples: bootstrap samples
    :param seed: of the resampling
    :param rate: whether the values are failures and successes; None: they are if all are 0 or 1
    :return: low and high
    :raises ValueError: when there are no values or one is not finite
    """
    sample = finite_values(values)
    rate = bool(np.isin(sample, (0.0, 1.0)).all()) if rate is None else rate
    if rate and sample.min() == sample.max():
        return wilson_interval(float(sample.sum()), len(sample))
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(len(sample), size=(n_resamples, len(sample)))].mean(axis=1)
    low, high = np.quantile(means, QUANTILES)
    return float(low), float(high)


def bootstrap_mean(values: Any, rate: bool | None = None) -> Measure:
    """
    A mean with its :func:`bootstrap_interval`.

    :param values: (n,) numbers or booleans
    :param rate: as in :func:`bootstrap_interval`
    :raises ValueError: as :func:`bootstrap_interval`
    """
    sample = finite_values(values)
    return Measure(float(sample.mean()), *bootstrap_interval(sample, rate=rate), len(sample))


def clustered_mean(values: Array, groups: Array | None = None, n_resamples: int = 1000, seed: int = 0) -> Measure:
    """
    A mean with its 95 % percentile bootstrap interval, where values of one group are resampled together.

    :param values: (n,)
    :param groups: (n,) integers, such as the episode of each value; None: every value is a group
    :param n_resamples: bootstrap samples
    :param seed: of the resampling
    :raises ValueError: as :func:`finite_values`, or for groups of another length
    """
    sample = finite_values(values)
    if groups is None:
        return Measure(float(sample.mean()), *bootstrap_interval(sample, n_resamples, seed, False), len(sample))
    if np.shape(groups) != sample.shape:
        raise ValueError(f"groups has shape {np.shape(groups)}, wanted {sample.shape} as of the values")
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(which, sample), np.bincount(which)
    chosen = np.random.default_rng(seed).integers(len(sums), size=(n_resamples, len(sums)))
    low, high = np.quantile(sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1), QUANTILES)
    return Measure(float(sample.mean()), float(low), float(high), len(sample))


def bootstrap_statistic(
    values: Array, statistic: Callable[[Array], Any] = np.median, n_resamples: int = 500, seed: int = 0
) -> Measure:
    """
    Any statistic of a sample with its 95 % percentile bootstrap interval.

    :param values: (n,)
    :param statistic: (n,) -> number, such as a median or a quantile
    :param n_resamples: bootstrap samples
    :param seed: of the resampling
    """
    rng = np.random.default_rng(seed)
    low, high = np.quantile([statistic(rng.choice(values, len(values))) for _ in range(n_resamples)], QUANTILES)
    return Measure(float(statistic(values)), float(low), float(high), len(values))


def normal_mean(values: Array) -> Measure:
    """
    A mean with its normal interval, without bounds for a single value.

    :param values: (n,) with n >= 1
    """
    half = Z * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    mean = float(values.mean())
    return Measure(mean, mean - half, mean + half, len(values))


def finite_values(values: Any) -> Array:
    """
    Numbers as an array.

    :return: float64 (n,)
    :raises ValueError: for no numbers, other shapes, NaN or infinity
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"values must be finite numbers (n,) with n >= 1, got shape {sample.shape}: {values!r:.80}")
    return sample


# ---------------------------------------------------------------------- a few training seeds


@cache
def student_quantile(degrees: int, inside: float = 0.95) -> float:
    """
    The quantile of Student's (1908) t that a two-sided interval needs, by bisection of its distribution function
    (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).

    :param degrees: of freedom, at least 1
    :param inside: how often the interval is to hold the truth
    :raises ValueError: for fewer
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {degrees}")
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, degrees) < inside else (low, middle)
    return (low + high) / 2


def _student_inside(t: float, degrees: int) -> float:
    """P(|T| <= t) for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = total = cosine if odd else 1.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * ((k - 1) / k)
        total += term
    if odd:
        return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
    return math.sin(angle) * total


def student_mean(values: Any) -> Measure:
    """
    A mean over training seeds with Student's t interval, which holds the truth in 95 % of cases from two seeds on where
    seeds are normally distributed. The range of three seeds does in 75 %.

    :param values: (n,) one for each seed; a single one has no bounds
    :raises ValueError: for no values, or one that is not finite
    """
    sample = finite_values(values)
    mean, n = float(sample.mean()), len(sample)
    if n == 1:
        return Measure(mean, -math.inf, math.inf, 1)
    half = student_quantile(n - 1) * float(sample.std(ddof=1)) / math.sqrt(n)
    return Measure(mean, mean - half, mean + half, n)


def student_ratio(first: Any, second: Any) -> Measure:
    """
    Ratio of the means of two paired samples over training seeds, with Student's t interval of its linearisation
    (Cochran 1977, section 6.4). One seed whose denominator is small counts as little as it should, where it moves the
    mean of the seeds' own ratios.

    :param first: (n,) one for each seed
    :param second: (n,) of the same seeds
    :return: the ratio; NaN with a NaN interval where the second mean is not above 0
    :raises ValueError: for samples of other lengths, no values, or one that is not finite
    """
    above, below = finite_values(first), finite_values(second)
    if len(above) != len(below):
        raise ValueError(f"first and second must be equally long, got {len(above)} and {len(below)}")
    scale = float(below.mean())
    if not scale > 0:
        return Measure(math.nan, math.nan, math.nan, len(above))
    value = float(above.mean()) / scale
    _, low, high, n = student_mean((above - value * below) / scale)
    return Measure(value, value + low, value + high, n)


def hierarchical_mean(measures: Sequence[Measure], n_resamples: int = 2000, seed: int = 0) -> Measure:
    """
    A mean over training seeds with a hierarchical bootstrap interval over seeds and episodes: seeds are resampled, and
    each drawn one's mean is drawn anew with the standard error that its episodes gave it.

    Rows of results hold a mean and its interval and not the single episodes; a normal distribution as wide as that
    interval stands for resampling them. With few seeds the interval is too narrow, as every bootstrap's is:
    :func:`student_mean` is what is reported, this one beside it.

    :param measures: one for each seed, with the 95 % interval over its episodes
    :param n_resamples: bootstrap samples
    :param seed: of the resampling
    :raises ValueError: for none
    """
    means = finite_values([one.value for one in measures])
    errors = finite_values([(one.high - one.low) / (2 * Z) for one in measures])
    rng, n = np.random.default_rng(seed), len(means)
    drawn = rng.integers(n, size=(n_resamples, n))
    resampled = (means[drawn] + errors[drawn] * rng.standard_normal((n_resamples, n))).mean(axis=1)
    low, high = np.quantile(resampled, QUANTILES)
    return Measure(float(means.mean()), float(low), float(high), n)


# ---------------------------------------------------------------------- rates


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """
    Wilson's (1927) 95 % score interval, whose width is never 0.

    :param successes: how many
    :param n: of how many, at least 1
    """
    p, shrink = successes / n, 1 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / shrink
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / shrink
    return 0.0 if p == 0 else centre - half, 1.0 if p == 1 else centre + half


def share(flags: Any) -> Measure:
    """
    A rate with Wilson's (1927) interval, whose width is never 0.

    :param flags: (n,) booleans, such as "the classifier calls this sample harmful"
    :raises ValueError: for no flags or something that is no flag
    """
    values = np.asarray(flags)
    if values.ndim != 1 or not len(values) or values.dtype != bool:
        raise ValueError(f"flags are {values.dtype} {values.shape}, wanted booleans (n,) with n >= 1")
    return Measure(float(values.mean()), *wilson_interval(float(values.sum()), len(values)), len(values))


# ---------------------------------------------------------------------- two samples


def mean_difference(first: Array, second: Array, rate: bool = False) -> Measure:
    """
    Mean of the differences of pairs, such as two agents' episodes with equal seeds, with a 95 % bootstrap interval.

    :param first: (n,)
    :param second: (n,) of the same episodes or units
    :param rate: whether the values are failures and successes; then differences that are all alike get Wilson's
        interval of the differences that have not been seen
    """
    difference = first.astype(np.float64) - second.astype(np.float64)
    mean, n = float(difference.mean()), len(difference)
    if rate and difference.min() == difference.max():
        unseen = wilson_interval(0, n)[1]  # so many may differ from the rest without one having been seen
        return Measure(mean, max(-1.0, mean - unseen), min(1.0, mean + unseen), n)
    return Measure(mean, *bootstrap_interval(difference, rate=False), n)


def mean_ratio(first: Array, second: Array, n_resamples: int = 2000, seed: int = 0) -> Measure:
    """
    Ratio of the means of two equally long samples, with a 95 % percentile bootstrap interval from resampled pairs.

    :param first: (n,)
    :param second: (n,) of the same episodes or units
    :param n_resamples: bootstrap samples; those in which the second mean is not above 0 are left out
    :param seed: of the resampling
    :return: the ratio; NaN with a NaN interval where the second mean is not above 0
    """
    pairs = np.stack([first, second]).astype(np.float64)
    n = pairs.shape[1]
    if not n or not pairs[1].mean() > 0:
        return Measure(np.nan, np.nan, np.nan, n)
    rows = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    above, below = pairs[:, rows].mean(axis=2)
    low, high = np.quantile(above[below > 0] / below[below > 0], QUANTILES)
    return Measure(float(pairs[0].mean() / pairs[1].mean()), float(low), float(high), n)


def median_ratio(first: Array, second: Array, n_resamples: int = 500, seed: int = 0) -> Measure:
    """
    Ratio of two medians, with a 95 % percentile bootstrap interval from samples resampled independently.

    :param first: (n,)
    :param second: (m,)
    :param n_resamples: bootstrap samples
    :param seed: of the resampling
    :return: the ratio, with the smaller of the two sizes
    """
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(rng.choice(first, len(first))) / np.median(rng.choice(second, len(second)))
        for _ in range(n_resamples)
    ]
    low, high = np.quantile(drawn, QUANTILES)
    return Measure(float(np.median(first) / np.median(second)), float(low), float(high), min(len(first), len(second)))


# ---------------------------------------------------------------------- ranks


def auroc(scores: Any, wanted: Any) -> Measure:
    """
    Area under the ROC curve: P(score of a wanted observation > score of an unwanted one) + ½ P(equal).

    :param scores: (n,) finite numbers
    :param wanted: (n,) booleans, True where the score should be high
    :return: area, its interval (DeLong, DeLong, Clarke-Pearson 1988) and n
    :raises ValueError: for other shapes, NaN, or when one of the two kinds is missing
    """
    values, flags = np.asarray(scores, dtype=np.float64), np.asarray(wanted)
    if values.ndim != 1 or flags.shape != values.shape or flags.dtype != bool:
        found = f"{values.shape} and {flags.dtype} {flags.shape}"
        raise ValueError(f"scores and wanted are {found}, wanted numbers (n,) and booleans (n,)")
    if not np.isfinite(values).all():
        raise ValueError("scores hold NaN or inf, wanted finite numbers")
    if flags.all() or not flags.any():
        raise ValueError(f"wanted is {'True' if flags.any() else 'False'} everywhere, AUROC needs both kinds of images")
    high, low = values[flags], values[~flags]
    above = _share_below(high, low)  # for each wanted one, the share of unwanted ones that it beats
    below = 1 - _share_below(low, high)
    area = float(above.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.25 for part in (above, below))
    half = Z * math.sqrt(variance)
    return Measure(area, max(area - half, 0.0), min(area + half, 1.0), len(values))


def pearson(first: Array, second: Array) -> float:
    """
    Pearson's correlation.

    :param first: (n,)
    :param second: (n,)
    :return: NaN when one of them is constant
    :raises ValueError: when they are not equally long
    """
    values = [np.asarray(one, dtype=np.float64) for one in (first, second)]
    if len(values[0]) != len(values[1]):
        raise ValueError(f"first and second must be equally long, got {len(values[0])} and {len(values[1])}")
    if not len(values[0]) or any(one.min() == one.max() for one in values):
        return float("nan")
    centred = [one - one.mean() for one in values]
    return float(centred[0] @ centred[1] / (np.linalg.norm(centred[0]) * np.linalg.norm(centred[1])))


def spearman(first: Array, second: Array) -> float:
    """
    Spearman's rank correlation: Pearson's of ranks, ties sharing their mean rank.

    :param first: (n,)
    :param second: (n,)
    :return: NaN when one of them is constant
    :raises ValueError: when they are not equally long
    """
    return pearson(*(_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)))


def _ranks(values: Array) -> Array:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2.0)[which]


def _share_below(values: Array, others: Array) -> Array:
    """For each value the share of ``others`` below it, equal ones counting half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (left + right) / (2 * len(others))
