"""Recorded behaviour from and to the formats of the field: Minari folders and D4RL's HDF5 files, by path or by name.
Files are data here: no environment named in them is ever built, and every fault is a ``ValueError`` with its place."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import METADATA_FILE_NAME, MinariStorage
from minari.storage.datasets_root_dir import get_dataset_path

from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.downloads import D4RL_PREFIX, download_d4rl, download_minari

_MINARI_ID = re.compile(r"[A-Za-z][\w-]*(/[\w-]+)+-v\d+")  # a name without namespace may be a lost folder
_OWN_KEY = "rrpolicy"  # our entry in Minari's metadata.json
_HDF5_SUFFIXES = (".hdf5", ".h5")


def load_dataset(source: str | os.PathLike[str]) -> TrajectoryDataset:
    """Read whatever ``source`` is: a Minari folder or id, an HDF5 file of D4RL or Minari, or a dataset of D4RL by name.

    :param source: path, Minari id such as ``"mujoco/hopper/medium-v0"``, or D4RL name behind ``d4rl:`` such as
        ``"d4rl:hopper-medium-replay-v2"``; what is not on this machine yet is downloaded
    :raises FileNotFoundError: when it is none of these
    :raises ValueError: naming the file and its fault, or what could not be downloaded
    """
    path, text = Path(source), os.fspath(source)
    if text.startswith(D4RL_PREFIX):
        return from_d4rl(download_d4rl(text.removeprefix(D4RL_PREFIX)))
    if path.is_file():
        if path.suffix.lower() not in _HDF5_SUFFIXES:
            raise ValueError(f"{path}: suffix {path.suffix!r}, wanted a Minari folder or a file {_HDF5_SUFFIXES}")
        return from_minari(path.parent) if _holds_minari(path) else from_d4rl(path)
    if not path.exists() and _MINARI_ID.fullmatch(text) and not get_dataset_path(text).exists():
        download_minari(text)
    return from_minari(source)


def from_minari(source: "minari.MinariDataset | str | os.PathLike[str]") -> TrajectoryDataset:
    """Read a Minari dataset. Of Dict observations the ``"observation"`` entry is taken; of T+1 observations, T.

    :param source: an open dataset, a folder that holds ``metadata.json`` (or ``data/metadata.json``), or the id of a
        dataset in the local Minari root; nothing is downloaded
    :return: the dataset; ``metadata`` holds Minari's id, environment id and texts
    :raises FileNotFoundError: when there is no such folder or local id
    :raises ValueError: naming folder and fault (foreign content, unequal lengths, missing keys, NaN)
    """
    dataset = source if isinstance(source, minari.MinariDataset) else _open_minari(source)
    place = str(dataset.storage.data_path)
    _check_box(place, "action_space", dataset.action_space)
    is_dict = isinstance(dataset.observation_space, spaces.Dict)
    if is_dict and "observation" not in dataset.observation_space.spaces:
        keys = sorted(dataset.observation_space.spaces)
        raise ValueError(f"{place}: Dict observations lack the key 'observation', they have {keys}")
    space = dataset.observation_space["observation"] if is_dict else dataset.observation_space
    _check_box(place, "observation_space", space)
    try:
        episodes = [_minari_episode(place, episode, is_dict) for episode in dataset.iterate_episodes()]
    except (KeyError, OSError, AssertionError) as error:
        raise ValueError(f"{place}: the Minari dataset is damaged: {error}") from error
    if not episodes:
        raise ValueError(f"{place}: the Minari dataset has no episode, wanted at least one")
    own = dataset.storage.metadata.get(_OWN_KEY)
    own = own if isinstance(own, dict) else {}
    lengths = np.asarray([len(episode[1]) for episode in episodes])
    try:
        observations, actions, rewards = (np.concatenate(columns) for columns in zip(*episodes, strict=True))
        known = rewards if own.get("has_rewards", True) else None
        return TrajectoryDataset(observations, actions, lengths, known, _minari_metadata(dataset, own))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def save_minari(
    dataset: TrajectoryDataset,
    folder: str | os.PathLike[str],
    dataset_id: str = "rrpolicy/dataset-v0",
    env_spec: EnvSpec | str | None = None,
    observation_space: gymnasium.Space | None = None,
    action_space: gymnasium.Space | None = None,
    description: str | None = None,
) -> Path:
    """Write a dataset that ``minari.MinariDataset(folder)`` and :func:`load_dataset` read.

    Minari wants T+1 observations where T are known: the last one is repeated. Every episode ends as truncated, and
    unknown rewards are stored as 0 (and read back as ``None``).

    :param dataset: what to write
    :param folder: created where needed; must not hold a dataset yet
    :param dataset_id: Minari id, ``namespace/name-v0``
    :param env_spec: the environment the data came from, an id or a spec; recorded, not built
    :param observation_space: a Box ``(obs_dim,)``; unbounded by default
    :param action_space: a Box ``(action_dim,)``; unbounded by default
    :param description: one sentence for people
    :return: the folder
    :raises ValueError: when the folder holds a dataset already, or id, space or metadata do not fit
    """
    target = Path(folder)
    if (target / METADATA_FILE_NAME).exists():
        raise ValueError(f"{target}: holds a Minari dataset already, wanted another folder")
    observed = _box_for("observation_space", observation_space, dataset.observation_dim)
    acted = _box_for("action_space", action_space, dataset.action_dim)
    spec, head = _spec(env_spec), _head(dataset, dataset_id, description)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.resolve(), prefix=".minari-") as scratch:
        storage = MinariStorage.new(scratch, observed, acted, env_spec=spec, data_format="hdf5")
        storage.update_episodes(_buffer(dataset.episode(index)) for index in range(dataset.n_episodes))
        storage.update_metadata(head)
        # metadata.json goes last: a folder that has it has everything
        for path in sorted(Path(scratch).iterdir(), key=lambda path: path.name == METADATA_FILE_NAME):
            shutil.move(path, target / path.name)
    return target


def from_d4rl(path: str | os.PathLike[str]) -> TrajectoryDataset:
    """Read one of D4RL's HDF5 files (flat arrays, the observation before each action).

    An episode ends after a row flagged in ``terminals`` or ``timeouts``; the unfinished tail becomes an episode too.
    ``timeouts`` must be there: without it episodes that were cut off would run into each other.

    :param path: the file
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: naming the file and its fault (not HDF5, missing key, unequal lengths, NaN)
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"{place}: no such file")
    needed = ("observations", "actions", "terminals", "timeouts")
    try:
        with h5py.File(place, "r") as file:
            arrays = {key: _flat_array(place, file, key) for key in (*needed, "rewards") if key in file}
            present = sorted(file)
    except OSError as error:
        raise ValueError(f"{place}: is not a readable HDF5 file: {error}") from error
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise ValueError(f"{place}: key {missing[0]!r} is missing, wanted {needed}, found {present}")
    try:
        return TrajectoryDataset.from_arrays(**arrays, metadata={"source": place.name, "format": "d4rl"})
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _open_minari(source: str | os.PathLike[str]) -> "minari.MinariDataset":
    folder = _minari_folder(source)
    try:
        head = MinariStorage.read_raw_metadata(folder)
    except ValueError as error:
        raise ValueError(f"{folder}: {METADATA_FILE_NAME} is not valid JSON: {error}") from error
    for key in ("observation_space", "action_space", "dataset_id", "minari_version"):
        # without stored spaces Minari would build the environment that the file names, which may be anything
        if not isinstance(head.get(key), str):
            raise ValueError(f"{folder}: {METADATA_FILE_NAME} lacks {key!r}, wanted a string")
    try:
        return minari.MinariDataset(folder)
    except (KeyError, TypeError, AssertionError, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{folder}: not a Minari dataset that can be read: {error}") from error


def _minari_folder(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    tried = [path, path / "data"]
    if not path.exists():
        tried.append(get_dataset_path(str(source)) / "data")
    for folder in tried:
        if (folder / METADATA_FILE_NAME).is_file():
            return folder
    if path.exists():
        raise ValueError(f"{path}: holds no Minari dataset ({METADATA_FILE_NAME} is missing)")
    raise FileNotFoundError(f"{source}: neither a file, nor a folder, nor the id of a local Minari dataset")


def _minari_episode(place: str, episode: Any, is_dict: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    observations = np.asarray(episode.observations["observation"] if is_dict else episode.observations)
    actions, rewards = np.asarray(episode.actions), np.asarray(episode.rewards)
    count = len(actions)
    if count == 0 or len(observations) not in (count, count + 1) or len(rewards) != count:
        found = f"{len(observations)} observations, {count} actions, {len(rewards)} rewards"
        raise ValueError(f"{place}: episode {episode.id} has {found}, wanted T+1, T and T with T at least 1")
    return observations[:count], actions, rewards


def _minari_metadata(dataset: "minari.MinariDataset", own: Mapping[str, Any]) -> dict[str, Any]:
    stored = dataset.storage.metadata
    kept = ("algorithm_name", "description", "ref_min_score", "ref_max_score")
    values = {"source": dataset.id, "format": "minari", **{key: stored[key] for key in kept if key in stored}}
    if dataset.env_spec is not None:
        values["env_id"] = dataset.env_spec.id
    ours = own.get("metadata")
    return {**values, **(ours if isinstance(ours, dict) else {})}


def _head(dataset: TrajectoryDataset, dataset_id: str, description: str | None) -> dict[str, Any]:
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError) as error:
        raise ValueError(f"dataset_id={dataset_id!r}, wanted namespace/name-v0") from error
    try:
        json.dumps(dataset.metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"dataset.metadata cannot be written as JSON: {error}") from error
    own = {"has_rewards": dataset.rewards is not None, "metadata": dataset.metadata}
    texts = {"description": description} if description is not None else {}
    return {"dataset_id": dataset_id, "minari_version": minari.__version__, **texts, _OWN_KEY: own}


def _buffer(episode: dict[str, np.ndarray]) -> EpisodeBuffer:
    observations = episode["observations"]
    count = len(observations)
    ends = np.arange(count) == count - 1
    return EpisodeBuffer(
        observations=np.concatenate([observations, observations[-1:]]),
        actions=episode["actions"],
        rewards=episode.get("rewards", np.zeros(count, dtype=np.float32)),
        terminations=np.zeros(count, dtype=bool),
        truncations=ends,
        infos={},
    )


def _spec(env_spec: EnvSpec | str | None) -> EnvSpec | None:
    try:
        return gymnasium.spec(env_spec) if isinstance(env_spec, str) else env_spec
    except gymnasium.error.Error as error:
        raise ValueError(f"env_spec={env_spec!r}, wanted the id of a registered environment: {error}") from error


def _check_box(place: str, name: str, space: gymnasium.Space) -> None:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{place}: {name} is {space}, wanted a flat Box")


def _box_for(name: str, space: gymnasium.Space | None, width: int) -> spaces.Box:
    box = spaces.Box(-np.inf, np.inf, (width,), np.float32) if space is None else space
    if not isinstance(box, spaces.Box) or box.shape != (width,):
        raise ValueError(f"{name}={space}, wanted a Box of shape ({width},)")
    return box


def _holds_minari(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return "episode_0" in file
    except OSError as error:
        raise ValueError(f"{path}: is not a readable HDF5 file: {error}") from error


def _flat_array(path: Path, file: h5py.File, key: str) -> np.ndarray:
    item = file[key]
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{path}: {key!r} is a {type(item).__name__}, wanted an array")
    values = np.asarray(item[()])
    return values.reshape(-1) if key in ("rewards", "terminals", "timeouts") else values
