"""Rows of windows at which a step head is fitted: the head is a sum over rows, so a few of each window serve.

Half of the windows are at the cleanest levels, where maps and per-state rewards are read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rrpolicy.common.device import precise
from rrpolicy.common.noise import randint
from rrpolicy.rewards.targets import Targets


class StepRows:
    """
    Where a step head can be fitted in a buffer of targets; found once, so that draws wait for no device.

    :param targets: with clean events
    :param pinned: bool (H, D), entries that stay clean
    :param n_clean_levels: the cleanest levels
    :raises ValueError: for targets without clean events
    """

    def __init__(self, targets: Targets, pinned: Tensor, n_clean_levels: int) -> None:
        clean_events(targets)
        self.targets = targets
        self._clean = (targets.t < n_clean_levels).nonzero().flatten()
        self._n_free = (~pinned).sum(dim=1)  # of each row
        self._free = self._n_free.nonzero().flatten()

    def draw(self, index: Tensor, n_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """
        Draw windows and rows.

        :param index: windows (B,), of which the second half is kept
        :param n_rows: of each window
        :param generator: source of randomness
        :return: windows (B,); their rows (B, n_rows), of which none is all pinned; and how many free entries the rows
            of a window have, on average (B,), so that a mean over entries is one over windows
        """
        if len(self._clean):
            drawn = randint(len(self._clean), (len(index) // 2,), generator, index.device)
            index = torch.cat([self._clean[drawn], index[len(drawn) :]])
        rows = self._free[randint(len(self._free), (len(index), n_rows), generator, index.device)]
        n_free = self._n_free[rows].sum().to(precise(index.device)) / len(index)
        return index, rows, n_free.expand(len(index))


def clean_events(targets: Targets) -> Tensor:
    """
    The clean events of targets, (N, *event_shape).

    :raises ValueError: where they were recorded without
    """
    if targets.x0 is None:
        raise ValueError("data was recorded without clean events, which a step head needs: pass heads=('window',)")
    return targets.x0
