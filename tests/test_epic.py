"""EPIC on rewards whose distance is known: shaping and scale do not count, the sign and the rest do."""

from typing import Any

import numpy as np
import pytest

from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.rewards.epic import Coverage, canonical, epic_distance, pearson_distance, state_reward

RNG = np.random.default_rng(0)
COVERAGE = Coverage(RNG.normal(size=(3000, 3)), RNG.normal(size=(3000, 2)), RNG.normal(size=(3000, 3)))
GAMMA = 0.9


def reward(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
    return np.sin(states[:, 0]) + states[:, 1] * actions[:, 0] - actions[:, 1] ** 2 + next_states[:, 2]


def shaped(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
    """The same with another scale, a constant and a potential that varies much more than it."""
    now, then = (20 * np.cos(s[:, 1]) + s[:, 0] ** 2 for s in (states, next_states))
    return 3.0 * (reward(states, actions, next_states) + GAMMA * then - now) + 7.0


def distance(first: Any, second: Any, **options: Any) -> float:
    return epic_distance(first, second, COVERAGE, **{"discount": GAMMA, "n_canonical": 16, **options})


def test_shaping_and_scale_do_not_count() -> None:
    assert distance(reward, reward) == 0
    assert distance(reward, lambda *transition: 0.01 * reward(*transition) - 5) == pytest.approx(0, abs=1e-10)
    assert distance(reward, shaped) == pytest.approx(0, abs=1e-10)
    assert distance(reward, shaped, discount=0.5) > 0.3  # shaping for another discount does count


def test_the_negative_is_as_far_as_can_be() -> None:
    assert distance(reward, lambda *transition: -reward(*transition)) == pytest.approx(1)
    assert distance(lambda *transition: -reward(*transition), shaped) == pytest.approx(1)


def test_an_unrelated_reward_is_half_way() -> None:
    other = state_reward(lambda states: states[:, 0])
    assert distance(other, state_reward(lambda states: states[:, 2])) == pytest.approx(np.sqrt(0.5), abs=0.03)
    mixed = state_reward(lambda states: states[:, 0] + states[:, 2])  # correlation sqrt(1/2) with each
    assert distance(other, mixed) == pytest.approx(np.sqrt((1 - np.sqrt(0.5)) / 2), abs=0.03)


def test_it_is_a_pseudometric() -> None:
    third = state_reward(lambda states: states[:, 2] ** 3)
    one, two, three = distance(reward, shaped), distance(shaped, third), distance(reward, third)
    assert distance(third, reward) == pytest.approx(three)
    assert three <= one + two + 1e-12 and two == pytest.approx(three, abs=1e-9)


def test_the_canonical_form_of_a_state_reward_is_the_reward_up_to_a_constant() -> None:
    got = canonical(state_reward(lambda states: states[:, 0]), COVERAGE, GAMMA, 8)
    assert np.ptp(got - COVERAGE.next_states[:, 0]) < 1e-12
    mean_zero = canonical(shaped, COVERAGE, GAMMA, 4) - 3 * canonical(reward, COVERAGE, GAMMA, 4)
    assert np.ptp(mean_zero) < 1e-9


def test_constants_have_no_distance() -> None:
    def potential(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        return GAMMA * next_states[:, 0] - states[:, 0]

    for nothing in (lambda states, *_: np.full(len(states), 3.0), potential):
        with pytest.raises(ValueError, match="the second reward is a constant"):
            distance(reward, nothing)
    with pytest.raises(ValueError, match="the first reward is a constant"):
        pearson_distance(np.ones(4), np.arange(4.0))


def test_coverage_comes_from_neighbouring_rows() -> None:
    rows = np.arange(12.0)[:, None]
    dataset = TrajectoryDataset.from_arrays(rows, rows / 100, episode_lengths=[5, 1, 6])
    coverage = Coverage.from_dataset(dataset, 500, seed=1)
    assert coverage.states.shape == (500, 1)
    np.testing.assert_array_equal(coverage.next_states, coverage.states + 1)
    np.testing.assert_allclose(coverage.actions, coverage.states / 100, rtol=1e-6)
    assert set(coverage.states[:, 0]) == {0, 1, 2, 3, 6, 7, 8, 9, 10}
    lonely = TrajectoryDataset.from_arrays(rows, rows, episode_lengths=[1] * 12)
    with pytest.raises(ValueError, match="no episode of at least 2"):
        Coverage.from_dataset(lonely)


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match=r"actions has shape \(2, 1\), wanted \(3, width\)"):
        Coverage(np.zeros((3, 1)), np.zeros((2, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"discount is 1\.5"):
        distance(reward, reward, discount=1.5)
    with pytest.raises(ValueError, match="n_canonical is 0"):
        distance(reward, reward, n_canonical=0)
    with pytest.raises(ValueError, match="must give finite numbers"):
        distance(state_reward(lambda states: np.full(len(states), np.nan)), reward)
