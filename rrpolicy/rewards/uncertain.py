"""Rewards that know how far they may be off: intervals of ρ, and what is left of ρ where it is unsure.

Where the standard deviation of ρ is above a limit, ρ and its gradient are damped; the factor is not differentiated,
which would lead to wherever the reward is sure of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.arguments import number
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.rewards.algebra import CompositeReward

LEVEL = 0.95  # how often intervals are to hold ρ


class UncertainReward(CompositeReward):
    """A reward with a standard deviation: an `Ensemble` or a `LaplaceReward`."""

    max_uncertainty: float | None

    def _take_limit(self, max_uncertainty: float | None) -> None:
        limit = max_uncertainty
        self.max_uncertainty = None if limit is None else number("max_uncertainty", limit, above=0)

    def with_options(self, **options: Any) -> Self:
        """The same reward with another ``max_uncertainty`` and further options of its class."""
        raise NotImplementedError

    def middle(self) -> Self:
        """The reward whose values are the middle of the intervals: without a limit."""
        return self.with_options(max_uncertainty=None)

    def spread(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """Standard deviation (B,) of ρ of noised events, nats."""
        raise NotImplementedError

    def predict_spread(self, observations: Array, actions: Array | None = None) -> Array:
        """Standard deviation (n,) of what `RelativeReward.predict` gives, nats."""
        raise NotImplementedError

    @usual_torch()
    @torch.no_grad()
    def interval(self, x_t: Tensor, t: Tensor, level: float = LEVEL) -> tuple[Tensor, Tensor]:
        """
        Between which numbers ρ of noised events lies.

        :param x_t: (B, *event_shape), normalised
        :param t: (B,) noise levels
        :param level: how often the interval is to hold ρ, in (0, 1)
        :return: low (B,) and high (B,), nats
        """
        middle, reach = self.middle()(x_t, t), self._reach(_checked(level)) * self.spread(x_t, t)
        return middle - reach, middle + reach

    def predict_interval(
        self, observations: Array, actions: Array | None = None, level: float = LEVEL
    ) -> tuple[Array, Array]:
        """
        Between which numbers ρ of clean data in environment units lies.

        :param observations: as `RelativeReward.predict` takes them
        :param actions: the same
        :param level: how often the interval is to hold ρ, in (0, 1)
        :return: low (n,) and high (n,), nats
        """
        middle = self.middle().predict(observations, actions)
        reach = self._reach(_checked(level)) * self.predict_spread(observations, actions)
        return np.asarray(middle - reach), np.asarray(middle + reach)

    def predict(self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None) -> Array:
        """ρ (n,) of clean data in environment units, as `RelativeReward.predict`."""
        raise NotImplementedError

    def _reach(self, level: float) -> float:
        """Half the width of an interval in standard deviations."""
        raise NotImplementedError

    def _damped(self, values: Tensor, spread: Tensor) -> Tensor:
        """
        Values (B,) or gradients (B, *event_shape), less where the standard deviation (B,) is above the limit.

        Gradients are zero at pinned entries.
        """
        if self.max_uncertainty is not None:
            factor = (self.max_uncertainty / spread.clamp(min=1e-30)).clamp(max=1.0)
            values = factor.view(-1, *(1,) * (values.ndim - 1)) * values
        return values if values.ndim == 1 else torch.where(self.pinned, 0.0, values)


def _checked(level: float) -> float:
    level = number("level", level)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, it must lie between 0 and 1")
    return float(level)


def with_max_uncertainty(reward: Any, max_uncertainty: float | None) -> Any:
    """
    A reward that counts less where it is unsure; itself without a limit.

    :param reward: any; with a limit an `Ensemble` or a `LaplaceReward`
    :param max_uncertainty: see `Ensemble`; None for no limit
    :raises ValueError: for a limit and a reward that knows no uncertainty
    """
    if max_uncertainty is None:
        return reward
    if not isinstance(reward, UncertainReward):
        raise ValueError(f"max_uncertainty is for an Ensemble or a LaplaceReward, reward is a {type(reward).__name__}")
    return reward.with_options(max_uncertainty=max_uncertainty)
