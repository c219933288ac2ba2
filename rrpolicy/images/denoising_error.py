"""Denoising errors of a model on pictures, compared with those on samples of the two models.

Statistics of pixels do not depend on what a picture shows; errors of a network trained on other pictures do, in part. A
recording keeps the ranges of its base's errors over samples of both models; an audit with the base computes them anew
for its pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.device import device_of
from rrpolicy.common.files import write_json
from rrpolicy.common.kinds import ErrorRangesFields
from rrpolicy.common.messages import at
from rrpolicy.common.processes import current
from rrpolicy.common.schema import checked, from_json, read_small
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.images.noise import digests_of_events, noise_of
from rrpolicy.rewards.recorded import RecordedPairs

SHARES = (0.05, 0.15, 0.3, 0.5)  # of the noise levels, where errors are taken
N_DRAWS = 2  # of noise at each
N_SAMPLES = 64  # of each model, whose errors a recording keeps
N_NEEDED = 100  # samples of both models together; with fewer, the ends of a range are unreliable
QUANTILE, WIDENED = 0.001, 0.25  # as `support`
FILE = "denoising.json"  # in a recording
_FLOOR = 1e-12


@dataclass(frozen=True)
class ErrorRanges:
    """
    Ranges of a base's denoising errors over samples of both models, as logarithms.

    :param n: samples that they were taken from
    :param levels: noise levels (k,)
    :param low: lower ends (k,)
    :param high: upper ends (k,)
    :raises ValueError: when they do not fit together
    """

    n: int
    levels: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.levels) == len(self.low) == len(self.high) > 0 or np.less(self.high, self.low).any():
            raise ValueError(
                f"errors have {len(self.levels)} levels, {len(self.low)} lower and {len(self.high)} upper "
                "ends, wanted ranges"
            )

    @classmethod
    def of(cls, errors: Array, levels: Sequence[int]) -> Self:
        """
        The ranges of some denoising errors, widened by a margin.

        :param errors: (n, k), see :func:`denoising_errors`
        """
        low, high = np.quantile(errors, (QUANTILE, 1 - QUANTILE), axis=0)
        margin = WIDENED * (high - low)
        return cls(len(errors), tuple(levels), tuple((low - margin).tolist()), tuple((high + margin).tolist()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(values["n"], tuple(values["levels"]), tuple(values["low"]), tuple(values["high"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def unlike(self, model: ScoreModel, events: Tensor, digests: Sequence[bytes] | None = None) -> Array:
        """
        Which events the base denoises as it does no sample, bool (n,).

        :param model: the base of the recording, without a prompt
        :param events: clean events (n, *event_shape)
        :param digests: (n,) on which the noise depends; None: of the events
        """
        found = denoising_errors(model, events, self.levels, digests)
        return np.asarray(((found < self.low) | (found > self.high)).any(axis=1))

    @property
    def rule(self) -> str:
        """What is flagged, in one sentence."""
        return (
            f"So is one whose noise the base predicts with an error, at one of the levels "
            f"{', '.join(map(str, self.levels))}, outside the range of {1 - 2 * QUANTILE:.1%} of {self.n:,} samples of "
            f"both models, widened by {WIDENED:.0%} of its width at each end."
        )


def levels_of(model: ScoreModel) -> list[int]:
    """The noise levels at which errors are taken."""
    return sorted({int(share * model.process.n_diffusion_steps) for share in SHARES})


@torch.no_grad()
def denoising_errors(
    model: ScoreModel, events: Tensor, levels: Sequence[int], digests: Sequence[bytes] | None = None
) -> Array:
    """
    Logarithm of the mean square error of the noise that a model predicts, from noise of each event's own.

    :param events: clean events (n, *event_shape)
    :param levels: noise levels (k,)
    :param digests: (n,) on which the noise depends; None: of the events
    :return: (n, k) float64
    """
    known, columns = digests_of_events(events) if digests is None else digests, []
    events = events.to(device_of(model))
    for level in levels:
        t, squares = torch.full((len(events),), level, dtype=torch.int64, device=events.device), []
        for draw in range(N_DRAWS):
            noise = noise_of(known, f"denoising {level} {draw}", events)
            predicted = model.eps(model.process.q_sample(events, t, noise), t)
            squares.append((predicted - noise).double().square().flatten(1).mean(dim=1))
        columns.append((torch.stack(squares).mean(dim=0) + _FLOOR).log().cpu().numpy())
    return np.stack(columns, axis=1)


def keep_errors(pairs: RecordedPairs, base: ScoreModel) -> None:
    """Write the ranges of a recording's samples beside its shards; nothing for too few samples or where they are."""
    path, samples = pairs.folder / FILE, pairs.samples(N_SAMPLES)
    if not current().is_main or path.is_file() or samples is None or sum(map(len, samples)) < N_NEEDED:
        return
    levels = levels_of(base)
    errors = np.concatenate([denoising_errors(base, part, levels) for one in samples for part in one.split(N_SAMPLES)])
    write_json(path, ErrorRanges.of(errors, levels).to_dict())


def kept_errors(folder: Path) -> ErrorRanges | None:
    """
    The ranges of a recording; None where it has none.

    :raises ValueError: for a file that holds something else
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values = from_json(read_small(path))
        checked(ErrorRangesFields, values, path.name)
        return ErrorRanges.from_dict(values)
    except (OSError, ValueError) as error:
        raise ValueError(at(path, error)) from error
