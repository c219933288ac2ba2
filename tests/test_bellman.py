"""ρ split by the soft Bellman equation, against rewards that are known: of a table, and of a linear-Gaussian system."""

import math
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rrpolicy import TrajectoryDataset
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards import BellmanReward, CentredReward
from rrpolicy.rewards.regression import Regression, RegressionSettings
from rrpolicy.rewards.wrappers import RelativeRewardWrapper, relabel

GAMMA, N_STATES, N_ACTIONS = 0.8, 4, 3
TINY = {"total_timesteps": 600, "width": 32, "batch_size": 256, "learning_rate": 1e-2}


# ---------------------------------------------------------------------- a table


@dataclass(frozen=True)
class Chain:
    """Four states, three actions, and a chance that nothing follows: p(s' | s, a) sums to less than 1."""

    reward: Any  # (S, A)
    follows: Any  # (S, A, S)
    base: Any  # (S, A)

    def value(self, q: Any, temperature: float = 1.0) -> Any:
        if temperature == math.inf:
            return (self.base * q).sum(axis=1)
        return temperature * np.log((self.base * np.exp(q / temperature)).sum(axis=1))

    def optimum(self, reward: Any) -> Any:
        """The soft Q function (S, A) of a reward, the base being the prior policy."""
        q = np.zeros_like(reward)
        for _ in range(200):
            q = reward + GAMMA * self.follows @ self.value(q)
        return q

    def policy(self, q: Any) -> Any:
        return self.base * np.exp(q - self.value(q)[:, None])

    def episodes(self, n_rows: int) -> TrajectoryDataset:
        """The base, from any state, until it is over or 20 steps have passed."""
        rng = np.random.default_rng(0)
        states, actions, lengths, terminated = [], [], [], []
        while len(states) < n_rows:
            state, start = int(rng.integers(N_STATES)), len(states)
            while state < N_STATES and len(states) < start + 20:
                action = int(rng.choice(N_ACTIONS, p=self.base[state]))
                states.append(state)
                actions.append(action)
                over = 1 - self.follows[state, action].sum()
                state = int(rng.choice(N_STATES + 1, p=[*self.follows[state, action], over]))
            lengths.append(len(states) - start)
            terminated.append(state == N_STATES)
        rows = np.eye(N_STATES)[states], np.array(actions)[:, None] - 1.0
        return TrajectoryDataset(*rows, np.array(lengths), terminated=np.array(terminated))


class Table:
    """ρ (S, A) as a reward of one-hot states and actions -1, 0 and 1."""

    layout: Any = TrajectoryLayout(N_STATES, 1, horizon=2)

    def __init__(self, rho: Any) -> None:
        self.rho = rho

    def predict(self, observations: Any, actions: Any = None) -> Any:
        return self.rho[np.argmax(observations, axis=1), np.rint(np.asarray(actions)[:, 0]).astype(int) + 1]


def tabled(reward: Any) -> Any:
    """What a reward says of each state and action (S, A)."""
    states, actions = np.divmod(np.arange(N_STATES * N_ACTIONS), N_ACTIONS)
    return reward.predict(np.eye(N_STATES)[states], actions[:, None] - 1.0).reshape(N_STATES, N_ACTIONS)


@pytest.fixture(scope="module")
def chain() -> Chain:
    rng = np.random.default_rng(3)
    follows = 0.9 * rng.dirichlet(np.full(N_STATES, 0.5), (N_STATES, N_ACTIONS))
    follows[0] *= 0.5  # episodes end most in the first state
    return Chain(rng.normal(size=(N_STATES, N_ACTIONS)), follows, rng.dirichlet(np.full(N_ACTIONS, 3.0), N_STATES))


@pytest.fixture(scope="module")
def base(chain: Chain) -> TrajectoryDataset:
    return chain.episodes(12_000)


def error(found: Any, wanted: Any) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2)))


def test_the_reward_behind_a_soft_q_function_is_found_again(chain: Chain, base: TrajectoryDataset) -> None:
    q = chain.optimum(chain.reward)
    split = BellmanReward.fit(Table(q), base, gamma=GAMMA, **TINY)
    assert error(split.value(np.eye(N_STATES)), chain.value(q)) < 0.05
    assert error(tabled(split), chain.reward) < 0.1  # of a reward whose spread is 1
    assert error(q, chain.reward) > 0.5 and error(tabled(split.value.centred), chain.reward) > 0.5
    assert split.normalisation == pytest.approx(1, abs=0.05) and 0.2 < split.explained < 0.9
    assert split.layout == Table.layout and split.heads == ("step",)


