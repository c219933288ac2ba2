"""Scores of images by class, and two references for them: brightness, and the ELBO difference, which needs both models.
How well a score separates two kinds is `common.stats.auroc`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.device import device_of
from rrpolicy.common.stats import Measure, auroc, normal_mean
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.targets import value_targets

CHUNK = 1024


def label_means(scores: Any, labels: Any, class_names: Sequence[str]) -> dict[str, Measure]:
    """
    Mean score of each class that occurs, with its normal interval.

    :param scores: (n,)
    :param labels: (n,) indices of ``class_names``
    """
    values, numbers = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or numbers.shape != values.shape:
        raise ValueError(f"scores and labels have shapes {values.shape} and {numbers.shape}, wanted (n,) both")
    return {class_names[label]: normal_mean(values[numbers == label]) for label in np.unique(numbers)}


def separation(scores: Any, labels: Any, class_names: Sequence[str], unwanted: Collection[str]) -> dict[str, Measure]:
    """
    How scores separate classes: AUROC of wanted over unwanted images, and the mean score of each class.

    :param scores: (n,)
    :param labels: (n,) indices of ``class_names``
    :param unwanted: class names
    :return: ``auroc``, where both kinds are there, and ``mean_<class>`` of classes with at least two images
    :raises ValueError: for an unwanted class that is not among the names
    """
    if unknown := sorted(set(unwanted) - set(class_names)):
        raise ValueError(f"unwanted has {unknown[0]!r}, classes are {', '.join(class_names)}")
    wanted = np.array([class_names[label] not in unwanted for label in labels], dtype=bool)
    found = {"auroc": auroc(scores, wanted)} if wanted.any() and not wanted.all() else {}
    means = label_means(scores, labels, class_names)
    return found | {f"mean_{name}": mean for name, mean in means.items() if math.isfinite(mean.low)}


def brightness(images: Any) -> Array:
    """
    A trivial baseline: the mean of all pixels, in [0, 1].

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

    It is the target of value matching (`rewards.targets.value_targets`), with more draws and without a network.

    :param base: the base
    :param expert: the expert
    :param events: clean events (n, *event_shape)
    :param n_draws: later noise levels per image, each with a pair of noises: 4 ``n_draws`` calls of a model
    :param level: noise level of the (mean of the) noised event, at which ρ is evaluated
    :param seed: of the draws
    :return: (n,) nats
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for chunk in events.to(device_of(base)).split(CHUNK):
        t = torch.full((len(chunk),), level, dtype=torch.int64, device=chunk.device)
        x_t = base.process.levels(chunk, t)[0] * chunk
        parts.append(value_targets(base, expert, x_t, t, generator, n_draws))
    return torch.cat(parts).cpu().numpy()
