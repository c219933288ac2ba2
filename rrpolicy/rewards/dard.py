"""DARD: EPIC with states that the dynamics can reach (Wulfe, Balakrishna, Ellis, Mercat, McAllister, Gaidon 2022).

EPIC's canonical form evaluates rewards at transitions between independent states, which no dynamics has and where an
extracted reward is an extrapolation. DARD draws the states that follow from a model of the transitions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rrpolicy.common.arguments import number, whole
from rrpolicy.common.typing import Array
from rrpolicy.rewards.epic import MIN_SPREAD, Coverage, pearson_distance
from rrpolicy.rewards.protocol import TransitionReward

Dynamics = Callable[[Array, Array], Array]
"""(states (n, d), actions (n, a)) -> states that follow (n, d), environment units."""


def dard_distance(
    first: TransitionReward,
    second: TransitionReward,
    coverage: Coverage,
    dynamics: Dynamics,
    discount: float = 0.99,
    n_canonical: int = 16,
    seed: int = 0,
) -> float:
    """
    DARD pseudometric (Wulfe et al. 2022, definition 5): Pearson's distance of dynamics-aware canonical rewards.

    Rewards that differ by potential shaping with the same discount, a positive factor and a constant have distance 0.

    :param first: one reward
    :param second: another
    :param coverage: transitions at which they are compared; its actions are also those of the canonical form
    :param dynamics: what follows from states and actions, such as a simulator, or a model of it
    :param discount: γ in [0, 1]
    :param n_canonical: samples of (A, S') for the expectations, the same for both rewards
    :param seed: of those samples
    :return: distance in [0, 1]
    :raises ValueError: for a discount out of range, dynamics that return another shape or numbers that are not finite,
        and as :func:`epic_distance`
    """
    discount, n = number("discount", discount, lowest=0), whole("n_canonical", n_canonical, 1)
    if discount > 1:
        raise ValueError(f"discount is {discount!r}, it must lie between 0 and 1")
    chosen = np.random.default_rng(seed).integers(len(coverage.actions), size=(2, n, len(coverage.states)))
    return pearson_distance(*(_canonical(one, coverage, dynamics, discount, chosen) for one in (first, second)))


def _canonical(
    reward: TransitionReward, coverage: Coverage, dynamics: Dynamics, discount: float, chosen: Array
) -> Array:
    """
    The canonical form of each transition (Wulfe et al. 2022, definition 4), with S' ∼ T(s, A) and S'' ∼ T(s', A):

        C(R)(s, a, s') = R(s, a, s') + E[γ R(s', A, S'') - R(s, A, S') - γ R(S', A, S'')].
    """
    states, following = coverage.states, coverage.next_states
    expected = np.zeros(len(states))
    for first, second in zip(*chosen, strict=True):
        here, there = coverage.actions[first], coverage.actions[second]
        near, far = _followed(dynamics, states, here), _followed(dynamics, following, there)
        for sign, triple in ((discount, (following, there, far)), (-1.0, (states, here, near))):
            expected += sign * np.asarray(reward(*triple), dtype=np.float64)
        expected -= discount * np.asarray(reward(near, there, far), dtype=np.float64)
    plain = np.asarray(reward(states, coverage.actions, following), dtype=np.float64)
    shaped = plain + expected / chosen.shape[1]
    if shaped.shape != (len(states),) or not np.isfinite(shaped).all():
        raise ValueError(f"reward must give finite numbers ({len(states)},), got shape {shaped.shape} or NaN or inf")
    scale = max(1.0, float(np.abs(plain).max()))
    return np.zeros(len(states)) if np.ptp(shaped) <= MIN_SPREAD * scale else shaped


def _followed(dynamics: Dynamics, states: Array, actions: Array) -> Array:
    found = np.asarray(dynamics(states, actions))
    if found.shape != states.shape or not np.isfinite(found).all():
        raise ValueError(f"dynamics returned {found.shape} for states {states.shape}, or NaN or inf")
    return found