@pytest.mark.slow
def test_what_is_added_to_states_shapes_and_the_expert_stays_the_best(chain: Chain, base: TrajectoryDataset) -> None:
    """ρ = log expert(s, a) / base(s, a), of an expert that is the optimum of ``chain.reward``."""
    expert = chain.policy(chain.optimum(chain.reward))
    often = np.array([2.0, -1.0, 0.5, 0.0])  # log of how often the expert is there, in units of the base
    split = BellmanReward.fit(Table(np.log(expert / chain.base) + often[:, None]), base, gamma=GAMMA, **TINY)
    assert error(split.value(np.eye(N_STATES)), often) < 0.05
    shaping = (often - chain.value(chain.optimum(chain.reward)))[:, None]
    shaping = shaping - GAMMA * (chain.follows @ shaping[:, 0])
    assert error(tabled(split), chain.reward + shaping) < 0.1 and error(shaping, 0) > 0.5
    assert np.abs(chain.policy(chain.optimum(tabled(split))) - expert).max() < 0.03


def test_without_a_temperature_the_base_earns_rho(chain: Chain, base: TrajectoryDataset) -> None:
    """ρ(s, a) is what the base earns after a in s, discounted."""
    rho = chain.optimum(chain.reward)
    split = BellmanReward.fit(Table(rho), base, gamma=GAMMA, temperature=math.inf, **TINY)
    earned = np.zeros_like(rho)
    for _ in range(200):
        earned = tabled(split) + GAMMA * chain.follows @ chain.value(earned, math.inf)
    assert error(earned, rho) < 0.1 and error(tabled(split), rho) > 0.3
    assert split.normalisation == 1 and split.value.excess is None


def test_without_a_future_rho_is_the_reward(chain: Chain, base: TrajectoryDataset) -> None:
    split = BellmanReward.fit(Table(chain.reward), base, gamma=0, total_timesteps=1)
    assert tabled(split) == pytest.approx(chain.reward)


# ---------------------------------------------------------------------- a linear-Gaussian system


class Quadratic:
    """ρ = 2 s a − a² / 2 of a base N(0, 1): exp(ρ / τ) has a mean in closed form."""

    layout: Any = TrajectoryLayout(1, 1, horizon=2)

    def predict(self, observations: Any, actions: Any = None) -> Any:
        states, actions = np.asarray(observations)[:, 0] / 100, np.asarray(actions)[:, 0]
        return (2 * states * actions - actions**2 / 2).astype(np.float32)

    @staticmethod
    def value(states: Any, temperature: float) -> Any:
        curvature, slope = 1 + 1 / temperature, 2 * states / temperature
        return temperature * (slope**2 / (2 * curvature) - np.log(curvature) / 2)


@pytest.mark.slow  # as a table, above
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_states_and_actions_may_be_continuous(temperature: float) -> None:
    """s' = s / 2 + 0.3 a + 0.1 noise; observations are in units of their own."""
    rng = np.random.default_rng(1)
    states, actions = np.empty((150, 41)), rng.normal(size=(150, 40))
    states[:, 0] = rng.normal(size=150)
    for step in range(40):
        states[:, step + 1] = states[:, step] / 2 + 0.3 * actions[:, step] + 0.1 * rng.normal(size=150)
    rows, lengths = (100 * states[:, :-1].reshape(-1, 1), actions.reshape(-1, 1)), np.full(150, 40)
    base = TrajectoryDataset(*rows, lengths, terminated=np.zeros(150, dtype=bool))
    reward = Quadratic()
    split = BellmanReward.fit(reward, base, gamma=0.9, temperature=temperature, **TINY)
    states, actions = rng.uniform(-0.8, 0.8, 300), rng.uniform(-1.5, 1.5, 300)
    mean = states / 2 + 0.3 * actions
    following = reward.value(mean, temperature) + 0.1**2 * (reward.value(1, temperature) - reward.value(0, temperature))
    observed = 100 * states[:, None]
    wanted = reward.predict(observed, actions[:, None]) - 0.9 * following
    assert error(split.value(observed), reward.value(states, temperature)) < 0.1
    assert error(split.predict(observed, actions[:, None]), wanted) < 0.1 * wanted.std()


