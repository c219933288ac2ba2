"""robomimic's HDF5 files as datasets: one group for each demonstration, with an array for each key of the observation
(https://robomimic.github.io/docs/datasets/overview.html)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.hdf5 import Hdf5File, open_hdf5
from rrpolicy.data.observation_keys import chosen_keys

DATA = "data"  # the group of all demonstrations
_DEMO = re.compile(r"demo_(\d{1,9})")
_BYTES_PER_DEMO = 512  # a demonstration is a group of several arrays, each with a header of its own
_MOST_KEYS = 1000


def from_robomimic(path: str | os.PathLike[str], observation_keys: Sequence[str] | None = None) -> TrajectoryDataset:
    """Read a file of robomimic: ``data/demo_i/{obs/<key>, actions, rewards, dones}``, demonstrations by their numbers.

    A demonstration whose last ``dones`` is 1 was terminated, as robomimic's own algorithms take it; others are
    unfinished. Where ``dones`` or ``rewards`` are missing in one they are left out for all.

    :param path: the file
    :param observation_keys: entries of ``obs`` that make the observation, in this order; default: all, sorted
    :return: the dataset; ``metadata["observation_keys"]`` names the entries
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: naming the file and its fault (no such layout, missing key, images, unequal lengths, NaN)
    """
    place = Path(path)
    with open_hdf5(place) as file:
        demos = _demos(place, file)
        keys = _keys(place, file, demos[0], observation_keys)
        parts = [_demo(place, file, demo, keys) for demo in demos]
    lengths = [len(part["actions"]) for part in parts]
    arrays = {name: [part[name] for part in parts] for name in ("observations", "actions")}
    arrays |= {
        name: [part[name] for part in parts] for name in ("rewards", "dones") if all(name in part for part in parts)
    }
    over = [bool(dones[-1]) for dones in arrays.pop("dones", [])]
    metadata = {"source": printable(place.name, 200), "format": "robomimic", "observation_keys": list(keys)}
    try:
        joined = {name: np.concatenate(values) for name, values in arrays.items()}
        if over:
            joined["terminated"] = np.asarray(over)
        return TrajectoryDataset(episode_lengths=np.asarray(lengths), metadata=metadata, **joined)
    except ValueError as error:
        raise FileFault(place, error) from error


def is_robomimic(file: Hdf5File) -> bool:
    """Whether an open file has this layout."""
    return file.is_group(DATA) and any(_DEMO.fullmatch(name) for name in file.names_in(DATA, most=20))


def _demos(path: Path, file: Hdf5File) -> list[str]:
    if not file.is_group(DATA):
        raise FileFault(path, f"group {DATA!r} is missing, found {file.names()}")
    most = 1 + file.size // _BYTES_PER_DEMO
    names = file.names_in(DATA, most=most + 1)
    if len(names) > most:
        raise FileFault(path, f"lists more demonstrations than its {file.size} bytes have room for")
    demos = sorted((name for name in names if _DEMO.fullmatch(name)), key=lambda name: int(name.removeprefix("demo_")))
    if not demos:
        raise FileFault(path, f"{DATA!r} has no group demo_0, found {sorted(names)[:20]}")
    return demos


def _keys(path: Path, file: Hdf5File, demo: str, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if not file.is_group(DATA, demo, "obs"):
        raise FileFault(path, f"{DATA}/{demo} has no group 'obs'")
    found = file.names_in(DATA, demo, "obs", most=_MOST_KEYS)
    return chosen_keys(path, wanted, sorted(found), found)


def _demo(path: Path, file: Hdf5File, demo: str, keys: Sequence[str]) -> dict[str, Array]:
    actions = file.array(DATA, demo, "actions")
    count = len(actions) if actions.ndim else 0
    parts = {key: file.array(DATA, demo, "obs", key) for key in keys}
    for key, values in parts.items():
        if values.ndim > 2 or not values.ndim:
            shape = f"{DATA}/{demo}/obs/{key} has shape {values.shape}"
            raise FileFault(path, f"{shape}: images are not supported, leave it out of observation_keys")
    rows = {"actions": actions, **parts}
    rows |= {name: file.array(DATA, demo, name) for name in ("rewards", "dones") if file.has(DATA, demo, name)}
    wrong = {name: values.shape for name, values in rows.items() if not values.ndim or len(values) != count}
    if wrong or not count:
        raise FileFault(path, f"{DATA}/{demo} has {count} actions and {wrong or 'no row'}, wanted equal lengths")
    columns = [values.reshape(count, int(np.prod(values.shape[1:]))) for values in parts.values()]
    found = {"observations": np.concatenate(columns, axis=1), "actions": actions}
    for name in ("rewards", "dones"):
        if name in rows and rows[name].size != count:
            raise FileFault(path, f"{DATA}/{demo}/{name} has shape {rows[name].shape}, wanted ({count},)")
        if name in rows:
            found[name] = rows[name].reshape(count)
    if "dones" in found and found["dones"][-1] not in (0, 1):
        raise FileFault(path, f"{DATA}/{demo}/dones ends with {found['dones'][-1]}, wanted 0 or 1")
    return found
