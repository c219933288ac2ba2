"""Recorded behaviour from the formats of the field: Minari folders and D4RL's HDF5 files, by path or by name.
Files are data here: no environment named in them is ever built, and every fault is a ``ValueError`` with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import minari
import numpy as np
from minari.storage.datasets_root_dir import get_dataset_path
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.downloads import D4RL_PREFIX, download_d4rl, download_minari
from rrpolicy.data.hdf5 import Hdf5File, open_hdf5
from rrpolicy.data.lerobot import INFO_FILE, from_lerobot
from rrpolicy.data.minari_head import HDF5_FORMAT, MAIN_FILE, METADATA_FILE, MinariHead, read_head
from rrpolicy.data.minari_spaces import joined
from rrpolicy.data.npz import from_npz
from rrpolicy.data.replay_buffers import from_replay_buffer
from rrpolicy.data.robomimic import from_robomimic, is_robomimic
from rrpolicy.data.zarr_store import GROUP_FILES, from_zarr

_MINARI_ID = re.compile(r"[A-Za-z][\w-]*(/[\w-]+)+-v\d+")  # a name without namespace may be a lost folder
_HDF5_SUFFIXES, _NPZ_SUFFIX, _ZIP_SUFFIX = (".hdf5", ".h5"), ".npz", ".zip"
_BYTES_PER_EPISODE = 512  # an episode is a group of five arrays, each with a header of its own
_FLAGS = ("terminals", "timeouts")
_MINARI_FLAGS = ("terminations", "truncations")


class _Episode(NamedTuple):
    """T observations, actions and rewards, and how it ended, where that is stored."""

    observations: Array
    actions: Array
    rewards: Array
    ends: tuple[bool, bool] | None


Source: TypeAlias = str | os.PathLike[str] | minari.MinariDataset | ReplayBuffer | OffPolicyAlgorithm


def load_dataset(source: Source) -> TrajectoryDataset:
    """Read whatever ``source`` is: a Minari folder or id, an HDF5 file of D4RL, Minari or robomimic, an npz file
    (:func:`~rrpolicy.data.from_npz` describes the layout), a folder of LeRobot, a Zarr folder or zip file of Diffusion
    Policy, or a dataset of D4RL by name.

    :param source: an open Minari dataset, a replay buffer of Stable-Baselines3 or the algorithm that has one
        (:func:`~rrpolicy.data.from_replay_buffer`), a path, a Minari id such as ``"mujoco/hopper/medium-v0"``, or a
        D4RL name behind ``d4rl:`` such as ``"d4rl:hopper-medium-replay-v2"``; what is not on this machine yet is
        downloaded
    :raises FileNotFoundError: when it is none of these
    :raises ValueError: naming the file and its fault, or what could not be downloaded
    """
    if isinstance(source, minari.MinariDataset):
        return from_minari(source)
    if isinstance(source, ReplayBuffer | OffPolicyAlgorithm):
        return from_replay_buffer(source)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"source is a {type(source).__name__}, wanted a path, a name or an open dataset")
    path, text = Path(source), os.fspath(source)
    if text.startswith(D4RL_PREFIX):
        return from_d4rl(download_d4rl(text.removeprefix(D4RL_PREFIX)))
    if path.is_file():
        return _from_file(path)
    if (path / INFO_FILE).is_file():
        return from_lerobot(path)
    if any((path / name).is_file() for name in GROUP_FILES):
        return from_zarr(path)
    if not path.exists() and _MINARI_ID.fullmatch(text) and not get_dataset_path(text).exists():
        download_minari(text)
    return from_minari(source)


def _from_file(path: Path) -> TrajectoryDataset:
    if path.suffix.lower() == _NPZ_SUFFIX:
        return from_npz(path)
    if path.suffix.lower() == _ZIP_SUFFIX:
        return from_zarr(path)
    if path.suffix.lower() not in _HDF5_SUFFIXES:
        wanted = (*_HDF5_SUFFIXES, _NPZ_SUFFIX, _ZIP_SUFFIX)
        raise FileFault(path, f"suffix {path.suffix!r}, wanted a Minari folder or a file {wanted}")
    with open_hdf5(path) as file:
        is_minari, is_demos = file.has("episode_0"), is_robomimic(file)
    if is_minari and path.name != MAIN_FILE:
        raise FileFault(path, f"is a file of a Minari dataset, wanted it as {MAIN_FILE} in the dataset's folder")
    return from_minari(path.parent) if is_minari else from_robomimic(path) if is_demos else from_d4rl(path)


def from_minari(source: minari.MinariDataset | str | os.PathLike[str]) -> TrajectoryDataset:
    """Read a Minari dataset. Dict and Tuple spaces become vectors as in environments
    (:func:`~rrpolicy.common.spaces.flattened_box`): of goal-conditioned observations the ``"observation"`` entry is
    taken, the entries of others stand one after the other. Of T+1 observations, T are taken.

    :param source: an open dataset, a folder that holds ``metadata.json`` (or ``data/metadata.json``), or the id of a
        dataset in the local Minari root; nothing is downloaded. Folders must be in Minari's HDF5 format
    :return: the dataset; ``metadata`` holds Minari's id, environment id and texts
    :raises FileNotFoundError: when there is no such folder or local id
    :raises ValueError: naming folder and fault (foreign content, unequal lengths, missing keys, NaN)
    """
    opened = source if isinstance(source, minari.MinariDataset) else None
    folder = _minari_folder(source) if opened is None else Path(opened.storage.data_path)
    head = read_head(folder)
    if head.data_format == HDF5_FORMAT:
        indices: Iterable[Any] = range(head.n_episodes) if opened is None else opened.episode_indices
        episodes = _minari_episodes(folder, indices, head)
    elif opened is not None:  # by Minari itself, which whoever opened it trusts with the file
        episodes = [_opened_episode(folder, episode, head) for episode in opened.iterate_episodes()]
    else:
        told = f"data_format is {printable(repr(head.data_format), 40)}, wanted {HDF5_FORMAT!r}"
        raise FileFault(folder, f"not a Minari dataset that can be read: {told} (minari.MinariDataset opens others)")
    if not episodes:
        raise FileFault(folder, "the Minari dataset has no episode, wanted at least one")
    lengths = np.asarray([len(episode.actions) for episode in episodes])
    ends = [episode.ends for episode in episodes if episode.ends is not None]
    flags = np.asarray(ends) if head.has_ends and len(ends) == len(episodes) else None
    terminated, truncated = (None, None) if flags is None else (flags[:, 0], flags[:, 1])
    try:
        arrays = list(zip(*(episode[:3] for episode in episodes), strict=True))
        observations, actions, rewards = (np.concatenate(columns) for columns in arrays)
        del episodes, arrays  # twice in memory until here
        for column in (observations, actions, rewards):
            column.flags.writeable = column.dtype != np.float32  # frozen float32 is taken without a copy
        kept = rewards if head.has_rewards else None
        return TrajectoryDataset(observations, actions, lengths, kept, head.metadata, terminated, truncated)
    except ValueError as error:
        raise FileFault(folder, error) from error


def from_d4rl(path: str | os.PathLike[str]) -> TrajectoryDataset:
    """Read one of D4RL's HDF5 files (flat arrays, the observation before each action).

    An episode ends after a row flagged in ``terminals`` or ``timeouts``; the unfinished tail becomes an episode too.
    ``timeouts`` must be there: without it episodes that were cut off would run into each other.

    :param path: the file
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: naming the file and its fault (not HDF5, missing key, unequal lengths, NaN)
    """
    place = Path(path)
    needed = ("observations", "actions", *_FLAGS)
    with open_hdf5(place) as file:
        missing = [key for key in needed if not file.has(key)]
        if missing:
            raise FileFault(place, f"key {missing[0]!r} is missing, wanted {needed}, found {file.names()}")
        arrays = {key: file.array(key) for key in (*needed, "rewards") if file.has(key)}
    for key in {"rewards", *_FLAGS}.intersection(arrays):
        arrays[key] = arrays[key].reshape(-1)
    try:
        return TrajectoryDataset.from_arrays(**arrays, metadata={"source": place.name, "format": "d4rl"})
    except ValueError as error:
        raise FileFault(place, error) from error


def _minari_folder(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    tried = [path, path / "data"]
    if not path.exists():
        tried.append(get_dataset_path(str(source)) / "data")
    for folder in tried:
        if (folder / METADATA_FILE).is_file():
            return folder
    if path.exists():
        raise FileFault(path, f"holds no Minari dataset ({METADATA_FILE} is missing)")
    raise FileNotFoundError(f"{source}: neither a file, nor a folder, nor the id of a local Minari dataset")


def _minari_episodes(folder: Path, indices: Iterable[Any], head: MinariHead) -> list[_Episode]:
    path = folder / MAIN_FILE
    with open_hdf5(path, "the Minari dataset is damaged") as file:
        if head.n_episodes > (most := 1 + file.size // _BYTES_PER_EPISODE):
            told = f"{printable(head.n_episodes, 40)}, and {MAIN_FILE} has no room for more than {most}"
            raise FileFault(folder, f"{METADATA_FILE}: total_episodes is {told}")
        return [_minari_episode(folder, file, int(index), head) for index in indices]


def _minari_episode(folder: Path, file: Hdf5File, index: int, head: MinariHead) -> _Episode:
    name = f"episode_{index}"
    if not file.is_group(name):
        raise FileFault(folder, f"the Minari dataset is damaged: {name} is missing in {MAIN_FILE}")

    def stored(key: str) -> Callable[[tuple[str | int, ...]], Array]:
        return lambda path: file.array(
            name, key, *(f"_index_{part}" if isinstance(part, int) else part for part in path)
        )

    flags = [file.array(name, key) if file.has(name, key) else None for key in _MINARI_FLAGS]
    return _steps(folder, index, head, stored, file.array(name, "rewards"), flags)


def _opened_episode(folder: Path, episode: Any, head: MinariHead) -> _Episode:
    def stored(key: str) -> Callable[[tuple[str | int, ...]], Array]:
        return lambda path: np.asarray(reduce(lambda values, part: values[part], path, getattr(episode, key)))

    flags = [np.asarray(getattr(episode, key)) for key in _MINARI_FLAGS]
    return _steps(folder, episode.id, head, stored, np.asarray(episode.rewards), flags)


def _steps(
    folder: Path,
    index: int,
    head: MinariHead,
    stored: Callable[[str], Callable[[tuple[str | int, ...]], Array]],
    rewards: Array,
    flags: Sequence[Array | None],
) -> _Episode:
    if rewards.ndim < 1:
        raise FileFault(folder, f"episode {index} has a number where an array is wanted")
    observations, actions = (
        joined(folder, f"episode {index}: {key}", parts, stored(key))
        for key, parts in (("observations", head.observed), ("actions", head.acted))
    )
    count = len(actions)
    if count == 0 or len(observations) not in (count, count + 1) or len(rewards) != count:
        found = f"{len(observations)} observations, {count} actions, {len(rewards)} rewards"
        raise FileFault(folder, f"episode {index} has {found}, wanted T+1, T and T with T at least 1")
    return _Episode(observations[:count], actions, rewards, _ends(folder, index, flags, count))


def _ends(folder: Path, index: int, flags: Sequence[Array | None], count: int) -> tuple[bool, bool] | None:
    """What the last row says: whether the episode was terminated and whether it was truncated."""
    last = []
    for name, values in zip(_MINARI_FLAGS, flags, strict=True):
        if values is None:
            return None
        if values.shape != (count,) or values.dtype.kind not in "fiub" or values[-1] not in (0, 1):
            found = f"shape {values.shape} and dtype {values.dtype}"
            raise FileFault(folder, f"episode {index} has {name} of {found}, wanted booleans ({count},)")
        last.append(bool(values[-1]))
    return last[0], last[1]
