"""Arrays out of HDF5 files of strangers: only real numbers, only out of the file itself, and no more of them than its
size can justify. Links, external storage and virtual data sets are refused before the HDF5 library follows them.

HDF5's deflate filter inflates a chunk as far as its bytes go, whatever size is declared, so chunks are inflated here
first, a piece at a time; what declares or unpacks to more than :data:`FREE_BYTES` + :data:`RATIO` × file size is
refused.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5l, h5pl, h5s, h5t, h5z

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.typing import Array

FREE_BYTES = 64 * 2**20  # what a file of any size may unpack to
RATIO = 2  # and so many times its size beyond
_FREE_CHUNKS, _BYTES_PER_CHUNK = 1024, 16  # a stored chunk needs a key, an address and its values
_WIDEST = 4  # bytes: narrower numbers become float32
_PIECE = 2**20
_COMPRESSION = {h5z.FILTER_DEFLATE, h5z.FILTER_LZF}
_FILTERS = {*_COMPRESSION, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32}
_LZF_CHUNK = 2**20  # bytes; LZF makes at most 88 of one
_SLACK = 1.01, 128  # what compression and a checksum may add to values that do not become smaller
_LAYOUTS = (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
_SPACES = (h5s.SCALAR, h5s.SIMPLE)
_NUMBERS = (h5t.INTEGER, h5t.FLOAT, h5t.ENUM)  # booleans are an enumeration


@contextlib.contextmanager
def open_hdf5(path: Path, damaged: str = "is not a readable HDF5 file") -> Iterator[Hdf5File]:
    """
    Open a file of a stranger for reading, with no filter plugins in reach.

    :param path: a regular file
    :param damaged: begins the message about whatever the HDF5 library raises while the file is open
    :raises FileNotFoundError: when there is no such file
    :raises FileFault: naming the file and its fault
    """
    size = regular_size(path)
    try:
        with _no_plugins(), h5py.File(path, "r", locking=False) as file:
            yield Hdf5File(path, file, size)
    except FileFault:
        raise
    except Exception as error:  # damage shows as whatever the library, its bindings or NumPy happen to raise
        raise FileFault(path, f"{damaged}: {str(error) or type(error).__name__}") from error


class Hdf5File:
    """An open file, and how much may still be read from it."""

    def __init__(self, path: Path, file: h5py.File, size: int) -> None:
        self._path = path
        self._file = file
        self.size = size
        self._allowed = self._bytes = FREE_BYTES + RATIO * size
        self._chunks = _FREE_CHUNKS + size // _BYTES_PER_CHUNK

    def names(self, most: int = 20) -> list[str]:
        """Names at the top of the file, for messages."""
        return sorted(itertools.islice(self._file, most))

    def names_in(self, *names: str, most: int) -> list[str]:
        """Up to ``most`` names in a group."""
        item = self._item(*names)
        if not isinstance(item, h5py.Group):
            raise self._fault(f"{'/'.join(names)!r} is a {type(item).__name__}, wanted a group")
        return list(itertools.islice(item, most))

    def has(self, *names: str) -> bool:
        """Whether there is anything under this path of names, which need not be readable."""
        group = self._file if len(names) == 1 else self._item(*names[:-1])
        return isinstance(group, h5py.Group) and group.id.links.exists(names[-1].encode())

    def is_group(self, *names: str) -> bool:
        """Whether a group is there."""
        return self.has(*names) and isinstance(self._item(*names), h5py.Group)

    def array(self, *names: str) -> Array:
        """
        The numbers under a path of names, read-only where they are float32 already.

        :raises FileFault: when there is nothing, no array of numbers, or more of them than the file can justify
        """
        name, item = "/".join(names), self._item(*names)
        if not isinstance(item, h5py.Dataset):
            raise self._fault(f"{name!r} is a {type(item).__name__}, wanted an array")
        self._check_kind(name, item)
        self._check_size(name, item)
        if item.size == 0:
            return np.empty(item.shape, item.dtype)
        values = np.asarray(item[()])
        values.flags.writeable = values.dtype != np.float32  # a dataset takes frozen float32 without a copy
        return values

    def _item(self, *names: str) -> Any:
        """What is stored under a path of names; no link is followed."""
        item: Any = self._file
        for depth, name in enumerate(names):
            key, place = name.encode(), "/".join(names[: depth + 1])
            if not isinstance(item, h5py.Group) or not item.id.links.exists(key):
                raise self._fault(f"{place!r} is missing")
            if item.id.links.get_info(key).type != h5l.TYPE_HARD:
                raise self._fault(f"{place!r} is a link to somewhere else, wanted it in the file itself")
            item = item[name]
        return item

    def _check_kind(self, name: str, item: h5py.Dataset) -> None:
        plan, kind = item.id.get_create_plist(), item.id.get_type()
        if plan.get_layout() not in _LAYOUTS or plan.get_external_count():
            raise self._fault(f"{name!r} lies in other files, wanted it in the file itself")
        if item.id.get_space().get_simple_extent_type() not in _SPACES:
            raise self._fault(f"{name!r} has no shape, wanted an array")
        if kind.get_class() not in _NUMBERS or item.dtype.kind not in "fiub" or item.dtype.itemsize != kind.get_size():
            raise self._fault(f"{name!r} holds {item.dtype}, wanted real numbers")
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        compressions = _COMPRESSION.intersection(filters)
        if not _FILTERS.issuperset(filters) or len(set(filters)) < len(filters) or len(compressions) > 1:
            raise self._fault(f"{name!r} has the filters {filters}, wanted at most one each of {sorted(_FILTERS)}")

    def _check_size(self, name: str, item: h5py.Dataset) -> None:
        """Compare what is declared with the size of the file, then what chunks unpack to with what is declared."""
        width = item.dtype.itemsize
        needed = math.prod(item.shape) * max(width, _WIDEST)
        if item.chunks is not None:
            chunk = math.prod(item.chunks) * width
            count = math.prod(-(-size // part) for size, part in zip(item.shape, item.chunks, strict=True))
            needed = max(needed, chunk * count)
            if count > self._chunks:
                raise self._fault(f"{name!r} declares {count} chunks, more than {self.size} bytes can hold")
            self._chunks -= count
        if needed > self._bytes:
            raise self._fault(
                f"{name!r} of shape {item.shape} takes {needed} bytes, and all that is read from a file "
                f"of {self.size} bytes may take {self._allowed}"
            )
        self._bytes -= needed
        if item.chunks is not None and item.compression is not None:
            self._check_chunks(name, item, chunk, count)

    def _check_chunks(self, name: str, item: h5py.Dataset, chunk: int, count: int) -> None:
        stored: list[Any] = []

        def take(found: Any) -> bool | None:
            stored.append(found)
            return True if len(stored) > count else None  # anything but None ends the walk

        item.id.chunk_iter(take)
        if len(stored) > count or sum(found.size for found in stored) > self.size:
            raise self._fault(f"{name!r} lists more chunks than its shape {item.shape} and the file have room for")
        plan = item.id.get_create_plist()
        kinds = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        place = next(i for i, kind in enumerate(kinds) if kind in _COMPRESSION)
        checksum = 4 if h5z.FILTER_FLETCHER32 in kinds[:place] else 0
        for found in stored:
            if found.filter_mask >> place & 1:
                continue  # stored as it is
            most = _LZF_CHUNK if kinds[place] == h5z.FILTER_LZF else self.size
            if found.size > min(most, chunk * _SLACK[0]) + _SLACK[1]:
                raise self._fault(f"{name!r} has a chunk of {found.size} bytes for {chunk}")
            if kinds[place] == h5z.FILTER_DEFLATE:
                _, content = item.id.read_direct_chunk(found.chunk_offset)
                if not _inflates_to(content, chunk + checksum):
                    raise self._fault(f"{name!r} has a chunk that does not unpack to the {chunk} bytes it should have")

    def _fault(self, words: str) -> FileFault:
        return FileFault(self._path, words)


def _inflates_to(content: bytes, wanted: int) -> bool:
    """Whether deflated bytes become exactly so many; they are thrown away a piece at a time."""
    engine, total = zlib.decompressobj(), 0
    while not engine.eof and total <= wanted:
        piece = engine.decompress(content, _PIECE)
        content, total = engine.unconsumed_tail, total + len(piece)
        if not piece and not content:
            return False
    return total == wanted


@contextlib.contextmanager
def _no_plugins() -> Iterator[None]:
    """Without HDF5's folders of filter plugins, shared libraries that a file could have loaded."""
    folders = [h5pl.get(i) for i in range(h5pl.size())]
    for _ in folders:
        h5pl.remove(0)
    try:
        yield
    finally:
        for folder in folders:
            h5pl.append(folder)
