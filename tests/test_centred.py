"""ρ less its mean over the base's actions."""

from typing import Any

import numpy as np
import pytest

from rrpolicy import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards import CentredReward

LENGTH, N_EPISODES = 20, 100


class Sum:
    """ρ = 3 s₀² + 2 a, nats: mostly a preference of states."""

    layout = TrajectoryLayout(2, 1, horizon=4)

    def predict(self, observations: Any, actions: Any = None) -> Any:
        return (3 * np.asarray(observations)[:, 0] ** 2 + 2 * np.asarray(actions)[:, 0]).astype(np.float32)


class OfStates(Sum):
    layout = TrajectoryLayout(2, 1, horizon=4, plan_actions=False)


@pytest.fixture(scope="module")
def base() -> TrajectoryDataset:
    """Actions with the mean s₁ and the standard deviation 1."""
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (LENGTH * N_EPISODES, 2)) * [1, 100]  # in units of their own
    actions = states[:, 1:] / 100 + rng.normal(size=(len(states), 1))
    return TrajectoryDataset.from_arrays(states, actions, episode_lengths=[LENGTH] * N_EPISODES)


@pytest.fixture(scope="module")
def centred(base: TrajectoryDataset) -> CentredReward:
    return CentredReward.fit(Sum(), base, total_timesteps=400, width=32)


def test_what_is_left_is_what_the_action_adds(centred: CentredReward) -> None:
    rng = np.random.default_rng(1)
    states, actions = rng.uniform(-1, 1, (500, 2)) * [1, 100], rng.normal(size=(500, 1))
    mean = 3 * states[:, 0] ** 2 + 2 * states[:, 1] / 100  # E ρ(s, a) over the base's actions
    assert np.sqrt(np.mean((centred.mean_over_base(states) - mean) ** 2)) < 0.25
    added = 2 * (actions[:, 0] - states[:, 1] / 100)
    assert np.corrcoef(centred.predict(states, actions), added)[0, 1] > 0.98
    assert np.corrcoef(Sum().predict(states, actions), added)[0, 1] < 0.9  # ρ itself prefers states


def test_it_says_how_much_the_state_explains(centred: CentredReward) -> None:
    """Var b / (Var b + Var 2a | s) with Var 3 s₀² = 0.8, Var 2 s₁ = 4/3 and the noise's 4."""
    assert centred.explained == pytest.approx((0.8 + 4 / 3) / (0.8 + 4 / 3 + 4), abs=0.1)
    assert centred.layout == Sum.layout and centred.heads == ("step",)


def test_the_seed_decides(base: TrajectoryDataset) -> None:
    fits = [CentredReward.fit(Sum(), base, total_timesteps=5, width=8, seed=seed) for seed in (1, 1, 2)]
    first, same, other = (fit.mean_over_base(base.observations[:9]) for fit in fits)
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_what_cannot_be_centred_is_refused(base: TrajectoryDataset) -> None:
    with pytest.raises(ValueError, match="states alone"):
        CentredReward.fit(OfStates(), base)
    with pytest.raises(ValueError, match="total_timesteps"):
        CentredReward.fit(Sum(), base, total_timesteps=0)
