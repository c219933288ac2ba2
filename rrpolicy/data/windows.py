"""Mini-batches of packed, normalised windows, drawn on the fly from one or several datasets.

Rows are packed and normalised once; a draw is one gather, so a long stream costs no more memory than its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from rrpolicy.common.noise import randint
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer


class WindowSampler:
    """
    Draws windows of ``layout`` from ``datasets``, an equal share of each.

    :param datasets: one or several datasets of the layout's observation and action widths
    :param layout: which columns, how many steps, how far apart
    :param normalizer: environment units -> normalised
    :param padding: also draw windows that run past the end of an episode (their mask says where)
    :param advice: what helps, for the error that a dataset has no whole window
    :raises ValueError: when a dataset does not fit the layout or has no whole window
    """

    def __init__(
        self,
        datasets: Sequence[TrajectoryDataset],
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        padding: bool = False,
        advice: str = "pass padding=True",
    ) -> None:
        if not datasets:
            raise ValueError("datasets is empty, at least one dataset is needed")
        span = layout.span - layout.past
        for i, dataset in enumerate(datasets):
            if not padding and (longest := int(dataset.episode_lengths.max())) < span:
                which = "" if len(datasets) == 1 else f" of dataset {i}"
                raise ValueError(
                    f"no window fits: layout spans {span} environment steps (horizon={layout.horizon}, "
                    f"stride={layout.stride}), the longest episode{which} has {longest}: {advice}"
                )
        self._offsets = (torch.arange(layout.horizon) - layout.present) * layout.stride
        self._parts = [_Rows(dataset, layout, normalizer, padding) for dataset in datasets]

    def to(self, device: torch.device) -> Self:
        """Move the rows to a device, so that windows are cut out there; which ones, the CPU's generator says."""
        self._offsets = self._offsets.to(device)
        for part in self._parts:
            part.rows, part.starts, part.first, part.last = (
                one.to(device) for one in (part.rows, part.starts, part.first, part.last)
            )
        return self

    def __len__(self) -> int:
        """Number of distinct windows."""
        return sum(len(part.starts) for part in self._parts)

    def share_beyond(self, bound: float) -> Tensor:
        """
        How much of each column lies beyond a bound.

        :param bound: normalised units
        :return: (D,) share of the rows of all datasets whose entry is larger than ``bound``
        """
        beyond = torch.stack([(part.rows.abs() > bound).sum(dim=0) for part in self._parts]).sum(dim=0)
        return (beyond / sum(len(part.rows) for part in self._parts)).cpu()

    def largest(self) -> float:
        """The largest normalised magnitude of all entries."""
        return max(float(part.rows.abs().max()) for part in self._parts)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """
        Draw windows at random.

        :param n: number of windows
        :param generator: source of randomness
        :return: x0 (n, H, D) normalised, and mask (n, H), False where the episode had ended
        """
        counts = [n // len(self._parts) + (i < n % len(self._parts)) for i in range(len(self._parts))]
        drawn = [
            part.draw(count, self._offsets, generator) for part, count in zip(self._parts, counts, strict=True) if count
        ]
        return torch.cat([x0 for x0, _ in drawn]), torch.cat([mask for _, mask in drawn])


class _Rows:
    """The packed rows of one dataset, the present rows of its windows, and where their episodes begin and end."""

    def __init__(
        self, dataset: TrajectoryDataset, layout: TrajectoryLayout, normalizer: Normalizer, padding: bool
    ) -> None:
        for name, width, wanted in (
            ("observations", dataset.observation_dim, layout.observation_dim),
            ("actions", dataset.action_dim, layout.action_dim),
        ):
            if width != wanted:
                raise ValueError(f"the dataset's {name} have {width} columns, the layout wants {wanted}")
        packed = layout.pack(
            normalizer.observations.normalize(dataset.observations), normalizer.actions.normalize(dataset.actions)
        )
        self.rows = torch.as_tensor(packed, dtype=torch.float32)
        self.starts = torch.as_tensor(dataset.window_starts(layout, padding=padding))
        lengths = torch.tensor(dataset.episode_lengths)
        last_row = lengths.cumsum(0) - 1
        episode = torch.searchsorted(last_row, self.starts)
        self.first, self.last = (last_row - lengths + 1)[episode], last_row[episode]

    def draw(self, n: int, offsets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = randint(len(self.starts), (n,), generator, self.starts.device)
        index = self.starts[chosen, None] + offsets
        first, last = self.first[chosen, None], self.last[chosen, None]
        return self.rows[index.clamp(first, last)], index <= last
