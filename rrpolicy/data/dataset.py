"""Recorded behaviour as one immutable value: flat float32 arrays in environment units plus the episode lengths.
Windows are drawn by fancy indexing, never across the end of an episode; what padding adds is masked."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rrpolicy.common.messages import printable
from rrpolicy.data.layout import TrajectoryLayout


class Windows(NamedTuple):
    """A batch of n windows in environment units.

    ``observations`` (n, H, obs_dim), ``actions`` (n, H, action_dim), ``mask`` (n, H) True where a row is real.
    """

    observations: np.ndarray
    actions: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class TrajectoryDataset:
    """Transitions of whole episodes, one after the other. Row i is the observation *before* ``actions[i]``.

    :param observations: ``(N, obs_dim)``, environment units; copied to read-only float32
    :param actions: ``(N, action_dim)``, environment units
    :param episode_lengths: ``(E,)`` transitions in each episode, all at least 1, with sum N
    :param rewards: ``(N,)`` or ``None``
    :param metadata: JSON values that describe the origin
    :raises ValueError: naming array and row, for wrong shapes, NaN or infinite values, lengths that are no whole
        numbers, metadata that is no JSON, or no transition at all
    """

    observations: np.ndarray
    actions: np.ndarray
    episode_lengths: np.ndarray
    rewards: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "observations", _frozen("observations", self.observations, 2))
        object.__setattr__(self, "actions", _frozen("actions", self.actions, 2))
        if self.rewards is not None:
            object.__setattr__(self, "rewards", _frozen("rewards", self.rewards, 1))
        for name in ("actions", "rewards"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.observations):
                raise ValueError(f"{name} has {len(array)} rows, wanted {len(self.observations)} as in observations")
        if len(self.observations) == 0:
            raise ValueError("observations has 0 rows, wanted at least one transition")
        object.__setattr__(self, "episode_lengths", _lengths(self.episode_lengths, len(self.observations)))
        object.__setattr__(self, "metadata", _plain(self.metadata))

    @classmethod
    def from_arrays(
        cls,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray | None = None,
        terminals: np.ndarray | None = None,
        timeouts: np.ndarray | None = None,
        episode_lengths: np.ndarray | Sequence[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "TrajectoryDataset":
        """Build from flat arrays; episodes come from the lengths, or end after each flagged row (a tail counts too).

        :param observations: ``(N, obs_dim)``, the observation before each action
        :param actions: ``(N, action_dim)``
        :param rewards: ``(N,)``
        :param terminals: ``(N,)`` booleans, or 0 and 1, True at an episode's last transition
        :param timeouts: ``(N,)`` booleans, True where the episode was cut off
        :param episode_lengths: ``(E,)`` instead of flags; with neither, all rows are one episode
        :param metadata: JSON values that describe the origin
        :raises ValueError: for wrong arrays, or for flags and lengths together
        """
        rows = _array("observations", observations)
        if rows.ndim == 0:
            raise ValueError(f"observations has shape () and dtype {rows.dtype}, wanted numbers (N, width)")
        count = len(rows)
        if episode_lengths is None:
            ends = np.zeros(count, dtype=bool)
            for name, flags in (("terminals", terminals), ("timeouts", timeouts)):
                if flags is not None:
                    ends |= _flags(name, flags, count)
            ends[-1:] = True
            episode_lengths = np.diff(np.flatnonzero(ends), prepend=-1)
        elif terminals is not None or timeouts is not None:
            raise ValueError("episode_lengths was given with terminals or timeouts, wanted one of the two")
        lengths = _array("episode_lengths", episode_lengths)
        return cls(observations, actions, lengths, rewards, _plain({} if metadata is None else metadata))

    @property
    def n_transitions(self) -> int:
        """N, transitions in all episodes."""
        return len(self.observations)

    @property
    def n_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.episode_lengths)

    @property
    def observation_dim(self) -> int:
        """Width of an observation."""
        return int(self.observations.shape[1])

    @property
    def action_dim(self) -> int:
        """Width of an action."""
        return int(self.actions.shape[1])

    def __len__(self) -> int:
        return self.n_transitions

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """One episode as read-only views: ``observations``, ``actions`` and, where known, ``rewards``.

        :param index: episode number, negative from the end
        :raises IndexError: when there is no such episode
        """
        if not -self.n_episodes <= index < self.n_episodes:
            raise IndexError(f"index={index}, wanted an episode from 0 to {self.n_episodes - 1}")
        stop = int(self._stops[index])
        rows = slice(stop - int(self.episode_lengths[index]), stop)
        views = {"observations": self.observations[rows], "actions": self.actions[rows]}
        return views if self.rewards is None else {**views, "rewards": self.rewards[rows]}

    def window_starts(self, layout: TrajectoryLayout, padding: bool = False) -> np.ndarray:
        """Rows from which a window can be drawn.

        :param layout: gives horizon and stride
        :param padding: whether a window may run past its episode's end (its last rows are then masked)
        :return: ``(W,)`` int64, ascending, W at least 1
        :raises ValueError: when no episode is long enough, or the layout was made for other widths
        """
        self._check_layout(layout)
        rows = np.arange(self.n_transitions)
        if padding:
            return rows
        starts = rows[rows + layout.span - 1 <= self._last_rows]
        if len(starts) == 0:
            longest = int(self.episode_lengths.max())
            raise ValueError(
                f"no window fits: layout spans {layout.span} environment steps (horizon={layout.horizon}, "
                f"stride={layout.stride}), the longest episode has {longest}; wanted a shorter span or padding=True"
            )
        return starts

    def windows(self, layout: TrajectoryLayout, starts: np.ndarray) -> Windows:
        """Draw windows; past an episode's end rows repeat its last one and the mask is False.

        :param layout: gives horizon and stride
        :param starts: ``(n,)`` row numbers, such as a sample of :meth:`window_starts`
        :raises ValueError: for starts that are not rows
        """
        self._check_layout(layout)
        starts = np.asarray(starts)
        if starts.ndim != 1 or starts.dtype.kind not in "iu":
            raise ValueError(f"starts has shape {starts.shape} and dtype {starts.dtype}, wanted integers (n,)")
        if len(starts) and (starts.min() < 0 or starts.max() >= self.n_transitions):
            raise ValueError(f"starts run from {starts.min()} to {starts.max()}, wanted 0 to {self.n_transitions - 1}")
        rows = starts[:, None] + np.arange(layout.horizon) * layout.stride
        last = self._last_rows[starts][:, None]
        mask = rows <= last
        np.minimum(rows, last, out=rows)
        return Windows(self.observations.take(rows, axis=0), self.actions.take(rows, axis=0), mask)

    def subset(self, episodes: np.ndarray | Sequence[int]) -> "TrajectoryDataset":
        """The dataset of some episodes, in the order given.

        :param episodes: episode numbers, at least one
        """
        views = [self.episode(int(index)) for index in episodes]
        if not views:
            raise ValueError("episodes is empty, wanted at least one episode")
        joined = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
        lengths = np.asarray([len(view["actions"]) for view in views])
        return TrajectoryDataset(episode_lengths=lengths, metadata=self.metadata, **joined)

    def split(self, fraction: float = 0.1, seed: int = 0) -> tuple["TrajectoryDataset", "TrajectoryDataset"]:
        """Divide by episode, so that no held-out row was ever a neighbour of a training row.

        :param fraction: share of the episodes to hold out, between 0 and 1; at least one is held out and one kept
        :param seed: chooses the episodes
        :return: (train, held out)
        :raises ValueError: with a single episode or another fraction
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction={fraction}, wanted a number between 0 and 1")
        if self.n_episodes < 2:
            raise ValueError(f"the dataset has {self.n_episodes} episode, wanted at least 2 for a split by episode")
        count = min(max(round(fraction * self.n_episodes), 1), self.n_episodes - 1)
        order = np.random.default_rng(seed).permutation(self.n_episodes)
        return self.subset(np.sort(order[count:])), self.subset(np.sort(order[:count]))

    def with_rewards(self, rewards: np.ndarray | None) -> "TrajectoryDataset":
        """The same transitions with other rewards, as after relabelling.

        :param rewards: ``(N,)`` or ``None``
        """
        return replace(self, rewards=rewards)

    @staticmethod
    def concatenate(datasets: "Sequence[TrajectoryDataset]") -> "TrajectoryDataset":
        """All episodes of several datasets; rewards survive only where every one has them.

        :param datasets: at least one, with equal widths
        :raises ValueError: when the widths differ or the sequence is empty
        """
        if not datasets:
            raise ValueError("datasets is empty, wanted at least one")
        widths = [(dataset.observation_dim, dataset.action_dim) for dataset in datasets]
        if len(set(widths)) > 1:
            raise ValueError(f"datasets have (observation_dim, action_dim) {widths}, wanted equal ones")
        rewards = [dataset.rewards for dataset in datasets if dataset.rewards is not None]
        return TrajectoryDataset(
            np.concatenate([dataset.observations for dataset in datasets]),
            np.concatenate([dataset.actions for dataset in datasets]),
            np.concatenate([dataset.episode_lengths for dataset in datasets]),
            np.concatenate(rewards) if len(rewards) == len(datasets) else None,
            {"sources": [dataset.metadata for dataset in datasets]},
        )

    def describe(self) -> dict[str, Any]:
        """Statistics as JSON values: sizes, episode lengths, ranges of each column, returns where known."""
        lengths = self.episode_lengths
        summary: dict[str, Any] = {
            "n_transitions": self.n_transitions,
            "n_episodes": self.n_episodes,
            "episode_length": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
            "observations": _columns(self.observations),
            "actions": _columns(self.actions),
        }
        if self.rewards is not None:
            returns = np.add.reduceat(self.rewards.astype(np.float64), self._stops - lengths)
            summary["episode_return"] = {
                name: float(getattr(returns, name)()) for name in ("min", "mean", "max", "std")
            }
        return {**summary, "metadata": copy.deepcopy(self.metadata)}

    @cached_property
    def _stops(self) -> np.ndarray:
        return np.cumsum(self.episode_lengths)

    @cached_property
    def _last_rows(self) -> np.ndarray:
        """(N,) the last row of each row's episode."""
        return np.repeat(self._stops - 1, self.episode_lengths)

    def _check_layout(self, layout: TrajectoryLayout) -> None:
        if (layout.observation_dim, layout.action_dim) != (self.observation_dim, self.action_dim):
            raise ValueError(
                f"layout has observation_dim={layout.observation_dim}, action_dim={layout.action_dim}, "
                f"wanted {self.observation_dim} and {self.action_dim} as in the dataset"
            )


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:  # rows of unequal lengths, or what has no numbers at all
        raise ValueError(f"{name} is no array: {printable(error)}") from error