def test_one_row_does_not_decide_a_log_of_mean_exponentials() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (4000, 1))
    wanted = 3 * inputs[:, 0] + rng.normal(size=4000)  # log E exp(y) = 3 x + 1 / 2
    wanted[7] = 500.0  # is 492 in any mean of exponentials
    fitted = Regression.log_mean_exp(inputs, wanted, 1.0, 0, RegressionSettings(600, 256, 1e-2, 32))
    assert error(fitted(inputs), 3 * inputs[:, 0] + 0.5) < 0.25


# ---------------------------------------------------------------------- data, and what is refused


def test_it_takes_the_place_of_a_reward(chain: Chain, base: TrajectoryDataset) -> None:
    split = BellmanReward.fit(Table(chain.reward), base, gamma=GAMMA, total_timesteps=2)
    assert relabel(base, split).rewards == pytest.approx(split.predict(base.observations, base.actions), abs=1e-5)

    class Still(gym.Env[Any, Any]):
        observation_space, action_space = gym.spaces.Box(0, 1, (N_STATES,)), gym.spaces.Box(-1, 1, (1,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.eye(N_STATES, dtype=np.float32)[2], {}

        def step(self, action: Any) -> Any:
            return np.eye(N_STATES, dtype=np.float32)[2], 0.0, False, False, {}

    env = RelativeRewardWrapper(Still(), split)
    env.reset()
    assert env.step(np.ones(1, np.float32))[1] == pytest.approx(tabled(split)[2, 2], abs=1e-5)


def test_ends_that_are_not_told_are_inferred(chain: Chain, base: TrajectoryDataset) -> None:
    told = base.subset(range(100))
    fits = [BellmanReward.fit(Table(chain.reward), told, gamma=GAMMA, total_timesteps=5, width=8)]
    silent = replace(told, rewards=np.ones(len(told)), terminated=None, truncated=None)
    with pytest.warns(RrpolicyWarning, match="does not tell how its episodes ended"):  # shorter than the limit: over
        fits.append(
            BellmanReward.fit(Table(chain.reward), silent, gamma=GAMMA, total_timesteps=5, width=8, time_limit=20)
        )
    never = replace(told, terminated=np.zeros(told.n_episodes, dtype=bool), truncated=None)
    fits.append(BellmanReward.fit(Table(chain.reward), never, gamma=GAMMA, total_timesteps=5, width=8))
    first, same, other = map(tabled, fits)
    assert (told.episode_lengths[told.terminated] < 20).all()
    assert np.array_equal(first, same) and not np.allclose(first, other, atol=0.01)


def test_the_seed_decides(chain: Chain, base: TrajectoryDataset) -> None:
    fits = [BellmanReward.fit(Table(chain.reward), base, total_timesteps=5, width=8, seed=seed) for seed in (1, 1, 2)]
    first, same, other = map(tabled, fits)
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_what_cannot_be_split_is_refused(chain: Chain, base: TrajectoryDataset) -> None:
    class OfStates(Table):
        layout = TrajectoryLayout(N_STATES, 1, horizon=2, plan_actions=False)

    reward = Table(chain.reward)
    with pytest.raises(ValueError, match="states alone"):
        BellmanReward.fit(OfStates(chain.reward), base)
    for gamma in (1, -0.1, math.nan, "0.9"):
        with pytest.raises(ValueError, match="gamma is"):
            BellmanReward.fit(reward, base, gamma=gamma)  # type: ignore[arg-type]
    for temperature in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature is"):
            BellmanReward.fit(reward, base, temperature=temperature)
    with pytest.raises(ValueError, match="1 episode, wanted at least 2"):
        BellmanReward.fit(reward, base.subset([0]))
    with pytest.raises(ValueError, match="dataset has no rewards"):  # nor does it tell how its episodes ended
        BellmanReward.fit(reward, replace(base, terminated=None, truncated=None), total_timesteps=1)
    for fit in (CentredReward.fit, BellmanReward.fit):
        for name in ("total_timesteps", "batch_size", "width", "learning_rate"):
            with pytest.raises(ValueError, match=name):
                fit(reward, base, **{name: 0})  # type: ignore[arg-type]
