"""Zarr folders of format 2 as Diffusion Policy keeps them (https://github.com/real-stanford/diffusion_policy).
The format is read here: of Zarr's codecs some unpickle, and none has a bound on what it unpacks to."""

from __future__ import annotations

import itertools
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
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

GROUP_FILE, _ARRAY_FILE = ".zgroup", ".zarray"
_ACTION, _REWARD = "action", "reward"
_MOST_JSON, _MOST_CHUNKS, _FREE_CHUNKS, _MOST_ARRAYS = 2**16, 2**20, 1024, 1000
_RATIO = 16  # what chunks may unpack to, in sizes of their files
_HEADER = 16  # bytes of Blosc's
_DTYPE = re.compile(r"\|b1|[<>|][fiu][1248]")


def from_zarr(folder: str | os.PathLike[str], observation_keys: Sequence[str] | None = None) -> TrajectoryDataset:
    """Read ``data/<key>`` ``(N, ...)`` and ``meta/episode_ends`` ``(E,)``. Rewards are those of ``data/reward``, where
    it is there; how episodes ended is not told. Chunks that Blosc packed need ``pip install 'rrpolicy[zarr]'``.

    :param folder: a Zarr group of format 2
    :param observation_keys: arrays that make the observation, in this order, grids row by row; default: all but
        ``action``, ``reward`` and pictures, sorted, with a warning that names pictures left out
    :return: the dataset; ``metadata["observation_keys"]`` names the arrays
    :raises FileNotFoundError: when there is no such folder
    :raises ValueError: naming the folder or file and its fault
    """
    place = Path(folder)
    arrays = {path.parent.name: _Stored.open(path) for path in
              itertools.islice(sorted((place / "data").glob(f"*/{_ARRAY_FILE}")), _MOST_ARRAYS)}  # fmt: skip
    if _ACTION not in arrays:
        raise FileFault(place, f"has no array 'data/{_ACTION}', found {sorted(arrays)[:20]}")
    numbers = sorted(name for name, one in arrays.items() if not one.is_picture)
    usual = [name for name in numbers if name not in (_ACTION, _REWARD)]
    keys = chosen_keys(place, observation_keys, usual, numbers, sorted(set(arrays) - set(numbers)))
    marks = place / "meta" / "episode_ends" / _ARRAY_FILE
    if not marks.is_file():
        raise FileFault(place, "has no array 'meta/episode_ends'")
    try:
        rewarded = [arrays[_REWARD]] if _REWARD in arrays else []
        read = _read(place, [_Stored.open(marks), arrays[_ACTION], *rewarded, *(arrays[key] for key in keys)])
        ends, actions, *others = read
        if ends.dtype.kind not in "iu":
            raise FileFault(place, f"meta/episode_ends is of dtype {ends.dtype}, wanted whole numbers")
        parts = others[len(rewarded) :]
        columns = [values.reshape(len(values), int(np.prod(values.shape[1:]))) for values in parts]
        rewards = others[0].reshape(-1) if rewarded else None
        metadata = {"source": printable(place.resolve().name, 200), "format": "zarr", "observation_keys": list(keys)}
        observations = np.concatenate(columns, axis=1)
        lengths = np.diff(ends.reshape(-1).astype(np.int64), prepend=0)
        return TrajectoryDataset(observations, actions, lengths, rewards, metadata)
    except FileFault:
        raise
    except (ValueError, OverflowError) as error:
        raise FileFault(place, error) from error


def _read(folder: Path, arrays: Sequence[_Stored]) -> list[Array]:
    """
    The values of arrays, from all chunks.

    :raises FileFault: when a chunk is damaged, or all of them are larger than their files can justify
    """
    chunks = [one.chunk_files() for one in arrays]
    size = sum(regular_size(path) for files in chunks for _, path in files)
    needed = sum(one.n_bytes for one in arrays)
    if needed > FREE_BYTES + _RATIO * size:
        raise FileFault(folder, f"takes {needed} bytes, too many for {size} bytes of files")
    return [one.read(files) for one, files in zip(arrays, chunks, strict=True)]


