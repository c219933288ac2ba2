"""Windows come from one episode, padding is masked, splits are disjoint and nothing in a dataset can be changed.
The arrays count up, so that every value says which row it came from."""

import json
import time
from typing import Any

import numpy as np
import pytest

from rrpolicy.data import TrajectoryDataset, TrajectoryLayout

LENGTHS = [5, 1, 8, 4]
N = sum(LENGTHS)
EPISODES = np.repeat(np.arange(4), LENGTHS)
LAYOUT = TrajectoryLayout(2, 1, horizon=3)


def counting(lengths: list[int] | None = None, **fields: Any) -> TrajectoryDataset:
    """Row i holds observation (i, episode of i) and action (-i)."""
    lengths = lengths or LENGTHS
    rows = np.arange(sum(lengths))
    observations = np.stack([rows, np.repeat(np.arange(len(lengths)), lengths)], axis=1)
    return TrajectoryDataset.from_arrays(observations, -rows[:, None], episode_lengths=lengths, **fields)


def test_sizes() -> None:
    dataset = counting()
    assert (len(dataset), dataset.n_transitions, dataset.n_episodes) == (N, N, 4)
    assert (dataset.observation_dim, dataset.action_dim) == (2, 1)
    assert dataset.observations.dtype == dataset.actions.dtype == np.float32
    assert dataset.episode_lengths.dtype == np.int64
    assert dataset.rewards is None


def test_flags_end_episodes_and_the_tail_counts() -> None:
    terminals, timeouts = np.zeros(N, bool), np.zeros(N, int)
    terminals[[4, 13]] = True
    timeouts[[5, 13]] = 1
    arrays = counting()
    found = TrajectoryDataset.from_arrays(arrays.observations, arrays.actions, terminals=terminals, timeouts=timeouts)
    np.testing.assert_array_equal(found.episode_lengths, LENGTHS)
    only = TrajectoryDataset.from_arrays(arrays.observations, arrays.actions, terminals=terminals)
    np.testing.assert_array_equal(only.episode_lengths, [5, 9, 4])
    whole = TrajectoryDataset.from_arrays(arrays.observations, arrays.actions)
    np.testing.assert_array_equal(whole.episode_lengths, [N])
    terminals[-1] = True
    ended = TrajectoryDataset.from_arrays(arrays.observations, arrays.actions, terminals=terminals, timeouts=timeouts)
    np.testing.assert_array_equal(ended.episode_lengths, LENGTHS)


def test_episode_is_a_read_only_view() -> None:
    dataset = counting(rewards=np.arange(N))
    episode = dataset.episode(2)
    np.testing.assert_array_equal(episode["observations"][:, 0], np.arange(6, 14))
    np.testing.assert_array_equal(episode["rewards"], np.arange(6, 14))
    np.testing.assert_array_equal(dataset.episode(-1)["actions"][:, 0], -np.arange(14, 18))
    assert np.shares_memory(episode["observations"], dataset.observations)
    with pytest.raises(ValueError, match="read-only"):
        episode["observations"][0] = 0
    assert "rewards" not in counting().episode(0)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index={index}"):
            dataset.episode(index)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_immutable_and_independent_of_the_callers_arrays(dtype: type) -> None:
    arrays: list[np.ndarray] = [np.zeros(shape, dtype) for shape in ((3, 2), (3, 1), (3,))]
    observations, actions, rewards = arrays
    lengths, metadata = np.array([3]), {"goal": [1, 2]}
    dataset = TrajectoryDataset(observations, actions, lengths, rewards, metadata)
    for array in arrays:
        array += 1  # the caller's arrays stay writable, and are not the dataset's
    metadata["goal"].append(3)
    lengths[0] = 9
    for name in ("observations", "actions", "rewards", "episode_lengths"):
        array = getattr(dataset, name)
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(dataset, name), 0)
    assert (dataset.metadata, dataset.episode_lengths[0]) == ({"goal": [1, 2]}, 3)
    with pytest.raises(AttributeError):
        dataset.rewards = None  # type: ignore[misc]


