"""Arrays of Zarr, formats 2 and 3 (https://zarr-specs.readthedocs.io). They are read here: of Zarr's codecs some
unpickle, and none has a bound on what it unpacks to."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.common.schema import from_json
from rrpolicy.common.typing import Array
from rrpolicy.data.hdf5 import FREE_BYTES
from rrpolicy.data.zarr_files import GroupFiles

ARRAY_FILES = (".zarray", "zarr.json")  # of formats 2 and 3
_MOST_JSON, _FREE_CHUNKS = 2**16, 1024
_RATIO = 16  # what chunks may unpack to, in sizes of their files
_DTYPE = re.compile(r"\|b1|[<>|][fiu][1248]")
_DTYPE_3 = re.compile(r"bool|float(16|32|64)|u?int(8|16|32|64)")


@dataclass(frozen=True)
class StoredArray:
    """
    An array, of which nothing has been read but its description.

    :param folder: where it stands in the group
    :param shape: of the array
    :param chunks: shape of a chunk
    :param dtype: of the numbers
    :param order: axes of the array in the order in which a chunk holds them
    :param fill: value of chunks that have no file
    :param prefix: of the name of a chunk's file
    :param separator: between the numbers in it
    :param codec: what packed the bytes of a chunk
    """

    files: GroupFiles
    folder: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: tuple[int, ...]
    fill: float
    prefix: str
    separator: str
    codec: str | None

    @classmethod
    def open(cls, files: GroupFiles, name: str) -> StoredArray:
        """
        Read the description of an array.

        :param name: of the file that holds it
        :raises FileFault: for one that is damaged or of something else than numbers, packed by codecs known here
        """
        path = files.place / name
        folder, _, kind = name.rpartition("/")
        try:
            values = from_json(files.read(name, _MOST_JSON))
            about = (_format_2 if kind == ARRAY_FILES[0] else _format_3)(values)
        except _Unreadable as error:
            raise FileFault(path, error) from None
        except FileFault:
            raise
        except (OSError, OverflowError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise FileFault(path, f"does not describe an array of Zarr: {error!r:.100}") from error
        found = cls(files, folder, **about)
        numbers = all(type(one) is int for one in (*found.shape, *found.chunks))
        if not numbers or not found.shape or len(found.shape) != len(found.chunks):
            raise FileFault(path, f"has shape {printable(found.shape, 60)} and chunks {printable(found.chunks, 60)}")
        if min(found.shape) < 0 or min(found.chunks) < 1 or sorted(found.order) != list(range(len(found.shape))):
            raise FileFault(path, f"has shape {printable(found.shape, 60)} and chunks {printable(found.chunks, 60)}")
        if found.separator not in (".", "/"):
            raise FileFault(path, f"has chunks with {printable(found.separator, 20)} in their names, wanted . or /")
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

    def chunk_files(self) -> list[tuple[tuple[int, ...], str]]:
        """
        The places of the chunks in the grid, and their files, of which those of one value alone need not be there.

        :raises FileFault: for a grid of more chunks than there could be files for
        """
        grid = [-(-size // part) for size, part in zip(self.shape, self.chunks, strict=True)]
        if math.prod(grid) > (most := _FREE_CHUNKS + len(self.files.sizes)):
            place = self.files.place / self.folder
            raise FileFault(place, f"declares {math.prod(grid)} chunks, and has no files for more than {most}")
        return [
            (place, name)
            for place in itertools.product(*(range(count) for count in grid))
            if (name := self._name(place)) in self.files.sizes
        ]

    def _name(self, place: Sequence[int]) -> str:
        return f"{self.folder}/{self.prefix}{self.separator.join(map(str, place))}"

    def read(self, chunks: Sequence[tuple[tuple[int, ...], str]]) -> Array:
        """The values, from the files of :meth:`chunk_files`."""
        each = math.prod(self.chunks) * self.dtype.itemsize
        values = np.full(self.shape, self.fill, self.dtype)
        stored = [self.chunks[axis] for axis in self.order]
        back = np.argsort(self.order)
        for place, name in chunks:
            begins = [index * part for index, part in zip(place, self.chunks, strict=True)]
            inside = tuple(slice(begin, begin + part) for begin, part in zip(begins, self.chunks, strict=True))
            target = values[inside]
            chunk = np.frombuffer(self._unpacked(name, each), self.dtype).reshape(stored).transpose(back)
            target[...] = chunk[tuple(slice(0, part) for part in target.shape)]
        return values

    def _unpacked(self, name: str, wanted: int) -> bytes:
        """The bytes of a chunk, exactly as many as there should be."""
        path = self.files.place / name
        content = self.files.read(name, max(wanted, _RATIO * self.files.sizes[name]))
        try:
            if self.codec is not None:
                content = _CODECS[self.codec](content, wanted)
        except (zlib.error, RuntimeError, ValueError) as error:
            raise FileFault(path, f"is a damaged chunk: {error}") from error
        if len(content) != wanted:
            raise FileFault(path, f"is a damaged chunk: it has not the {wanted} bytes that it should have")
        return content


def read_arrays(place: object, arrays: Sequence[StoredArray]) -> list[Array]:
    """
    The values of arrays, from all chunks.

    :param place: for the error
    :raises FileFault: when a chunk is damaged, or all of them are larger than their files can justify
    """
    chunks = [one.chunk_files() for one in arrays]
    size = sum(one.files.sizes[name] for one, found in zip(arrays, chunks, strict=True) for _, name in found)
    needed = sum(one.n_bytes for one in arrays)
    if needed > FREE_BYTES + _RATIO * size:
        raise FileFault(str(place), f"takes {needed} bytes, too many for {size} bytes of files")
    return [one.read(found) for one, found in zip(arrays, chunks, strict=True)]


# ---------------------------------------------------------------------- descriptions


class _Unreadable(ValueError):
    """A description that is in order, of something that is not read."""


def _format_2(values: Mapping[str, Any]) -> dict[str, Any]:
    kind, shape, fill, order = values["dtype"], tuple(values["shape"]), values.get("fill_value"), values["order"]
    if not _DTYPE.fullmatch(kind):
        raise _Unreadable(f"holds {printable(kind, 40)}, wanted numbers")
    codec = None if values["compressor"] is None else values["compressor"]["id"]
    if values["filters"] or values["zarr_format"] != 2 or order not in ("C", "F"):
        raise _Unreadable(f"holds {kind}, wanted numbers of format 2 without filters, in order C or F")
    if codec is not None and codec not in _CODECS:
        raise _Unreadable(f"is packed by {printable(codec, 40)}, wanted one of {', '.join(_CODECS)} or nothing")
    axes = tuple(range(len(shape)))
    return {
        "shape": shape,
        "chunks": tuple(values["chunks"]),
        "dtype": np.dtype(kind),
        "order": axes if order == "C" else axes[::-1],
        "fill": 0.0 if fill is None else float(fill),
        "prefix": "",
        "separator": values.get("dimension_separator", "."),
        "codec": codec,
    }


def _format_3(values: Mapping[str, Any]) -> dict[str, Any]:
    if values["zarr_format"] != 3 or values["node_type"] != "array":
        raise _Unreadable("is no array of format 3")
    kind, shape, keys = values["data_type"], tuple(values["shape"]), values["chunk_key_encoding"]
    if not isinstance(kind, str) or not _DTYPE_3.fullmatch(kind):
        raise _Unreadable(f"holds {printable(kind, 40)}, wanted numbers")
    if values["chunk_grid"]["name"] != "regular" or keys["name"] not in ("default", "v2"):
        raise _Unreadable("has chunks that are not of one shape, or oddly named ones")
    if values.get("storage_transformers"):
        raise _Unreadable("has storage transformers, wanted none")
    separator = keys.get("configuration", {}).get("separator", "/" if keys["name"] == "default" else ".")
    order, packed, endian = tuple(range(len(shape))), None, None
    for codec in values["codecs"]:
        name, given = codec["name"], codec.get("configuration", {})
        if name == "transpose" and endian is None:
            order = tuple(order[axis] for axis in given["order"])
        elif name == "bytes" and endian is None:
            endian = given.get("endian", "little")
        elif name in _CODECS and endian is not None and packed is None:
            packed = name
        else:
            raise _Unreadable(f"is packed by {printable(name, 40)}, wanted one of {', '.join(_CODECS)} or nothing")
    if endian not in ("little", "big"):
        raise _Unreadable("does not say in which order the bytes of a number stand")
    return {
        "shape": shape,
        "chunks": tuple(values["chunk_grid"]["configuration"]["chunk_shape"]),
        "dtype": np.dtype(kind).newbyteorder("<" if endian == "little" else ">"),
        "order": order,
        "fill": float(values["fill_value"]),
        "prefix": f"c{separator}" if keys["name"] == "default" else "",
        "separator": separator,
        "codec": packed,
    }


# ---------------------------------------------------------------------- codecs


def _from_zlib(content: bytes, wanted: int) -> bytes:
    return zlib.decompressobj(15).decompress(content, wanted + 1)


def _from_gzip(content: bytes, wanted: int) -> bytes:
    return zlib.decompressobj(31).decompress(content, wanted + 1)


def _from_blosc(content: bytes, wanted: int) -> bytes:
    declared = int.from_bytes(content[4:8], "little"), int.from_bytes(content[12:16], "little")
    if len(content) < 16 or declared != (wanted, len(content)):
        raise ValueError(f"it declares {declared[0]} bytes, wanted {wanted}")
    return bytes(_numcodecs("blosc").decompress(content))


def _from_zstd(content: bytes, wanted: int) -> bytes:
    """A frame that tells its size (RFC 8878, section 3.1.1), as Zarr writes it."""
    if content[:4] != b"\x28\xb5\x2f\xfd" or len(content) < 6:
        raise ValueError("it is no frame of Zstandard")
    about = content[4]
    whole = bool(about & 0x20)
    width = (1 if whole else 0, 2, 4, 8)[about >> 6]
    begin = 5 + (not whole) + (0, 1, 2, 4)[about & 3]
    declared = int.from_bytes(content[begin : begin + width], "little") + (256 if width == 2 else 0)
    if not width or declared != wanted:
        raise ValueError(f"it declares {declared if width else 'no number of'} bytes, wanted {wanted}")
    return bytes(_numcodecs("zstd").decompress(content))


def _numcodecs(name: str) -> Any:
    try:
        import numcodecs.blosc
        import numcodecs.zstd
    except ImportError as error:
        raise ValueError(f"its codec needs numcodecs: pip install 'rrpolicy[zarr]' ({error})") from error
    return getattr(numcodecs, name)


_CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "blosc": _from_blosc,
    "zlib": _from_zlib,
    "gzip": _from_gzip,
    "zstd": _from_zstd,
}
