"""Which entries carry ρ: integrated gradients from the base's events to the expert's (Sundararajan, Taly, Yan 2017).

Along the straight path from an event b of the base to one e of the expert, entry j is given ∫ ∂ⱼρ dxⱼ. These sum to
ρ(e) - ρ(b) for every pair, whose mean over pairs is KL(expert‖base) + KL(base‖expert) as far as ρ is their log ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.stats import Measure, clustered_mean
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.protocol import RewardFunction, reward_gradient

N_POINTS = 32  # of the quadrature along a path
CARRIED = 0.8  # share of the attribution that the named entries carry


@dataclass(frozen=True, eq=False)
class Attribution:
    """
    What each entry of a window adds to ρ(expert's event) - ρ(base's event).

    :param values: (N, H, D) nats, of each pair
    :param differences: (N,) ρ of the expert's event minus ρ of the base's
    :param groups: (N,) which pairs belong together; None: all are independent
    """

    values: Array
    differences: Array
    groups: Array | None = None

    @property
    def mean(self) -> Array:
        """(H, D) mean over pairs, nats."""
        return np.asarray(self.values.mean(axis=0))

    @property
    def completeness(self) -> float:
        """Largest gap between the sum of a pair's entries and its difference, in units of the mean |difference|."""
        gap = np.abs(self.values.sum(axis=(1, 2)) - self.differences).max()
        size = float(np.abs(self.differences).mean())
        return float(gap / size) if size > 0 else float(gap)

    def shares(self) -> Array:
        """(H, D) |mean| of each entry as a share of their sum; zeros where ρ is constant."""
        sizes = np.abs(self.mean)
        return np.asarray(sizes / sizes.sum()) if sizes.sum() > 0 else np.zeros_like(sizes)

    def by_column(self) -> Array:
        """(D,) shares of the features: |mean over pairs of the sum over rows|, of their sum."""
        sizes = np.abs(self.mean.sum(axis=0))
        return np.asarray(sizes / sizes.sum()) if sizes.sum() > 0 else np.zeros_like(sizes)

    def carriers(self, share: float = CARRIED) -> list[int]:
        """The fewest features (columns) that carry at least a share of the attribution, the largest first."""
        shares = self.by_column()
        order = np.argsort(-shares, kind="stable")
        if not shares.sum() > 0:
            return []
        n = int(np.searchsorted(np.cumsum(shares[order]), share * (1 - 1e-9))) + 1
        return [int(i) for i in order[:n]]

    def of_column(self, column: int) -> Measure:
        """Mean attribution of a feature, nats, with its interval."""
        return clustered_mean(self.values[:, :, column].sum(axis=1), self.groups)


def attribute(
    reward: RewardFunction,
    process: DiffusionProcess,
    base: Tensor,
    expert: Tensor,
    pinned: Tensor,
    groups: Array | None = None,
    n_points: int = N_POINTS,
) -> Attribution:
    """
    Integrated gradients of ρ at the cleanest level from each event of the base to that of the expert.

    :param reward: ρ
    :param process: its noise levels
    :param base: clean events (N, *event_shape), vectors or windows
    :param expert: as many
    :param pinned: bool ``event_shape``; pairs that differ there, as those of other conditions do, are refused
    :param groups: (N,) which pairs belong together
    :param n_points: of the Gauss-Legendre quadrature
    :raises ValueError: for events of different shapes or conditions
    """
    if base.shape != expert.shape or not bool((torch.where(pinned, base - expert, 0.0) == 0).all()):
        raise ValueError("base and expert must be events of one shape and of the same conditions")
    nodes, weights = np.polynomial.legendre.leggauss(n_points)
    start, end = (scored_input(process, x0, pinned) for x0 in (base, expert))
    total = torch.zeros_like(start, dtype=torch.float64)
    t = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    for node, weight in zip(nodes, weights, strict=True):
        x = start + (node + 1) / 2 * (end - start)
        total += weight / 2 * reward_gradient(reward, x.float(), t).double()
    values = (total * (end - start)).cpu().numpy()
    with torch.no_grad():
        differences = (reward(end, t) - reward(start, t)).double().cpu().numpy()
    return Attribution(values.reshape(len(values), *(1, *values.shape[1:])[-2:]), differences, groups)


def scored_input(process: DiffusionProcess, x0: Tensor, pinned: Tensor) -> Tensor:
    """Clean events as ρ takes them at the cleanest level: α x0, and x0 at pinned entries."""
    return torch.where(pinned, x0, process.alpha(0) * x0)
