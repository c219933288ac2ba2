"""Writes data sets in Minari's format. The HDF5 library crashes the process when a disk fills up under an open file
(h5py issues 914 and 1642), so the file is made in memory and written as plain bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage

from rrpolicy.common.folders import check_space, scratch_folder
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.minari_head import (
    HDF5_FORMAT,
    MAIN_FILE,
    METADATA_FILE,
    OWN_KEY,
    check_metadata,
    is_dataset_id,
    is_env_id,
)

_HEAD_BYTES = 2**16  # more than spaces and texts take in metadata.json


def save_minari(
    dataset: TrajectoryDataset,
    folder: str | os.PathLike[str],
    dataset_id: str = "rrpolicy/dataset-v0",
    env_spec: EnvSpec | str | None = None,
    observation_space: gymnasium.Space | None = None,
    action_space: gymnasium.Space | None = None,
    description: str | None = None,
) -> Path:
    """Write a dataset that ``minari.MinariDataset(folder)`` and :func:`~rrpolicy.data.load_dataset` read.

    Minari wants T+1 observations where T are known: the last one is repeated. Unknown rewards are stored as 0 and read
    back as ``None``. The flags of an episode's last row are those of the dataset, both False where it is unfinished;
    where the dataset does not hold them, every episode is stored as truncated and read back as unknown.

    :param dataset: what to write
    :param folder: created where needed; must not hold a dataset yet
    :param dataset_id: Minari id, ``namespace/name-v0``
    :param env_spec: the environment the data came from, an id or a spec; recorded, not built. Of one that is made by a
        function, which no file can hold, the id and the time limit are recorded
    :param observation_space: a Box ``(obs_dim,)``; unbounded by default
    :param action_space: a Box ``(action_dim,)``; unbounded by default
    :param description: one sentence for people
    :return: the folder
    :raises ValueError: when the folder holds a dataset already, or id, space or metadata do not fit
    :raises OSError: naming the folder, when there is no room for it; nothing is left there then
    """
    target = Path(folder)
    if (target / METADATA_FILE).exists():
        raise ValueError(f"{target}: holds a Minari dataset already, wanted another folder")
    observed = _box_for("observation_space", observation_space, dataset.observation_dim)
    acted = _box_for("action_space", action_space, dataset.action_dim)
    spec, head = _spec(env_spec), _head(dataset, dataset_id, description)
    content = _hdf5(dataset)
    head["dataset_size"] = float(np.round(len(content) / 1e6, 1))  # MB, as Minari counts
    try:
        check_space(target, len(content) + len(json.dumps(head)) + _HEAD_BYTES)
        with scratch_folder(target) as scratch:
            storage = MinariStorage.new(scratch, observed, acted, env_spec=spec, data_format=HDF5_FORMAT)
            storage.update_metadata(head)
            (scratch / MAIN_FILE).write_bytes(content)
            # metadata.json goes last: a folder that has it has everything
            for name in (MAIN_FILE, METADATA_FILE):
                with open(scratch / name, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(scratch / name, target / name)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    return target


def _hdf5(dataset: TrajectoryDataset) -> bytes:
    """The file ``main_data.hdf5`` in Minari's layout, to whose arrays Minari can append."""
    with h5py.File("in memory", "w", driver="core", backing_store=False, block_size=2**20, track_order=True) as file:
        for index in range(dataset.n_episodes):
            group = file.create_group(f"episode_{index}")
            group.attrs["id"] = index
            group.attrs["total_steps"] = int(dataset.episode_lengths[index])
            for name, values in _columns(dataset, index).items():
                group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
        file.flush()
        return bytes(file.id.get_file_image())


def _columns(dataset: TrajectoryDataset, index: int) -> dict[str, np.ndarray]:
    episode = dataset.episode(index)
    observations = episode["observations"]
    count = len(observations)
    is_last = np.arange(count) == count - 1
    over = dataset.terminated is not None and bool(dataset.terminated[index])
    cut = dataset.truncated is None or bool(dataset.truncated[index])
    return {
        "observations": np.concatenate([observations, observations[-1:]]),
        "actions": episode["actions"],
        "rewards": episode.get("rewards", np.zeros(count, dtype=np.float32)),
        "terminations": is_last & over,
        "truncations": is_last & cut,
    }


def _head(dataset: TrajectoryDataset, dataset_id: str, description: str | None) -> dict[str, Any]:
    try:
        parse_dataset_id(dataset_id if is_dataset_id(dataset_id) else "")
    except (TypeError, ValueError) as error:
        raise ValueError(f"dataset_id={dataset_id!r}, wanted namespace/name-v0") from error
    try:
        text = json.dumps(dataset.metadata, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"dataset.metadata cannot be written as JSON: {error}") from error
    check_metadata("dataset.metadata", json.loads(text), len(text))  # what is refused by readers is not written
    has_ends = dataset.terminated is not None
    own = {"has_rewards": dataset.rewards is not None, "has_ends": has_ends, "metadata": dataset.metadata}
    texts = {"description": description} if description is not None else {}
    counts = {"total_episodes": dataset.n_episodes, "total_steps": dataset.n_transitions}
    return {"dataset_id": dataset_id, "minari_version": minari.__version__, **counts, **texts, OWN_KEY: own}


def _spec(env_spec: EnvSpec | str | None) -> EnvSpec | None:
    try:
        spec = gymnasium.spec(env_spec) if isinstance(env_spec, str) else env_spec
    except gymnasium.error.Error as error:
        raise ValueError(f"env_spec={env_spec!r}, wanted the id of a registered environment: {error}") from error
    if spec is not None and not is_env_id(spec.id):
        raise ValueError(f"env_spec={spec.id!r}, wanted an id without a module or odd characters")
    if spec is None:
        return None
    try:
        spec.to_json()
    except (TypeError, ValueError):
        return EnvSpec(spec.id, max_episode_steps=spec.max_episode_steps)
    return spec


def _box_for(name: str, space: gymnasium.Space | None, width: int) -> spaces.Box:
    box = spaces.Box(-np.inf, np.inf, (width,), np.float32) if space is None else space
    if not isinstance(box, spaces.Box) or box.shape != (width,):
        raise ValueError(f"{name}={space}, wanted a Box of shape ({width},)")
    return box
