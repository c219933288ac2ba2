"""LeRobot's folders as datasets: ``meta/info.json`` names the features, parquet files hold a row for each frame
(https://github.com/huggingface/lerobot). Pictures and videos are not read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.messages import printable
from rrpolicy.common.schema import from_json, read_small
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.hdf5 import FREE_BYTES
from rrpolicy.data.observation_keys import chosen_keys

INFO_FILE = Path("meta", "info.json")
_ACTION, _REWARD, _EPISODE, _FRAME = "action", "next.reward", "episode_index", "frame_index"
_PICTURES = ("image", "video")
_MOST_FILES = 2**20
_RATIO = 16  # parquet stores values that occur often once


def from_lerobot(folder: str | os.PathLike[str], observation_keys: Sequence[str] | None = None) -> TrajectoryDataset:
    """Read a dataset of LeRobot (versions 2 and 3 of its format), with ``pip install 'rrpolicy[lerobot]'``.

    ``next.done`` marks the last row of an episode whether it was over or cut off, so how episodes ended is not known.

    :param folder: holds ``meta/info.json`` and ``data/chunk-000/*.parquet``
    :param observation_keys: features that make the observation, in this order; default: all of numbers whose names
        begin with ``observation``, in the order of the file, with a warning that names pictures left out
    :return: the dataset; ``metadata["observation_keys"]`` names the features
    :raises FileNotFoundError: when there is no such folder
    :raises ValueError: naming the folder or file and its fault, or when pyarrow is not installed
    """
    place = Path(folder)
    kinds = {name: feature["dtype"] for name, feature in _features(place).items()}
    numbers = [name for name, kind in kinds.items() if kind not in (*_PICTURES, "string")]
    usual, pictures = (
        [name for name in names if name.split(".")[0] == "observation"]
        for names in (numbers, [name for name, kind in kinds.items() if kind in _PICTURES])
    )
    keys = chosen_keys(place, observation_keys, usual, numbers, pictures)
    files = _files(place)
    allowed, parts = FREE_BYTES + _RATIO * sum(map(regular_size, files)), []
    for path in files:
        part = _read(path, [*keys, _ACTION, _EPISODE, _FRAME], _REWARD, allowed)
        allowed -= sum(4 * values.size for values in part.values())
        parts.append(part)
    names = [name for name in parts[0] if all(name in part for part in parts)]
    try:
        columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    except ValueError as error:  # other widths in other files
        raise FileFault(place, error) from error
    episodes, frames = (columns[name].reshape(-1) for name in (_EPISODE, _FRAME))
    order = np.lexsort((frames, episodes))
    lengths = _lengths(place, episodes[order], frames[order])
    rewards = columns[_REWARD][order].reshape(-1) if _REWARD in columns else None
    metadata = {"source": printable(place.resolve().name, 200), "format": "lerobot", "observation_keys": list(keys)}
    try:
        observations = np.concatenate([columns[key] for key in keys], axis=1)[order]
        return TrajectoryDataset(observations, columns[_ACTION][order], lengths, rewards, metadata)
    except ValueError as error:
        raise FileFault(place, error) from error


def _features(folder: Path) -> dict[str, Mapping[str, Any]]:
    path = folder / INFO_FILE
    regular_size(path)
    try:
        features = from_json(read_small(path))["features"]
        found = {name: feature for name, feature in features.items() if isinstance(feature["dtype"], str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileFault(path, f"does not describe features of LeRobot: {error!r:.100}") from error
    if _ACTION not in found:
        raise FileFault(path, f"has no feature {_ACTION!r}, it has {sorted(found)[:20]}")
    return found


def _files(folder: Path) -> list[Path]:
    files = sorted((folder / "data").glob("*/*.parquet"))
    if not files or len(files) > _MOST_FILES:
        raise FileFault(folder, f"has {len(files)} files data/*/*.parquet, wanted 1 to {_MOST_FILES}")
    return files


def _read(path: Path, needed: Sequence[str], optional: str, allowed: int) -> dict[str, Array]:
    """Columns ``(n, width)`` of one file, which may take so many bytes."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"LeRobot's files need pyarrow: pip install 'rrpolicy[lerobot]' ({error})") from error
    size = regular_size(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            if missing := [name for name in needed if name not in names]:
                raise FileFault(path, f"column {missing[0]!r} is missing, found {sorted(names)[:20]}")
            about, wanted = file.metadata, [*needed, *({optional} & names)]
            unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
            if max(unpacked, 4 * about.num_rows * len(wanted)) > allowed:
                told = f"unpacks to {unpacked} bytes and {about.num_rows} rows"
                raise FileFault(path, f"{told}, too many for a file of {size} bytes")
            table = file.read(columns=wanted)
            return {name: _numbers(path, name, table.column(name).combine_chunks()) for name in wanted}
    except FileFault:
        raise
    except Exception as error:  # damage shows as whatever Arrow happens to raise
        raise FileFault(path, f"is not a readable parquet file: {str(error) or type(error).__name__}") from error


def _numbers(path: Path, name: str, column: Any) -> Array:
    """An array ``(n, width)`` of an Arrow array of numbers, or of lists of equally many numbers."""
    count = len(column)
    values = column.flatten() if hasattr(column.type, "value_type") else column
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "fiub" or column.null_count or values.null_count:
        raise FileFault(path, f"column {name!r} holds {printable(str(column.type), 60)}, wanted numbers in every row")
    width, rest = divmod(len(array), max(count, 1))
    widths = column.value_lengths().to_numpy(zero_copy_only=False) if hasattr(column, "value_lengths") else width
    if not count or rest or not np.all(widths == width):
        raise FileFault(path, f"column {name!r} has {len(array)} numbers in {count} rows, wanted equally many in each")
    return np.asarray(array.reshape(count, width))


def _lengths(folder: Path, episodes: Array, frames: Array) -> Array:
    """Lengths of the episodes, from the sorted numbers of episodes and frames ``(N,)``."""
    ends = np.flatnonzero(np.diff(episodes, append=episodes[-1] + 1))
    lengths = np.diff(ends, prepend=-1)
    wanted = np.arange(len(frames)) - np.repeat(ends - lengths + 1, lengths)
    if (wrong := np.flatnonzero(frames != wanted)).size:
        place = int(wrong[0])
        raise FileFault(
            folder,
            f"episode {episodes[place]} has frame {frames[place]} where frame {wanted[place]} is "
            "wanted: frames are missing or stand twice",
        )
    return lengths