@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_windows_never_cross_an_episode(horizon: int, stride: int) -> None:
    dataset, layout = counting(), TrajectoryLayout(2, 1, horizon, stride)
    wanted = [row for row in range(N) if row + layout.span <= N and EPISODES[row] == EPISODES[row + layout.span - 1]]
    if not wanted:
        with pytest.raises(ValueError, match=f"spans {layout.span} environment steps .* longest episode has 8"):
            dataset.window_starts(layout)
        return
    starts = dataset.window_starts(layout)
    assert starts.dtype == np.int64
    np.testing.assert_array_equal(starts, wanted)
    windows = dataset.windows(layout, starts)
    assert windows.mask.all()
    rows = starts[:, None] + np.arange(horizon) * stride
    np.testing.assert_array_equal(windows.observations[..., 0], rows)
    np.testing.assert_array_equal(windows.observations[..., 1], np.broadcast_to(EPISODES[starts][:, None], rows.shape))
    np.testing.assert_array_equal(windows.actions[..., 0], -rows)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_repeats_the_last_row_and_is_masked(stride: int) -> None:
    dataset, layout = counting(), TrajectoryLayout(2, 1, 3, stride)
    starts = dataset.window_starts(layout, padding=True)
    np.testing.assert_array_equal(starts, np.arange(N))
    windows = dataset.windows(layout, starts)
    last = np.cumsum(LENGTHS)[EPISODES][:, None] - 1
    rows = starts[:, None] + np.arange(3) * stride
    np.testing.assert_array_equal(windows.mask, rows <= last)
    np.testing.assert_array_equal(windows.observations[..., 0], np.minimum(rows, last))
    np.testing.assert_array_equal(windows.actions[..., 0], -np.minimum(rows, last))
    assert windows.mask[:, 0].all() and not windows.mask.all()


def test_windows_are_copies_in_the_order_asked_for() -> None:
    dataset = counting()
    windows = dataset.windows(LAYOUT, np.array([7, 0, 7]))
    np.testing.assert_array_equal(windows.observations[:, 0, 0], [7, 0, 7])
    windows.observations[:] = -1
    assert dataset.observations[7, 0] == 7
    assert dataset.windows(LAYOUT, np.array([], dtype=int)).mask.shape == (0, 3)


@pytest.mark.parametrize("starts", [np.array([-1]), np.array([N]), np.array([0.5]), np.array([[0]]), np.array([True])])
def test_wrong_starts_are_refused(starts: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"starts .* wanted"):
        counting().windows(LAYOUT, starts)


def test_layout_of_other_widths_is_refused() -> None:
    for call in (lambda d, layout: d.window_starts(layout), lambda d, layout: d.windows(layout, np.array([0]))):
        with pytest.raises(ValueError, match="layout has observation_dim=3, action_dim=1, wanted 2 and 1"):
            call(counting(), TrajectoryLayout(3, 1, 2))


