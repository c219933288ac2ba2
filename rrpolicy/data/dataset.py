"""Recorded behaviour as one immutable value: flat float32 arrays in environment units plus the episode lengths.
Windows are drawn by fancy indexing, never across the end of an episode; what padding adds is masked."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from rrpolicy.data.arrays import as_array, ends_of_episodes, frozen, plain, row_flags, whole_lengths
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
    :param terminated: ``(E,)`` booleans, True where nothing can follow an episode's last transition, as when a robot
        falls; ``None`` with ``truncated=None`` where it is not known how episodes ended
    :param truncated: ``(E,)`` booleans, True where an episode was cut off, as by a time limit. An episode that is
        neither was still under way when the recording ended. Of the two, one that is ``None`` becomes all False
    :raises ValueError: naming array and row, for wrong shapes, NaN or infinite values, columns whose values float32
        cannot tell apart, lengths that are no whole numbers, metadata that is no JSON, or no transition at all
    """

    observations: np.ndarray
    actions: np.ndarray
    episode_lengths: np.ndarray
    rewards: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    terminated: np.ndarray | None = None
    truncated: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "observations", frozen("observations", self.observations, 2))
        object.__setattr__(self, "actions", frozen("actions", self.actions, 2))
        if self.rewards is not None:
            object.__setattr__(self, "rewards", frozen("rewards", self.rewards, 1))
        for name in ("actions", "rewards"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.observations):
                raise ValueError(f"{name} has {len(array)} rows, wanted {len(self.observations)} as in observations")
        if len(self.observations) == 0:
            raise ValueError("observations has 0 rows, wanted at least one transition")
        object.__setattr__(self, "episode_lengths", whole_lengths(self.episode_lengths, len(self.observations)))
        object.__setattr__(self, "metadata", plain(self.metadata))
        terminated, truncated = ends_of_episodes(self.terminated, self.truncated, self.n_episodes)
        object.__setattr__(self, "terminated", terminated)
        object.__setattr__(self, "truncated", truncated)

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

        Flags also tell how episodes ended, and that the tail is unfinished; with lengths or nothing that is not known.

        :param observations: ``(N, obs_dim)``, the observation before each action
        :param actions: ``(N, action_dim)``
        :param rewards: ``(N,)``
        :param terminals: ``(N,)`` booleans, or 0 and 1, True where the episode ended for good
        :param timeouts: ``(N,)`` booleans, True where the episode was cut off
        :param episode_lengths: ``(E,)`` instead of flags; with neither, all rows are one episode
        :param metadata: JSON values that describe the origin
        :raises ValueError: for wrong arrays, or for flags and lengths together
        """
        rows = as_array("observations", observations)
        if rows.ndim == 0:
            raise ValueError(f"observations has shape () and dtype {rows.dtype}, wanted numbers (N, width)")
        count = len(rows)
        given = {"terminals": terminals, "timeouts": timeouts}
        flags = {name: row_flags(name, values, count) for name, values in given.items() if values is not None}
        if flags and episode_lengths is not None:
            raise ValueError("episode_lengths was given with terminals or timeouts, wanted one of the two")
        told: dict[str, np.ndarray] = {}
        if episode_lengths is None:
            last = np.flatnonzero(np.logical_or.reduce([*flags.values(), np.arange(count) == count - 1]))
            episode_lengths = np.diff(last, prepend=-1)
            names = {"terminals": "terminated", "timeouts": "truncated"}
            told = {names[name]: values[last] for name, values in flags.items()}
        lengths = as_array("episode_lengths", episode_lengths)
        return cls(observations, actions, lengths, rewards, plain({} if metadata is None else metadata), **told)

    @property
    def n_transitions(self) -> int:
        """N, transitions in all episodes."""
        return len(self.observations)

    @property
    def n_episodes(self) -> int:
        """E, the number of episodes."""
        return len(self.episode_lengths)

    @property
    def ends(self) -> dict[str, int] | None:
        """How many episodes were terminated (truncated or not), only truncated, or neither (``"unfinished"``); ``None``
        where that is not known."""
        if self.terminated is None or self.truncated is None:
            return None
        over, cut = int(self.terminated.sum()), int((self.truncated & ~self.terminated).sum())
        return {"terminated": over, "truncated": cut, "unfinished": self.n_episodes - over - cut}

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
        """Rows that can be the present of a window: its first row, or what follows the history.

        :param layout: gives horizon, stride and history
        :param padding: whether a window may run past its episode's end (its last rows are then masked)
        :return: ``(W,)`` int64, ascending, W at least 1
        :raises ValueError: when no episode is long enough, or the layout was made for other widths
        """
        self._check_layout(layout)
        rows = np.arange(self.n_transitions)
        if padding:
            return rows
        span = layout.span - layout.past
        starts = rows[rows + span - 1 <= self._last_rows]
        if len(starts) == 0:
            longest = int(self.episode_lengths.max())
            raise ValueError(
                f"no window fits: layout spans {span} environment steps (horizon={layout.horizon}, "
                f"stride={layout.stride}), the longest episode has {longest}; wanted a shorter span or padding=True"
            )
        return starts

    def windows(self, layout: TrajectoryLayout, starts: np.ndarray) -> Windows:
        """Draw windows. Past an episode's end rows repeat its last one and the mask is False; a history that would
        begin before the episode repeats its first row.

        :param layout: gives horizon, stride and history
        :param starts: ``(n,)`` row numbers, such as a sample of :meth:`window_starts`
        :raises ValueError: for starts that are not rows
        """
        self._check_layout(layout)
        starts = np.asarray(starts)
        if starts.ndim != 1 or starts.dtype.kind not in "iu":
            raise ValueError(f"starts has shape {starts.shape} and dtype {starts.dtype}, wanted integers (n,)")
        if len(starts) and (starts.min() < 0 or starts.max() >= self.n_transitions):
            raise ValueError(f"starts run from {starts.min()} to {starts.max()}, wanted 0 to {self.n_transitions - 1}")
        rows = starts[:, None] + (np.arange(layout.horizon) - layout.present) * layout.stride
        last = self._last_rows[starts][:, None]
        mask = rows <= last
        np.minimum(rows, last, out=rows)
        if layout.present:
            np.maximum(rows, self._first_rows[starts][:, None], out=rows)
        return Windows(self.observations.take(rows, axis=0), self.actions.take(rows, axis=0), mask)

    def subset(self, episodes: np.ndarray | Sequence[int]) -> "TrajectoryDataset":
        """The dataset of some episodes, in the order given.

        :param episodes: episode numbers, at least one
        """
        chosen = [int(index) for index in episodes]
        views = [self.episode(index) for index in chosen]
        if not views:
            raise ValueError("episodes is empty, wanted at least one episode")
        joined = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
        lengths = np.asarray([len(view["actions"]) for view in views])
        ends = {"terminated": self.terminated, "truncated": self.truncated}
        joined |= {name: flags[chosen] for name, flags in ends.items() if flags is not None}
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
        """All episodes of several datasets; rewards and how episodes ended survive only where every one has them.

        :param datasets: at least one, with equal widths
        :raises ValueError: when the widths differ or the sequence is empty
        """
        if not datasets:
            raise ValueError("datasets is empty, wanted at least one")
        widths = [(dataset.observation_dim, dataset.action_dim) for dataset in datasets]
        if len(set(widths)) > 1:
            raise ValueError(f"datasets have (observation_dim, action_dim) {widths}, wanted equal ones")
        joined: dict[str, np.ndarray] = {}
        for name in ("observations", "actions", "episode_lengths", "rewards", "terminated", "truncated"):
            parts = [getattr(dataset, name) for dataset in datasets]
            if all(part is not None for part in parts):
                joined[name] = np.concatenate(parts)
        return TrajectoryDataset(metadata={"sources": [dataset.metadata for dataset in datasets]}, **joined)

    def describe(self) -> dict[str, Any]:
        """Statistics as JSON values: sizes, lengths and ends of episodes, ranges of columns, returns where known."""
        lengths = self.episode_lengths
        summary: dict[str, Any] = {
            "n_transitions": self.n_transitions,
            "n_episodes": self.n_episodes,
            "episode_length": {"min": int(lengths.min()), "mean": float(lengths.mean()), "max": int(lengths.max())},
            "ends": self.ends,
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

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """(N,) the first row of each row's episode."""
        return np.repeat(self._stops - self.episode_lengths, self.episode_lengths)

    def _check_layout(self, layout: TrajectoryLayout) -> None:
        if (layout.observation_dim, layout.action_dim) != (self.observation_dim, self.action_dim):
            raise ValueError(
                f"layout has observation_dim={layout.observation_dim}, action_dim={layout.action_dim}, "
                f"wanted {self.observation_dim} and {self.action_dim} as in the dataset"
            )


def _columns(array: np.ndarray) -> dict[str, list[float]]:
    wide = array.astype(np.float64)
    return {name: [float(value) for value in getattr(wide, name)(0)] for name in ("min", "mean", "max", "std")}
