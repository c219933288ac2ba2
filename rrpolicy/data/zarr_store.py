"""Zarr groups as Diffusion Policy keeps them (https://github.com/real-stanford/diffusion_policy), formats 2 and 3."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.observation_keys import chosen_keys
from rrpolicy.data.zarr_arrays import ARRAY_FILES, StoredArray, read_arrays
from rrpolicy.data.zarr_files import GroupFiles, group_files

GROUP_FILES = (".zgroup", "zarr.json")  # of formats 2 and 3
_ACTION, _REWARD = "action", "reward"
_MOST_ARRAYS = 1000


def from_zarr(path: str | os.PathLike[str], observation_keys: Sequence[str] | None = None) -> TrajectoryDataset:
    """Read ``data/<key>`` ``(N, ...)`` and ``meta/episode_ends`` ``(E,)``. Rewards are those of ``data/reward``, where
    it is there; how episodes ended is not known. Chunks that Blosc or Zstandard packed, which is what Zarr does if not
    told otherwise, need ``pip install 'rrpolicy[zarr]'``.

    :param path: a Zarr group, a folder or a zip file
    :param observation_keys: arrays that make the observation, in this order, grids row by row; default: all but
        ``action``, ``reward`` and pictures, sorted, with a warning that names pictures left out
    :return: the dataset; ``metadata["observation_keys"]`` names the arrays
    :raises FileNotFoundError: when there is no such folder or file
    :raises ValueError: naming the folder or file and its fault
    """
    place = Path(path)
    try:
        with group_files(place) as files:
            return _dataset(place, files, observation_keys)
    except (FileFault, FileNotFoundError):
        raise
    except (ValueError, OverflowError) as error:
        raise FileFault(place, error) from error


def _dataset(place: Path, files: GroupFiles, observation_keys: Sequence[str] | None) -> TrajectoryDataset:
    arrays = {name.split("/")[1]: StoredArray.open(files, name) for name in _descriptions(files)}
    if _ACTION not in arrays:
        raise FileFault(place, f"has no array 'data/{_ACTION}', found {sorted(arrays)[:20]}")
    numbers = sorted(name for name, one in arrays.items() if not one.is_picture)
    usual = [name for name in numbers if name not in (_ACTION, _REWARD)]
    keys = chosen_keys(place, observation_keys, usual, numbers, sorted(set(arrays) - set(numbers)))
    marks = [name for kind in ARRAY_FILES if (name := f"meta/episode_ends/{kind}") in files.sizes]
    if not marks:
        raise FileFault(place, "has no array 'meta/episode_ends'")
    rewarded = [arrays[_REWARD]] if _REWARD in arrays else []
    wanted = [StoredArray.open(files, marks[0]), arrays[_ACTION], *rewarded, *(arrays[key] for key in keys)]
    ends, actions, *others = read_arrays(place, wanted)
    if ends.dtype.kind not in "iu":
        raise FileFault(place, f"meta/episode_ends is of dtype {ends.dtype}, wanted whole numbers")
    parts = others[len(rewarded) :]
    columns = [values.reshape(len(values), int(np.prod(values.shape[1:]))) for values in parts]
    rewards = others[0].reshape(-1) if rewarded else None
    metadata = {"source": printable(place.resolve().name, 200), "format": "zarr", "observation_keys": list(keys)}
    lengths = np.diff(ends.reshape(-1).astype(np.int64), prepend=0)
    return TrajectoryDataset(np.concatenate(columns, axis=1), actions, lengths, rewards, metadata)


def _descriptions(files: GroupFiles) -> list[str]:
    """Names of the files that describe the arrays ``data/<key>``, sorted."""
    names = (name.split("/") for name in files.sizes if name.startswith("data/"))
    return sorted("/".join(parts) for parts in names if len(parts) == 3 and parts[2] in ARRAY_FILES)[:_MOST_ARRAYS]
