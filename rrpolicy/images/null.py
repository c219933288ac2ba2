"""The null of ρ's spread: rewards between trainings of one and the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.rewards.recorded import RecordedPairs

NOTHING_BEYOND = "no difference beyond what two trainings of one model show"


@dataclass(frozen=True, eq=False)
class Null:
    """
    Scores of the audited pictures by rewards that were extracted between two trainings of one model.

    :param names: of the rewards (k,)
    :param scores: (k, n), in the units of the audited scores
    :raises ValueError: without rewards, or for other shapes or NaN
    """

    names: Sequence[str]
    scores: Any

    def __post_init__(self) -> None:
        values = np.asarray(self.scores, dtype=np.float64)
        if values.ndim != 2 or not len(values) or len(values) != len(self.names) or not np.isfinite(values).all():
            found = f"{values.shape} of {len(self.names)} rewards"
            raise ValueError(f"null has scores {found}, wanted finite numbers (k, n), k >= 1")
        object.__setattr__(self, "scores", values)

    def spreads(self, kept: Array) -> list[float]:
        """Standard deviation of each reward's scores over the pictures ``kept``, a bool mask (n,)."""
        return [spread(one[kept]) for one in self.scores]

    def covers(self, rho: Array, kept: Array) -> bool:
        """Whether ρ spreads no further than the widest of these rewards over the pictures ``kept``."""
        return spread(rho[kept]) <= max(self.spreads(kept))


def spread(scores: Array) -> float:
    """Standard deviation of scores (n,), which does not depend on their zero; 0 for fewer than two."""
    return float(np.std(np.asarray(scores, dtype=np.float64), ddof=1)) if len(scores) > 1 else 0.0


def models_differ(pairs: RecordedPairs) -> bool:
    """Whether any recorded pair of predictions differs; shards are read until one does."""
    return any(bool(pairs.shard(i).eps_difference.any()) for i in range(len(pairs.shards)))
