"""NumPy's ``.npz`` files as datasets, in a layout of flat arrays. Nothing is unpickled, and no more is unpacked than
the size of the file can justify."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.hdf5 import FREE_BYTES, RATIO

_FLAGS = ("terminals", "timeouts")
_KEYS = ("observations", "actions", "rewards", *_FLAGS, "episode_lengths", "terminated", "truncated")
_MOST_MEMBERS = 1000
_WIDEST = 4  # bytes: narrower numbers become float32
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound


def from_npz(path: str | os.PathLike[str]) -> TrajectoryDataset:
    """Read a file that ``numpy.savez`` or ``numpy.savez_compressed`` wrote, with these arrays in environment units:

    - ``observations`` ``(N, obs_dim)``, the observation before each action, and ``actions`` ``(N, action_dim)``
    - ``rewards`` ``(N,)``, optional
    - either ``terminals`` and ``timeouts``, ``(N,)`` booleans, True at the last row of an episode that ended for good
      or was cut off
    - or ``episode_lengths`` ``(E,)``, with or without ``terminated`` and ``truncated``, ``(E,)`` booleans

    Other arrays are not read.

    :param path: the file
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: naming the file and its fault (not such a file, missing array, unequal lengths, NaN)
    """
    place = Path(path)
    arrays = _arrays(place)
    missing = [key for key in ("observations", "actions") if key not in arrays]
    if missing:
        raise FileFault(place, f"array {missing[0]!r} is missing, found {sorted(arrays)}")
    has_lengths, flags = "episode_lengths" in arrays, [key for key in _FLAGS if key in arrays]
    of_episodes = [key for key in ("terminated", "truncated") if key in arrays]
    if (flags and (has_lengths or of_episodes)) or not (has_lengths or len(flags) == 2):
        found = [key for key in _KEYS if key in arrays]
        raise FileFault(place, f"wanted either terminals and timeouts, or episode_lengths, found {found}")
    metadata = {"source": printable(place.name, 200), "format": "npz"}
    try:
        if has_lengths:
            return TrajectoryDataset(**arrays, metadata=metadata)
        return TrajectoryDataset.from_arrays(**arrays, metadata=metadata)
    except ValueError as error:
        raise FileFault(place, error) from error


def _arrays(path: Path) -> dict[str, Array]:
    size = regular_size(path)
    allowed, arrays = FREE_BYTES + RATIO * size, {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) > _MOST_MEMBERS or len(set(names)) < len(names):
                raise FileFault(path, f"has {len(names)} members, wanted at most {_MOST_MEMBERS} with different names")
            for key in _KEYS:
                if f"{key}.npy" in names:
                    arrays[key], allowed = _array(path, archive, key, allowed)
    except FileFault:
        raise
    except Exception as error:  # damage shows as whatever zipfile, zlib or NumPy happen to raise
        raise FileFault(path, f"is not a readable npz file: {str(error) or type(error).__name__}") from error
    return arrays


def _array(path: Path, archive: zipfile.ZipFile, key: str, allowed: int) -> tuple[Array, int]:
    """An array, and how many bytes may still be read."""
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in _PACKED:
        raise FileFault(path, f"{key!r} is compressed by method {info.compress_type}, wanted none or deflate")
    with archive.open(info) as member:
        shape, is_fortran, dtype = _header(path, key, member)
        if dtype.kind not in "fiub":
            raise FileFault(path, f"{key!r} holds {printable(str(dtype), 60)}, wanted real numbers")
        if min(shape, default=0) < 0:
            raise FileFault(path, f"{key!r} has shape {shape}, wanted no negative numbers")
        count = math.prod(shape)
        needed = count * max(dtype.itemsize, _WIDEST)
        if needed > allowed:
            raise FileFault(path, f"{key!r} of shape {shape} takes {needed} bytes, more than its file can justify")
        content = member.read(count * dtype.itemsize)
        if len(content) < count * dtype.itemsize or member.read(1):
            raise FileFault(path, f"{key!r} is not as long as its shape {shape} says")
    values = np.frombuffer(content, dtype, count).reshape(shape, order="F" if is_fortran else "C")
    return values, allowed - needed


def _header(path: Path, key: str, member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(member)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise FileFault(path, f"{key!r} has version {version} of NumPy's format, wanted one of {sorted(readers)}")
    shape, is_fortran, dtype = readers[version](member)
    return shape, is_fortran, dtype
