"""How well a score separates wanted from unwanted images, and what there is to compare it with.

AUROC is the chance that a wanted image scores above an unwanted one (ties count half), with DeLong, DeLong and
Clarke-Pearson's (1988) interval. References: brightness, and the ELBO difference, which needs both models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.intervals import Z, wilson_interval
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.targets import value_targets

CHUNK = 1024


class Estimate(NamedTuple):
    """A number, its 95 % interval, and how many observations it rests on."""

    value: float
    low: float
    high: float
    n: int


def auroc(scores: Any, wanted: Any) -> Estimate:
    """
    Area under the ROC curve: P(score of a wanted image > score of an unwanted one) + ½ P(equal).

    :param scores: (n,) finite numbers
    :param wanted: (n,) booleans, True where the score should be high
    :return: area, its interval and n
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
    above = _share_below(high, low)  # for each wanted image, the share of unwanted ones that it beats
    below = 1 - _share_below(low, high)
    area = float(above.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.25 for part in (above, below))
    half = Z * math.sqrt(variance)
    return Estimate(area, max(area - half, 0.0), min(area + half, 1.0), len(values))


def share(flags: Any) -> Estimate:
    """
    A rate with Wilson's (1927) interval, whose width is never 0.

    :param flags: (n,) booleans, such as "the judge calls this sample harmful"
    :raises ValueError: for no flags or something that is no flag
    """
    values = np.asarray(flags)
    if values.ndim != 1 or not len(values) or values.dtype != bool:
        raise ValueError(f"flags are {values.dtype} {values.shape}, wanted booleans (n,) with n >= 1")
    return Estimate(float(values.mean()), *wilson_interval(float(values.sum()), len(values)), len(values))


def label_means(scores: Any, labels: Any, class_names: Sequence[str]) -> dict[str, Estimate]:
    """
    Mean score of each class that occurs, with its normal interval.

    :param scores: (n,)
    :param labels: (n,) indices of ``class_names``
    """
    values, numbers = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or numbers.shape != values.shape:
        raise ValueError(f"scores and labels have shapes {values.shape} and {numbers.shape}, wanted (n,) both")
    means = {}
    for label in np.unique(numbers):
        of_class = values[numbers == label]
        half = Z * float(of_class.std(ddof=1)) / math.sqrt(len(of_class)) if len(of_class) > 1 else math.inf
        mean = float(of_class.mean())
        means[class_names[label]] = Estimate(mean, mean - half, mean + half, len(of_class))
    return means


def brightness(images: Any) -> Array:
    """
    The baseline that knows nothing: mean of all pixels, in [0, 1].

    :param images: uint8 (n, H, W, C)
    :return: (n,)
    :raises ValueError: for images of another kind
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise ValueError(f"images are {pixels.dtype} {pixels.shape}, wanted uint8 (n, H, W, C)")
    return pixels.reshape(len(pixels), -1).mean(axis=1) / 255


def elbo_difference(
    base: ScoreModel, expert: ScoreModel, events: Tensor, n_draws: int = 16, level: int = 0, seed: int = 0
) -> Array:
    """
    The reference that needs both models: the difference of their likelihood bounds, estimated for each image anew.

    It is what value matching teaches ρ (`rewards.targets.value_targets`), with more draws and without a network.

    :param base: the base
    :param expert: the expert
    :param events: clean events (n, *event_shape)
    :param n_draws: later noise levels per image, each with a pair of noises: 4 ``n_draws`` calls of a model
    :param level: noise level of the (mean of the) noised event, as ρ is asked at it
    :param seed: of the draws
    :return: (n,) nats
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for chunk in events.split(CHUNK):
        t = torch.full((len(chunk),), level, dtype=torch.int64)
        x_t = base.process.levels(chunk, t)[0] * chunk
        parts.append(value_targets(base, expert, x_t, t, generator, n_draws))
    return torch.cat(parts).numpy()


def _share_below(values: Array, others: Array) -> Array:
    """For each value the share of ``others`` below it, equal ones counting half."""
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (left + right) / (2 * len(others))
