"""What an action itself adds to ρ: ρ(s, a) less its mean over the base's actions in the state s.

ρ of states with their actions is high wherever the expert is often, whatever is done there. An agent that is paid ρ is
paid for being there as well; one that is paid the centred reward is paid for acting more as the expert does than the
base would. In the base's data actions are the base's, so the mean is a regression of ρ on their states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from rrpolicy.common.seeding import checked_seed
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards.protocol import StepReward, check_step_reward
from rrpolicy.rewards.regression import Regression, RegressionSettings, explained_variance
from rrpolicy.rewards.wrappers import scores_of

HELD_OUT = 0.1  # of the episodes, at which the baseline is measured


@dataclass(frozen=True, eq=False)
class CentredReward:
    """
    ρ(s, a) − b(s), where b(s) is the mean of ρ over the base's actions. It scores single steps as a reward does, so
    `RelativeRewardWrapper`, `RelativeRewardVecEnv`, ``relabel`` and ``finetune`` take it; :meth:`fit` makes one.

    :param reward: ρ of states with their actions, with a step head
    :param mean_over_base: b, of observations (n, obs_dim) in environment units -> (n,), nats
    :param explained: R² of b for ρ of held-out episodes: how much of ρ the state alone says
    """

    reward: StepReward
    mean_over_base: Regression
    explained: float

    @classmethod
    def fit(
        cls,
        reward: StepReward,
        dataset: TrajectoryDataset,
        *,
        total_timesteps: int = 3_000,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        width: int = 128,
        seed: int = 0,
    ) -> Self:
        """
        Fit the baseline to a base's data.

        :param reward: ρ of states with their actions, with a step head
        :param dataset: of the base, at least two episodes; a tenth of them is held out
        :param total_timesteps: gradient steps
        :param batch_size: transitions of each
        :param learning_rate: of Adam; it falls to zero by a cosine
        :param width: of the two hidden layers
        :param seed: of weights, batches and the episodes held out
        :raises ValueError: for a reward of states alone, which no action changes, and for data that do not fit it
        """
        if not check_step_reward(reward).plan_actions:
            raise ValueError("reward scores states alone, so there is nothing to centre over actions")
        settings = RegressionSettings(total_timesteps, batch_size, learning_rate, width)
        seed = checked_seed(seed)
        learned, held_out = dataset.split(HELD_OUT, seed)
        baseline = Regression.mean(learned.observations, scores_of(learned, reward), seed, settings)
        explained = explained_variance(scores_of(held_out, reward), baseline(held_out.observations))
        return cls(reward, baseline, explained)

    @property
    def layout(self) -> TrajectoryLayout | None:
        """Of the reward."""
        return self.reward.layout

    @property
    def heads(self) -> tuple[str, ...]:
        """Single steps alone are scored."""
        return ("step",)

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """(n, obs_dim), (n, act_dim) in environment units -> (n,) in nats."""
        return np.asarray(self.reward.predict(observations, actions) - self.mean_over_base(observations))