@dataclass(frozen=True)
class _Stored:
    """An array, of which nothing has been read but its description."""

    folder: Path
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Any
    fill: Any
    separator: str
    codec: str | None

    @classmethod
    def open(cls, path: Path) -> _Stored:
        regular_size(path)
        try:
            values = from_json(read_small(path, _MOST_JSON))
            shape, chunks = (tuple(values[name]) for name in ("shape", "chunks"))
            codec = None if values["compressor"] is None else values["compressor"]["id"]
            kind, fill = values["dtype"], values.get("fill_value")
            if not _DTYPE.fullmatch(kind):
                raise FileFault(path, f"holds {printable(kind, 40)}, wanted numbers")
            dtype = np.dtype(kind)
            found = cls(path.parent, shape, chunks, dtype, values["order"], 0 if fill is None else float(fill),
                        values.get("dimension_separator", "."), codec)  # fmt: skip
            plain = not values["filters"] and values["zarr_format"] == 2
        except FileFault:
            raise
        except (OSError, OverflowError, ValueError, KeyError, TypeError) as error:
            raise FileFault(path, f"does not describe an array of Zarr: {error!r:.100}") from error
        numbers = all(type(one) is int for one in (*shape, *chunks))
        if not numbers or not shape or len(shape) != len(chunks) or min(shape) < 0 or min(chunks) < 1:
            raise FileFault(path, f"has shape {printable(shape, 60)} and chunks {printable(chunks, 60)}")
        if not plain or found.order not in ("C", "F"):
            raise FileFault(path, f"holds {dtype}, wanted numbers of format 2 without filters, in order C or F")
        if codec not in (None, "blosc", "zlib", "gzip") or found.separator not in (".", "/"):
            raise FileFault(path, f"is packed by {printable(codec, 40)}, wanted blosc, zlib, gzip or nothing")
        return found

    @property
    def is_picture(self) -> bool:
        """Whether it has rows, columns and channels, or bytes in rows and columns."""
        return len(self.shape) > 3 or (len(self.shape) == 3 and self.dtype == np.uint8)

    @property
    def n_bytes(self) -> int:
        """What reading it takes."""
        whole = math.prod(self.shape) * max(self.dtype.itemsize, 4)
        return max(whole, math.prod(self.chunks) * self.dtype.itemsize)

    def chunk_files(self) -> list[tuple[tuple[int, ...], Path]]:
        """
        The places of the chunks in the grid, and their files, of which those of one value alone need not be there.

        :raises FileFault: for a grid of more chunks than there could be files for
        """
        grid = [-(-size // part) for size, part in zip(self.shape, self.chunks, strict=True)]
        most = _FREE_CHUNKS + sum(1 for _ in itertools.islice(self.folder.rglob("*"), _MOST_CHUNKS))
        if math.prod(grid) > most:
            raise FileFault(self.folder, f"declares {math.prod(grid)} chunks, and has no files for more than {most}")
        return [(place, path) for place in itertools.product(*(range(count) for count in grid))
                if (path := self.folder / self.separator.join(map(str, place))).exists()]  # fmt: skip

    def read(self, files: Sequence[tuple[tuple[int, ...], Path]]) -> Array:
        """The values, from the files of :meth:`chunk_files`."""
        each = math.prod(self.chunks) * self.dtype.itemsize
        values = np.full(self.shape, self.fill, self.dtype)
        for place, path in files:
            begins = [index * part for index, part in zip(place, self.chunks, strict=True)]
            inside = tuple(slice(begin, begin + part) for begin, part in zip(begins, self.chunks, strict=True))
            target = values[inside]
            chunk = np.frombuffer(self._unpacked(path, each), self.dtype).reshape(self.chunks, order=self.order)
            target[...] = chunk[tuple(slice(0, part) for part in target.shape)]
        return values

    def _unpacked(self, path: Path, wanted: int) -> bytes:
        """The bytes of a chunk, exactly as many as there should be."""
        content = path.read_bytes()
        try:
            if self.codec == "blosc":
                content = _from_blosc(content, wanted)
            elif self.codec is not None:
                engine = zlib.decompressobj(31 if self.codec == "gzip" else 15)
                content = engine.decompress(content, wanted + 1)
        except (zlib.error, RuntimeError, ValueError) as error:
            raise FileFault(path, f"is a damaged chunk: {error}") from error
        if len(content) != wanted:
            raise FileFault(path, f"is a damaged chunk: it has not the {wanted} bytes that it should have")
        return content


def _from_blosc(content: bytes, wanted: int) -> bytes:
    try:
        import numcodecs.blosc
    except ImportError as error:
        raise ValueError(f"chunks packed by Blosc need numcodecs: pip install 'rrpolicy[zarr]' ({error})") from error
    declared = int.from_bytes(content[4:8], "little"), int.from_bytes(content[12:16], "little")
    if len(content) < _HEADER or declared != (wanted, len(content)):
        raise ValueError(f"it declares {declared[0]} bytes, wanted {wanted}")
    return bytes(numcodecs.blosc.decompress(content))
