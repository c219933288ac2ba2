"""Detection of pictures unlike anything that two models make, from a few statistics of their samples.

Unlike `denoising_error`, this evaluates no model: a reward keeps the ranges of the statistics over samples of both.
A picture outside them is one for which ρ has no meaning; one inside them need not be one that the models make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.typing import Array
from rrpolicy.images.codec import Codec, PixelCodec
from rrpolicy.images.denoising_error import ErrorRanges

N_NEEDED = 100  # samples; with fewer, the ends of a range are unreliable
QUANTILE = 0.001  # of the samples beyond each end of a range
WIDENED = 0.25  # of the range's width, at each end
LAGS = (1, 2)  # pixels between neighbours that are compared
CHUNK = 64  # events in double precision at once
_FLOOR = 1e-5  # variance of a black picture, whose logarithm is taken


@dataclass(frozen=True)
class Support:
    """
    The ranges of the statistics of pictures that two models make, see :func:`statistics`.

    :param n: samples that they were taken from
    :param low: lower ends (k,)
    :param high: upper ends
    :param errors: ranges of the base's denoising errors, for use with the base; None: unknown
    :raises ValueError: when they do not fit together
    """

    n: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    errors: ErrorRanges | None = None

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high) or np.less(self.high, self.low).any():
            raise ValueError(f"support has {len(self.low)} lower and {len(self.high)} upper ends, wanted ranges")

    @classmethod
    def of(cls, events: Tensor, codec: Codec) -> Support | None:
        """
        The ranges over samples of both models.

        :param events: clean events (n, *event_shape)
        :return: None for fewer than :data:`N_NEEDED`
        """
        if len(events) < N_NEEDED:
            return None
        low, high = np.quantile(statistics(events, codec), (QUANTILE, 1 - QUANTILE), axis=0)
        margin = WIDENED * (high - low)
        return cls(len(events), tuple((low - margin).tolist()), tuple((high + margin).tolist()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Support:
        errors = values.get("errors")
        ranges = None if errors is None else ErrorRanges.from_dict(errors)
        return cls(values["n"], tuple(values["low"]), tuple(values["high"]), ranges)

    def to_dict(self) -> dict[str, Any]:
        errors = None if self.errors is None else self.errors.to_dict()
        return {"n": self.n, "low": list(self.low), "high": list(self.high), "errors": errors}

    def unlike(self, events: Tensor, codec: Codec) -> Array:
        """
        Which events lie outside any of the ranges, bool (n,).

        :param events: clean events (n, *event_shape)
        :raises ValueError: for events with another number of statistics
        """
        found = statistics(events, codec)
        if found.shape[1] != len(self.low):
            raise ValueError(f"support has {len(self.low)} ranges, events of this codec have {found.shape[1]}")
        return np.asarray(((found < self.low) | (found > self.high)).any(axis=1))

    @property
    def rule(self) -> str:
        """What is flagged, in one sentence."""
        return (
            f"A picture is flagged when a statistic of it (mean, contrast, difference of pixels one and two apart, "
            f"of each channel that the models see) lies outside the range that holds {1 - 2 * QUANTILE:.1%} of "
            f"{self.n:,} samples of both models, widened by {WIDENED:.0%} of its width at each end."
        )


NOT_CHECKED = (
    "Whether a picture is unlike anything that the two models make was not checked: the reward keeps no ranges of "
    f"samples, for which extract needs a recording with at least {N_NEEDED} samples."
)


def statistics(events: Tensor, codec: Codec) -> Array:
    """
    Statistics of each event and each of its channels: mean, log standard deviation, and log variogram over variance.

    Pixels that a codec has folded into channels are unfolded. The variogram is the mean square difference of neighbours
    one and two apart, of both axes; over the variance it distinguishes noise from pictures, whatever their contrast.

    :param events: clean events (n, C, H, W)
    :return: (n, k) float64
    """
    return np.concatenate([_statistics(part, codec) for part in events.split(CHUNK)])


def _statistics(events: Tensor, codec: Codec) -> Array:
    maps = nn.functional.pixel_shuffle(events, codec.unshuffle) if isinstance(codec, PixelCodec) else events
    values = maps.cpu().double()
    spread = (values.var(dim=(2, 3), unbiased=False) + _FLOOR).log()
    columns = [values.mean(dim=(2, 3)), spread / 2]
    for lag in LAGS:
        steps = [
            values.narrow(axis, lag, size - lag) - values.narrow(axis, 0, size - lag)
            for axis in (2, 3)
            if (size := values.shape[axis]) > lag
        ]
        if steps:
            square = torch.stack([step.square().mean(dim=(2, 3)) for step in steps]).mean(dim=0)
            columns.append((square + _FLOOR).log() - spread)
    return np.concatenate([column.numpy() for column in columns], axis=1)
