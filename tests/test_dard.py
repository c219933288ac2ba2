"""DARD on rewards whose distances are known, and where EPIC is misled by transitions that no dynamics has."""

import numpy as np
import pytest

from rrpolicy.common.stats import pearson
from rrpolicy.rewards.metrics import Coverage, dard_distance, epic_distance

RNG = np.random.default_rng(0)
STATES, ACTIONS = RNG.uniform(-1, 1, (400, 2)), RNG.uniform(-1, 1, (400, 2))


def moved(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    return states + 0.1 * actions


COVERAGE = Coverage(STATES, ACTIONS, moved(STATES, ACTIONS))


def goal(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
    return -np.linalg.norm(next_states - 0.3, axis=1)


def potential(states: np.ndarray) -> np.ndarray:
    return np.sin(3 * states[:, 0]) + states[:, 1] ** 2


def shaped(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
    return 2 * goal(states, actions, next_states) + 0.9 * potential(next_states) - potential(states) + 5


def test_shaping_scale_and_constants_do_not_count() -> None:
    assert dard_distance(goal, shaped, COVERAGE, moved, 0.9) == pytest.approx(0, abs=1e-6)
    assert dard_distance(goal, lambda *step: -goal(*step), COVERAGE, moved, 0.9) == pytest.approx(1)
    assert dard_distance(goal, shaped, COVERAGE, moved, 0.5) > 0.1  # shaped with another discount


def test_unrelated_rewards_are_as_far_as_uncorrelated_numbers() -> None:
    other = RNG.normal(size=(3, 50))

    def noise(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        return np.sin(1e4 * (states @ other[0, :2] + actions @ other[1, :2]))

    assert dard_distance(goal, noise, COVERAGE, moved) == pytest.approx(0.5**0.5, abs=0.08)


def test_what_a_reward_says_of_impossible_transitions_does_not_count() -> None:
    def wild(states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> np.ndarray:
        far = np.linalg.norm(next_states - states, axis=1) > 0.5  # more than three actions move
        return goal(states, actions, next_states) + 50 * far * np.sin(9 * states[:, 0])

    assert dard_distance(goal, wild, COVERAGE, moved) == pytest.approx(0, abs=1e-6)
    assert epic_distance(goal, wild, COVERAGE) > 0.3


def test_wrong_dynamics_and_discounts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dynamics returned \(400,\) for states \(400, 2\)"):
        dard_distance(goal, shaped, COVERAGE, lambda states, actions: states[:, 0])
    with pytest.raises(ValueError, match=r"discount is 1\.5, it must lie between 0 and 1"):
        dard_distance(goal, shaped, COVERAGE, moved, 1.5)


def test_pearson_is_numpy_s_and_knows_constants() -> None:
    first, second = RNG.normal(size=(2, 50))
    assert pearson(first, second) == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert pearson(first, 3 * first + 1) == pytest.approx(1) and np.isnan(pearson(first, np.ones(50)))
    with pytest.raises(ValueError, match="equally long, got 50 and 3"):
        pearson(first, np.ones(3))
