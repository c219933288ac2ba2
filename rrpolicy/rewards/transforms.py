"""ρ as a step reward in (0, 1] that agents can be trained on: only differences to the highest ρ of base data count, so
the step head's free constant drops out and no temperature is chosen. :class:`BoundedReward` is a ratio of densities,
:class:`DistanceReward` falls with the distance to the maximum, which is sharper where agents are to rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards.protocol import StepReward, check_step_reward
from rrpolicy.rewards.relative_reward import Head
from rrpolicy.rewards.reward_archive import AnyReward
from rrpolicy.rewards.wrappers import scored_in_chunks

LEVEL_STRIDE = 2  # neighbouring levels are nearly equal


@dataclass(frozen=True)
class AveragedReward:
    """
    The step head averaged over every second clean level: the cleaner ones are sharp at the goal, the others order far
    states, and the mean's maximum lies nearer to the goal than that of most single levels. It scores single steps as a
    reward does.

    :param reward: ρ with a step head
    """

    reward: AnyReward

    @property
    def levels(self) -> Sequence[int]:
        """Noise levels averaged over; level 0 alone where no level is clean."""
        return range(0, max(self.reward.n_clean_levels, 1), LEVEL_STRIDE)

    @property
    def layout(self) -> TrajectoryLayout | None:
        """What the reward's windows hold."""
        return self.reward.layout

    @property
    def heads(self) -> tuple[Head, ...]:
        """Of the reward."""
        return self.reward.heads

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """Single steps (n, obs_dim), (n, act_dim) in environment units -> (n,) in nats."""
        return self.reward.predict(observations, actions, self.levels)


@dataclass(frozen=True)
class BoundedReward:
    """
    The transform for :class:`RelativeRewardVecEnv` and :class:`RelativeRewardWrapper`.

    :param maximum: ρ that counts as 1, nats; where ρ is extrapolated beyond it, r stays 1
    :raises ValueError: when it is not finite
    """

    maximum: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.maximum):
            raise ValueError(f"maximum must be finite, got {self.maximum!r}")

    @classmethod
    def fit(cls, reward: StepReward, observations: Array | TrajectoryDataset, actions: Array | None = None) -> Self:
        """
        Fit the transform to the data of a base.

        :param reward: ρ with a step head
        :param observations: base data: a dataset, or (n, obs_dim) in environment units
        :param actions: (n, act_dim), needed when the reward scores actions
        :return: the transform whose 1 is the highest ρ of these data
        :raises ValueError: when there are no data, or they and the reward do not fit
        """
        if isinstance(observations, TrajectoryDataset):
            if actions is not None:
                raise ValueError("actions was given with a dataset, which holds its own: wanted one of the two")
            return cls.fit(reward, observations.observations, observations.actions)
        if np.ndim(observations) != 2 or not len(observations):
            raise ValueError(f"observations has shape {np.shape(observations)}, wanted (n, obs_dim) with n >= 1")
        check_step_reward(reward)
        return cls(max(float(chunk.max()) for chunk in scored_in_chunks(reward, observations, actions)))

    def __call__(self, values: Array) -> Array:
        """ρ (n,) in nats -> rewards (n,) in (0, 1]: r = exp(min(ρ − maximum, 0))."""
        return np.exp(np.minimum(values - self.maximum, 0.0))


@dataclass(frozen=True)
class DistanceReward(BoundedReward):
    """
    r = exp(−√(2 (maximum − ρ))). Around its maximum a log density falls with the square of the distance, and exp of it
    has a flat summit. The root is the distance in standard deviations of the nearest Gaussian, so r is a cone like
    PointMaze's dense reward exp(−distance), and far away it falls more slowly.

    :param maximum: ρ that counts as 1, nats; where ρ is extrapolated beyond it, r stays 1
    :raises ValueError: when it is not finite
    """

    def __call__(self, values: Array) -> Array:
        """ρ (n,) in nats -> rewards (n,) in (0, 1]."""
        return np.exp(-np.sqrt(2 * np.maximum(self.maximum - values, 0.0)))
