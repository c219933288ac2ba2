"""ρ split into rewards of single steps: r(s, a) = ρ(s, a) − γ E[V(s') | s, a], V(s) = τ log E_base exp(ρ(s, ·) / τ).

This is the inverse soft Bellman operator (IQ-Learn: Garg, Chakraborty, Cundy, Song, Ermon 2021) with the base in the
place of the uniform policy. ρ is the soft Q function of r, and base(a | s) exp((ρ(s, a) − V(s)) / τ) the policy that
maximises E Σ γᵏ (r − τ KL(policy ‖ base)). With τ = 1 nat and ρ = log expert(s, a) / base(s, a) that policy is the
expert, ρ − V = log expert(a | s) / base(a | s), and V is the log ratio of how often expert and base are in s.

What is assumed: that ρ is the value of an action, which behaviour alone cannot say. Any other V makes a reward with the
same best policy (potential-based shaping: Ng, Harada, Russell 1999), for learners with this γ that are held to the base
by τ KL. Other learners, and those that are paid a transform of r, may prefer another policy.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Self

import numpy as np

from rrpolicy.common.arguments import number
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.transitions import Transitions, terminals, transitions
from rrpolicy.rewards.centred import HELD_OUT, CentredReward
from rrpolicy.rewards.protocol import StepReward
from rrpolicy.rewards.regression import Regression, RegressionSettings, explained_variance
from rrpolicy.rewards.wrappers import scores_of


@dataclass(frozen=True, eq=False)
class SoftValue:
    """
    V(s) = τ log E_base exp(ρ(s, ·) / τ).

    :param centred: ρ, and its mean over the base's actions
    :param excess: V less that mean, of observations (n, obs_dim) in environment units -> (n,), nats; None: 0
    """

    centred: CentredReward
    excess: Regression | None

    def __call__(self, observations: Array) -> Array:
        """V (n,) of observations (n, obs_dim) in environment units, nats."""
        mean = self.centred.mean_over_base(observations)
        return mean if self.excess is None else mean + self.excess(observations)

    def changes(self, steps: Transitions) -> Array:
        """V(s') − V(s) (n,) of transitions, nats; V is 0 where an episode was over."""
        return np.where(steps.terminals, 0.0, self(steps.next_observations)) - self(steps.observations)


@dataclass(frozen=True, eq=False)
class BellmanReward:
    """
    ρ(s, a) − γ E[V(s') | s, a]. It scores single steps as a reward does, so `RelativeRewardWrapper`,
    `RelativeRewardVecEnv`, ``relabel`` and ``finetune`` take it; :meth:`fit` makes one.

    A constant c in ρ, which a step head leaves free, is (1 − γ) c in the reward of a step, and c where an episode ends.

    :param reward: ρ of states with their actions, with a step head
    :param value: V
    :param change: E[V(s') | s, a] − V(s), of rows (n, obs_dim + act_dim) in environment units -> (n,), nats
    :param gamma: γ, of one environment step
    :param normalisation: mean of exp((ρ − V) / τ) over the base's actions in held-out episodes, 1 for the right V
    :param explained: R² of ``change`` for held-out transitions: how much of it state and action say
    """

    reward: StepReward
    value: SoftValue
    change: Regression
    gamma: float
    normalisation: float
    explained: float

    @classmethod
    def fit(
        cls,
        reward: StepReward,
        dataset: TrajectoryDataset,
        *,
        gamma: float = 0.99,
        temperature: float = 1.0,
        time_limit: int | None = None,
        total_timesteps: int = 3_000,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        width: int = 128,
        seed: int = 0,
    ) -> Self:
        """
        Fit V and what follows of it to a base's data.

        :param reward: ρ of states with their actions, with a step head
        :param dataset: of the base, at least two episodes; a tenth of them is held out. It tells how its episodes
            ended, or has the rewards of its environment, from which that is inferred with a warning
        :param gamma: γ, of at least 0 and below 1; that of the agent which is to be trained
        :param temperature: τ, nats. Where ρ differs by many τ between actions of one state, few of them decide V, and
            what is fitted is too low (``normalisation`` is above 1). ``math.inf``: V is the mean of ρ, and ρ the Q
            function of the base itself, the expected discounted sum of r while the base goes on
        :param time_limit: environment steps after which episodes are cut off; None: they never are. Not used where
            the dataset tells
        :param total_timesteps: gradient steps of each network
        :param batch_size: transitions of each
        :param learning_rate: of Adam; it falls to zero by a cosine
        :param width: of the two hidden layers
        :param seed: of weights, batches and the episodes held out
        :raises ValueError: for a reward of states alone, which no action changes, for numbers out of range, and for
            data that do not fit the reward or of which it is not known what followed
        """
        if not 0 <= number("gamma", gamma) < 1:
            raise ValueError(f"gamma is {gamma}, it must be at least 0 and below 1")
        if not number("temperature", temperature) > 0:
            raise ValueError(f"temperature is {temperature}, it must be above 0 nats, or math.inf")
        settings = RegressionSettings(total_timesteps, batch_size, learning_rate, width)
        centred = CentredReward.fit(reward, dataset, seed=seed, **asdict(settings))
        learned, held_out = _with_ends(dataset, time_limit).split(HELD_OUT, seed)
        excess = None
        if temperature < math.inf:
            above = scores_of(learned, centred)
            excess = Regression.log_mean_exp(learned.observations, above, temperature, seed, settings)
        value, steps, others = SoftValue(centred, excess), _steps(learned), _steps(held_out)
        change = Regression.mean(_rows(steps.observations, steps.actions), value.changes(steps), seed, settings)
        advantage = scores_of(held_out, reward) - value(held_out.observations)
        normalisation = float(np.exp(advantage / temperature).mean())
        explained = explained_variance(value.changes(others), change(_rows(others.observations, others.actions)))
        return cls(reward, value, change, gamma, normalisation, explained)

    @property
    def layout(self) -> TrajectoryLayout | None:
        """Of the reward."""
        return self.reward.layout

    @property
    def heads(self) -> tuple[str, ...]:
        """Single steps alone are scored."""
        return self.value.centred.heads

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """(n, obs_dim), (n, act_dim) in environment units -> (n,) in nats."""
        rho = self.reward.predict(observations, actions)  # which refuses what does not fit
        following = self.value(observations) + self.change(_rows(observations, np.asarray(actions)))
        return np.asarray(rho - self.gamma * following)


def _rows(observations: Array, actions: Array) -> Array:
    return np.concatenate([observations, actions], axis=1)


def _with_ends(dataset: TrajectoryDataset, time_limit: int | None) -> TrajectoryDataset:
    """The dataset, telling how its episodes ended."""
    if dataset.terminated is not None:
        return dataset
    over = terminals(dataset, time_limit)[np.cumsum(dataset.episode_lengths) - 1]
    return replace(dataset, terminated=over)


def _steps(dataset: TrajectoryDataset) -> Transitions:
    """Transitions of which it is known what followed, whatever their rewards."""
    return transitions(dataset.with_rewards(np.zeros(len(dataset))), terminals(dataset, None))
