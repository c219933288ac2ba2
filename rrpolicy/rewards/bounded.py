"""ρ as a step reward that agents can be trained on: r = exp(min(ρ − max ρ over base data, 0)), in (0, 1].

Only differences of the per-step head's nats count, so its free constant drops out; no temperature is chosen, and where
there were no data and ρ is extrapolated beyond its maximum, r is capped at 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.rewards.relative_reward import RelativeReward

CHUNK = 16_384  # transitions scored at a time, which bounds the memory


@dataclass(frozen=True)
class BoundedReward:
    """
    The transform for :class:`RelativeRewardVecEnv` and :class:`RelativeRewardWrapper`.

    :param maximum: ρ that counts as 1, nats
    :raises ValueError: when it is not finite
    """

    maximum: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.maximum):
            raise ValueError(f"maximum must be finite, got {self.maximum!r}")

    @classmethod
    def fit(cls, reward: RelativeReward, observations: Array, actions: Array | None = None) -> Self:
        """
        :param reward: ρ with a step head
        :param observations: base data (n, obs_dim), environment units
        :param actions: (n, act_dim), needed when the reward scores actions
        :return: the transform whose 1 is the highest ρ of these data
        :raises ValueError: when there are no data, or they and the reward do not fit
        """
        if np.ndim(observations) != 2 or not len(observations):
            raise ValueError(f"observations has shape {np.shape(observations)}, wanted (n, obs_dim) with n >= 1")
        if "step" not in reward.heads:
            raise ValueError(f"reward must have a step head, it has {reward.heads}")
        starts = range(0, len(observations), CHUNK)
        parts = [slice(start, start + CHUNK) for start in starts]
        values = (reward.predict(observations[p], None if actions is None else actions[p]) for p in parts)
        return cls(max(float(chunk.max()) for chunk in values))

    def __call__(self, values: Array) -> Array:
        """ρ (n,) in nats -> rewards (n,) in (0, 1]."""
        return np.exp(np.minimum(values - self.maximum, 0.0))
