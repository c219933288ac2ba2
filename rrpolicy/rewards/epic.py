"""EPIC: how far two rewards are apart when shaping and scale do not count (Gleave, Dennis, Legg, Russell, Leike 2021).

Both rewards are canonicalised over a coverage distribution, which removes potential shaping and constants, and then
compared by Pearson's distance, which removes the scale; no policy is ever trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.rewards.protocol import TransitionReward

MIN_SPREAD = 1e-12  # relative; a reward that varies less is a constant with rounding errors


@dataclass(frozen=True, eq=False)
class Coverage:
    """
    Transitions over which rewards are compared.

    :param states: (n, d) in environment units
    :param actions: (n, a)
    :param next_states: (n, d)
    :raises ValueError: when the numbers of rows differ or are below 2, naming the array
    """

    states: Array
    actions: Array
    next_states: Array

    def __post_init__(self) -> None:
        for name in ("states", "actions", "next_states"):
            array = getattr(self, name)
            if array.ndim != 2 or len(array) != len(self.states) or len(array) < 2:
                raise ValueError(f"{name} has shape {array.shape}, wanted ({max(2, len(self.states))}, width)")

    @classmethod
    def from_dataset(cls, dataset: TrajectoryDataset, n: int = 2048, seed: int = 0) -> Coverage:
        """
        Random transitions of a dataset.

        :param n: how many, drawn with replacement
        :raises ValueError: when no episode has two rows
        """
        last = np.zeros(dataset.n_transitions, dtype=bool)
        last[np.cumsum(dataset.episode_lengths) - 1] = True  # has no next state
        rows = np.flatnonzero(~last)
        if not rows.size:
            raise ValueError("dataset has no episode of at least 2 transitions, so none with a next state")
        chosen = np.random.default_rng(seed).choice(rows, size=n)
        return cls(dataset.observations[chosen], dataset.actions[chosen], dataset.observations[chosen + 1])


def state_reward(function: Callable[[Array], Array]) -> TransitionReward:
    """
    A reward of the state that is reached.

    :param function: states (n, d) -> rewards (n,), e.g. ``reward.predict``
    """
    return lambda states, actions, next_states: function(next_states)


def epic_distance(
    first: TransitionReward,
    second: TransitionReward,
    coverage: Coverage,
    discount: float = 0.99,
    n_canonical: int = 64,
    seed: int = 0,
) -> float:
    """
    EPIC pseudometric (Gleave et al. 2021, definition 4.3).

    Rewards that differ by potential shaping with the same discount, a positive factor and a constant have distance 0,
    a reward and its negative 1, unrelated ones sqrt(1/2).

    :param first: one reward
    :param second: another
    :param coverage: transitions at which they are compared; its states and actions also make the canonical form
    :param discount: γ in [0, 1]
    :param n_canonical: samples of (S, A, S') for the expectations of the canonical form, the same for both rewards
    :param seed: of those samples
    :return: distance in [0, 1]
    :raises ValueError: for a discount out of range, a reward that is not finite, or one that is equivalent to a
        constant, for which the distance is not defined
    """
    forms = [canonical(reward, coverage, discount, n_canonical, seed) for reward in (first, second)]
    return pearson_distance(*forms)


def canonical(
    reward: TransitionReward, coverage: Coverage, discount: float = 0.99, n_canonical: int = 64, seed: int = 0
) -> Array:
    """
    Canonically shaped reward (Gleave et al. 2021, definition 4.1) of each transition of the coverage:

        C(R)(s, a, s') = R(s, a, s') + E[γ R(s', A, S') - R(s, A, S') - γ R(S, A, S')].

    The same samples serve all three expectations, so shaping cancels exactly and not only on average.

    :return: (n,)
    """
    if not 0 <= discount <= 1:
        raise ValueError(f"discount is {discount!r}, it must lie between 0 and 1")
    if n_canonical < 1:
        raise ValueError(f"n_canonical is {n_canonical!r}, it must be at least 1")
    rng = np.random.default_rng(seed)
    n = len(coverage.states)
    start, acting, end = (rng.integers(n, size=n_canonical) for _ in range(3))  # independent, as S, A and S' are
    actions, ends = coverage.actions[acting], coverage.next_states[end]

    def expected(states: Array) -> Array:
        """E R(s, A, S') for each state."""
        repeated = np.repeat(states, n_canonical, axis=0)
        tiled = np.tile(actions, (len(states), 1)), np.tile(ends, (len(states), 1))
        return np.asarray(reward(repeated, *tiled), dtype=np.float64).reshape(len(states), n_canonical).mean(axis=1)

    plain = np.asarray(reward(coverage.states, coverage.actions, coverage.next_states), dtype=np.float64)
    constant = discount * expected(coverage.states[start]).mean()
    shaped = plain + discount * expected(coverage.next_states) - expected(coverage.states) - constant
    if shaped.shape != (n,) or not np.isfinite(shaped).all():
        raise ValueError(f"reward must give finite numbers ({n},), got shape {shaped.shape} or NaN or inf")
    scale = max(1.0, float(np.abs(plain).max()))
    return np.zeros(n) if np.ptp(shaped) <= MIN_SPREAD * scale else shaped


def pearson_distance(first: Array, second: Array) -> float:
    """
    sqrt((1 - r) / 2) of Pearson's correlation r.

    :param first: (n,)
    :param second: (n,)
    :return: in [0, 1]
    :raises ValueError: when one of them is constant
    """
    # half the distance of the standardised vectors: exact near 0, where 1 - r would lose half the digits
    units = []
    for name, values in (("first", first), ("second", second)):
        centred = np.asarray(values, dtype=np.float64) - np.mean(values)
        norm = float(np.linalg.norm(centred))
        if norm == 0:
            raise ValueError(f"the {name} reward is a constant, so it has no distance to another one")
        units.append(centred / norm)
    return float(np.clip(np.linalg.norm(units[0] - units[1]) / 2, 0.0, 1.0))