def test_drawing_a_batch_is_fast() -> None:
    """A training step draws 128 windows of a million rows; 0.2 ms is the budget, tripled here for busy machines."""
    rng = np.random.default_rng(0)
    dataset = TrajectoryDataset.from_arrays(np.zeros((10**6, 4)), np.zeros((10**6, 2)), episode_lengths=[10**3] * 10**3)
    layout = TrajectoryLayout(4, 2, 16, 8)
    starts = dataset.window_starts(layout)
    seconds = []
    for _ in range(50):
        chosen = rng.choice(starts, 128)
        begin = time.perf_counter()
        dataset.windows(layout, chosen)
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 6e-4


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
def test_split_is_disjoint_by_episode_and_complete(fraction: float) -> None:
    dataset = counting(rewards=np.arange(N), metadata={"a": 1})
    train, held_out = dataset.split(fraction, seed=3)
    sides = [set(side.observations[:, 1]) for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {0, 1, 2, 3}
    assert len(sides[1]) == min(max(round(4 * fraction), 1), 3)
    assert sorted([*train.observations[:, 0], *held_out.observations[:, 0]]) == list(range(N))
    for side in (train, held_out):
        np.testing.assert_array_equal(side.rewards, side.observations[:, 0])
        np.testing.assert_array_equal(side.episode_lengths, np.unique(side.observations[:, 1], return_counts=True)[1])
        assert side.metadata == {"a": 1}


def test_split_depends_on_the_seed_alone() -> None:
    dataset = counting([2] * 30)
    held = [set(dataset.split(0.2, seed)[1].observations[:, 1]) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_split_refuses_what_it_cannot_divide() -> None:
    with pytest.raises(ValueError, match="1 episode, wanted at least 2"):
        counting([5]).split()
    for fraction in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction="):
            counting().split(fraction)


def test_subset_keeps_the_order_given() -> None:
    np.testing.assert_array_equal(counting().subset([3, 1]).observations[:, 0], [14, 15, 16, 17, 5])
    with pytest.raises(ValueError, match="episodes is empty"):
        counting().subset([])


def test_concatenate() -> None:
    one, two = counting(rewards=np.arange(N), metadata={"a": 1}), counting([3], rewards=np.ones(3))
    joined = TrajectoryDataset.concatenate([one, two])
    np.testing.assert_array_equal(joined.episode_lengths, [*LENGTHS, 3])
    np.testing.assert_array_equal(joined.observations[:, 0], [*range(N), 0, 1, 2])
    np.testing.assert_array_equal(joined.rewards, [*range(N), 1, 1, 1])
    assert joined.metadata == {"sources": [{"a": 1}, {}]}
    assert TrajectoryDataset.concatenate([one, counting()]).rewards is None
    with pytest.raises(ValueError, match="datasets is empty"):
        TrajectoryDataset.concatenate([])
    with pytest.raises(ValueError, match=r"\[\(2, 1\), \(4, 1\)\], wanted equal"):
        TrajectoryDataset.concatenate([one, TrajectoryDataset.from_arrays(np.zeros((2, 4)), np.zeros((2, 1)))])


def test_relabelling_changes_rewards_only() -> None:
    dataset = counting(metadata={"a": 1})
    relabelled = dataset.with_rewards(np.arange(N))
    np.testing.assert_array_equal(relabelled.rewards, np.arange(N))
    assert dataset.rewards is None
    assert np.shares_memory(relabelled.observations, dataset.observations)
    assert relabelled.with_rewards(None).rewards is None
    with pytest.raises(ValueError, match="rewards has 3 rows, wanted 18"):
        dataset.with_rewards(np.zeros(3))


def test_description_is_json_and_right() -> None:
    summary = json.loads(json.dumps(counting(rewards=np.ones(N), metadata={"a": 1}).describe()))
    assert (summary["n_transitions"], summary["n_episodes"]) == (N, 4)
    assert summary["episode_length"] == {"min": 1, "mean": 4.5, "max": 8}
    assert summary["episode_return"] == {"min": 1, "mean": 4.5, "max": 8, "std": pytest.approx(2.5)}
    assert (summary["observations"]["min"], summary["observations"]["max"]) == ([0, 0], [17, 3])
    assert summary["actions"]["mean"] == [-8.5]
    assert summary["metadata"] == {"a": 1}
    assert "episode_return" not in counting().describe()


GOOD: dict[str, Any] = {
    "observations": np.zeros((4, 2)),
    "actions": np.zeros((4, 1)),
    "rewards": np.zeros(4),
    "episode_lengths": [3, 1],
}


def poisoned(shape: tuple[int, ...], place: tuple[int, ...], value: float) -> np.ndarray:
    array = np.zeros(shape)
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"observations": poisoned((4, 2), (2, 1), np.nan)}, "observations holds nan at row 2, column 1"),
        ({"observations": poisoned((4, 2), (3, 0), 1e300)}, "observations holds inf at row 3, column 0"),
        ({"actions": poisoned((4, 1), (1, 0), -np.inf)}, "actions holds -inf at row 1, column 0"),
        ({"rewards": poisoned((4,), (3,), np.nan)}, "rewards holds nan at row 3,"),
        ({"observations": np.zeros((5, 2))}, "actions has 4 rows, wanted 5"),
        ({"rewards": np.zeros(3)}, "rewards has 3 rows, wanted 4"),
        ({"observations": np.zeros(4)}, r"observations has shape \(4,\)"),
        ({"observations": np.zeros((4, 0))}, "at least one column"),
        ({"actions": np.array([["a"]] * 4)}, "actions has shape .* dtype <U1"),
        ({"rewards": np.zeros((4, 1))}, r"rewards has shape \(4, 1\)"),
        ({"episode_lengths": [3, 2]}, "episode_lengths has shape .* sum 5.* add up to 4"),
        ({"episode_lengths": [4, 0]}, "at least 1"),
        ({"episode_lengths": [[4]]}, "episode_lengths has shape"),
        ({"episode_lengths": [2**62] * 4 + [3]}, "episode_lengths holds 4611686018427387904, .* add up to 4"),
        ({"episode_lengths": np.array([2**64 - 1, 5], np.uint64)}, "episode_lengths holds 18446744073709551615"),
        ({"episode_lengths": [2**70]}, "episode_lengths is .* dtype object"),
        ({"episode_lengths": [1.9, 2.9]}, r"episode_lengths is array\(\[1\.9, 2\.9\]\) of dtype float64"),
        ({"episode_lengths": [3.0, 1.0]}, "episode_lengths is .* dtype float64"),
        ({"episode_lengths": [True] * 4}, "episode_lengths is .* dtype bool"),
        ({"episode_lengths": ["3", "1"]}, "episode_lengths is .* dtype <U1"),
        ({"episode_lengths": [5, -1]}, "episode_lengths holds 5"),
        ({"episode_lengths": []}, r"episode_lengths has shape \(0,\)"),
        ({"episode_lengths": 4}, r"episode_lengths has shape \(\)"),
        ({"episode_lengths": [[1], [2, 1]]}, "episode_lengths is no array"),
        ({"episode_lengths": [None, 4]}, "episode_lengths is .* dtype object"),
        ({"terminals": [0, np.nan, 0, 0], "episode_lengths": None}, "terminals holds nan at row 1, wanted booleans"),
        ({"terminals": ["False"] * 4, "episode_lengths": None}, "terminals holds .*False.* dtype <U5"),
        ({"timeouts": [0, 0, 2, 0], "episode_lengths": None}, "timeouts holds 2 at row 2"),
        ({"timeouts": [0, -1, 0, 0], "episode_lengths": None}, "timeouts holds -1 at row 1"),
        ({"timeouts": [0, 0.5, 0, 0], "episode_lengths": None}, "timeouts holds 0.5 at row 1"),
        ({"timeouts": [None] * 4, "episode_lengths": None}, "timeouts holds .* dtype object"),
        ({"observations": np.zeros((4, 2), complex)}, "observations has shape .* dtype complex128"),
        ({"observations": np.zeros((4, 2), object)}, "observations has shape .* dtype object"),
        ({"observations": np.zeros((4, 2), "M8[s]")}, "observations has shape .* dtype datetime64"),
        ({"observations": [[1, 2], [3]]}, "observations is no array"),
        ({"observations": 3.0}, r"observations has shape \(\)"),
        ({"metadata": "text"}, "metadata is text, wanted a mapping"),
        ({"metadata": {"a": object()}}, "metadata holds what is no JSON: .*object"),
        ({"metadata": {"a": float("nan")}}, "metadata holds what is no JSON"),
        ({"metadata": {(1, 2): 3}}, "metadata holds what is no JSON: keys must be"),
        ({"terminals": np.zeros(4)}, "episode_lengths was given with terminals"),
        ({"terminals": np.zeros(3), "episode_lengths": None}, r"terminals has shape \(3,\), wanted \(4,\)"),
        ({"timeouts": np.zeros((4, 1)), "episode_lengths": None}, r"timeouts has shape \(4, 1\)"),
    ],
)
def test_wrong_arrays_are_named_with_their_place(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrajectoryDataset.from_arrays(**{**GOOD, **fields})


def test_no_transition_at_all() -> None:
    with pytest.raises(ValueError, match="observations has 0 rows"):
        TrajectoryDataset.from_arrays(np.zeros((0, 2)), np.zeros((0, 1)))
