"""What followed each row of recorded episodes, and which of them ended for good."""

from typing import Any

import numpy as np
import pytest

from rrpolicy import TrajectoryDataset
from rrpolicy.data.transitions import episode_returns, finished, terminals, transitions

LENGTHS = (3, 5, 2, 1)


def numbered(metadata: Any = None, lengths: tuple[int, ...] = LENGTHS) -> TrajectoryDataset:
    """Row i observes i, acts i / 100 and is paid i."""
    rows = np.arange(sum(lengths), dtype=np.float32)
    return TrajectoryDataset.from_arrays(
        rows[:, None], rows[:, None] / 100, rows, episode_lengths=lengths, metadata=metadata
    )


def test_episodes_are_finished_whose_returns_were_told() -> None:
    assert episode_returns(numbered()).tolist() == [3, 25, 17, 10]
    assert finished(numbered()).tolist() == [True] * 4  # nothing is told: as in data of others
    assert finished(numbered({"returns": [25.0, 3.0000001]})).tolist() == [True, True, False, False]
    mixture = {"agents": [{"returns": [17.0]}, {"returns": [3.0, 99.0]}]}
    assert finished(numbered(mixture)).tolist() == [True, False, True, False]
    assert not finished(numbered({"returns": []})).any()


def test_short_finished_episodes_ended_for_good() -> None:
    assert np.flatnonzero(terminals(numbered(), time_limit=5)).tolist() == [2, 9, 10]
    assert np.flatnonzero(terminals(numbered({"returns": [3.0, 25.0]}), time_limit=5)).tolist() == [2]
    assert np.flatnonzero(terminals(numbered({"returns": [3.0, 25.0]}), time_limit=None)).tolist() == [2, 7]


def test_each_row_knows_what_followed_or_is_left_out() -> None:
    data = numbered({"returns": [3.0, 25.0]})
    known = transitions(data.with_rewards(-data.observations[:, 0]), terminals(data, time_limit=5))
    assert known.observations[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]  # ends of cut and of open episodes are unknown
    assert known.terminals.tolist() == [False, False, True] + [False] * 5
    going_on = ~known.terminals
    assert np.array_equal(known.next_observations[going_on], known.observations[going_on] + 1)
    assert np.array_equal(known.rewards, -known.observations[:, 0])
    assert known.actions[:, 0] == pytest.approx(known.observations[:, 0] / 100)


def test_what_says_too_little_is_refused() -> None:
    for call in (lambda data: finished(data), lambda data: transitions(data, np.zeros(len(data), bool))):
        with pytest.raises(ValueError, match="dataset has no rewards"):
            call(numbered().with_rewards(None))
    lonely = numbered(lengths=(1, 1))
    with pytest.raises(ValueError, match="dataset has 2 rows and of none is it known what followed"):
        transitions(lonely, np.zeros(2, bool))