def _frozen(name: str, values: np.ndarray, ndim: int) -> np.ndarray:
    """A read-only float32 copy, or the array itself where it already is one that nobody can write to."""
    array = _array(name, values)
    if array.ndim != ndim or array.dtype.kind not in "fiub":
        wanted = "(N, width)" if ndim == 2 else "(N,)"
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, wanted numbers {wanted}")
    if ndim == 2 and array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}, wanted at least one column")
    if array.flags.writeable or array.base is not None or array.dtype != np.float32:
        with np.errstate(over="ignore"):  # a number too large for float32 becomes inf, which is refused below
            array = np.array(array, dtype=np.float32, order="C")
        array.flags.writeable = False
    finite = np.isfinite(array)
    if not finite.all():
        where = np.argwhere(~finite)[0]
        place = f"row {where[0]}" + (f", column {where[1]}" if ndim == 2 else "")
        raise ValueError(f"{name} holds {array[tuple(where)]} at {place}, wanted finite values")
    return array


def _lengths(values: Any, count: int) -> np.ndarray:
    """A read-only int64 copy of whole numbers that add up to ``count``."""
    lengths, wanted = _array("episode_lengths", values), f"lengths of at least 1 that add up to {count}"
    if lengths.ndim != 1 or not lengths.size:
        raise ValueError(f"episode_lengths has shape {lengths.shape}, wanted {wanted}")
    if lengths.dtype.kind not in "iu":
        raise ValueError(f"episode_lengths is {printable(lengths[:8])} of dtype {lengths.dtype}, wanted {wanted}")
    wrong = lengths[(lengths < 1) | (lengths > count)]  # before they are added up, which could overflow
    if wrong.size or lengths.sum() != count:
        told = f"holds {wrong[0]}" if wrong.size else f"has shape {lengths.shape} and sum {lengths.sum()}"
        raise ValueError(f"episode_lengths {told}, wanted {wanted}")
    lengths = lengths.astype(np.int64)
    lengths.flags.writeable = False
    return lengths


def _plain(metadata: Any) -> dict[str, Any]:
    """A copy that shares nothing with what was given."""
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata is {printable(metadata)}, wanted a mapping of JSON values")
    try:
        json.dumps(dict(metadata), allow_nan=False)
        return copy.deepcopy(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata holds what is no JSON: {printable(error)}") from error


def _flags(name: str, flags: Any, count: int) -> np.ndarray:
    array = _array(name, flags)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}, wanted ({count},)")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {printable(array[:1])} of dtype {array.dtype}, wanted booleans, or 0 and 1")
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise ValueError(f"{name} holds {array[wrong[0]]} at row {wrong[0]}, wanted booleans, or 0 and 1")
    return array.astype(bool)


def _columns(array: np.ndarray) -> dict[str, list[float]]:
    wide = array.astype(np.float64)
    return {name: [float(value) for value in getattr(wide, name)(0)] for name in ("min", "mean", "max", "std")}
