"""Surgery on HDF5: other types, shapes without data, filters, and links that lead out of the file."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from fuzz.hostile import Rng, outside, pick
from fuzz.mutate import Mutation, anything, several

SECRET = 1234.5  # what stands in the file that no link may reach
_DTYPES: tuple[Any, ...] = (
    "f2",
    "f8",
    ">f4",
    "i1",
    "i8",
    "u8",
    "c16",
    "S5",
    "b1",
    h5py.string_dtype(),
    h5py.vlen_dtype("f4"),
    h5py.ref_dtype,
    np.dtype([("x", "f4"), ("y", "i4")]),
    h5py.enum_dtype({"NO": 0, "YES": 1}, basetype="i1"),
    "O",
)
_VALUES = (np.nan, np.inf, -np.inf, 1e38, 1e300, -1.0, 2.0**62, 0.5, 2.0)
_SHAPES = ((), (0,), (1,), (2,), (10**4, 4), (10**9, 4), (2**40,), (3, 4, 5), (1,) * 30, (2**31, 2**20))


def secret_file() -> str:
    """A file with the arrays of a D4RL data set, all of one value, beside what may be read."""
    path = outside() / "secret.hdf5"
    if not path.exists():
        with h5py.File(path, "w") as file:
            for name in ("observations", "actions"):
                file[name] = np.full((8, 4 if name == "observations" else 2), SECRET)
            for name in ("rewards", "terminals", "timeouts"):
                file[name] = np.zeros(8)
    return str(path)


def hdf5_file(content: bytes, rng: Rng) -> Mutation:
    """One thing changed in an HDF5 file."""
    return several(((3.0, _surgery), (1.0, anything)), content, rng)


def _surgery(content: bytes, rng: Rng) -> Mutation:
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name))
        words = pick(rng, _OPERATIONS)(file, pick(rng, names), rng)
    return buffer.getvalue(), words


def _old(file: h5py.File, name: str) -> np.ndarray:
    item = file[name]
    if isinstance(item, h5py.Dataset) and item.size > 10**6:
        raise ValueError("too large to be mutated once more")
    return item[()] if isinstance(item, h5py.Dataset) else np.zeros(3)


def _replace(file: h5py.File, name: str, **arguments: Any) -> None:
    del file[name]
    file.create_dataset(name, **arguments)


def _gone(file: h5py.File, name: str, rng: Rng) -> str:
    del file[name]
    return f"without {name}"


def _dtype(file: h5py.File, name: str, rng: Rng) -> str:
    dtype, shape = pick(rng, _DTYPES), np.shape(_old(file, name))
    _replace(file, name, shape=shape, dtype=dtype)
    return f"{name} is {dtype!r:.60}"


def _shape(file: h5py.File, name: str, rng: Rng) -> str:
    shape = pick(rng, _SHAPES)
    options: dict[str, Any] = {"chunks": True} if shape and np.prod(shape, dtype=float) > 10**6 else {}
    _replace(file, name, shape=shape, dtype=pick(rng, ("f4", "f8", "b1")), fillvalue=None, **options)
    return f"{name} has shape {shape}"


def _value(file: h5py.File, name: str, rng: Rng) -> str:
    values = np.array(_old(file, name), dtype=np.float64)
    value = pick(rng, _VALUES)
    if values.size:
        values.reshape(-1)[int(rng.integers(values.size))] = value
    _replace(file, name, data=values)
    return f"{name} holds {value}"


def _length(file: h5py.File, name: str, rng: Rng) -> str:
    values = _old(file, name)
    ways: tuple[Callable[[], np.ndarray], ...] = (
        lambda: values[:-1],
        lambda: np.concatenate([values, values]),
        lambda: values[:0],
        lambda: values.T,
        lambda: values[..., None],
        lambda: values.reshape(-1),
    )
    _replace(file, name, data=pick(rng, ways)())
    return f"{name} has shape {file[name].shape}"


def _link(file: h5py.File, name: str, rng: Rng) -> str:
    key = pick(rng, ("observations", "actions", "nowhere"))
    places = ((secret_file(), key), ("../../etc/passwd", "/"), ("/dev/zero", "x"))
    links = (
        *(h5py.ExternalLink(*place) for place in places),
        *(h5py.SoftLink(inner) for inner in ("/nowhere", f"/{name}", "/")),
    )
    link = pick(rng, links)
    del file[name]
    file[name] = link
    return f"{name} is {type(link).__name__} to {getattr(link, 'filename', '')} {link.path}"


def _external(file: h5py.File, name: str, rng: Rng) -> str:
    place, shape = pick(rng, (secret_file(), "/dev/zero", "/etc/passwd")), np.shape(_old(file, name))
    del file[name]
    file.create_dataset(name, shape=shape, dtype="f8", external=[(place, 0, h5py.h5f.UNLIMITED)])
    return f"{name} lies in {place}"


def _group(file: h5py.File, name: str, rng: Rng) -> str:
    del file[name]
    file.create_group(name)
    return f"{name} is a group"


def _filtered(file: h5py.File, name: str, rng: Rng) -> str:
    values = _old(file, name)
    shape = values.shape or (4,)
    if rng.random() < 0.5:
        _replace(file, name, data=np.zeros((10 ** int(rng.integers(5, 8)), *shape[1:2]), "f4"), compression="gzip")
        return f"{name} has {file[name].shape}, packed small"
    method = pick(rng, ("gzip", "lzf"))
    _replace(file, name, data=np.resize(values, shape), compression=method, chunks=shape, fletcher32=True)
    return f"{name} is packed"


def _attribute(file: h5py.File, name: str, rng: Rng) -> str:
    item = pick(rng, (file, file[name]))
    key = pick(rng, ("id", "total_steps", "total_episodes", "seed", "x", *item.attrs))
    value = pick(rng, (-1, 2**62, 1.5, np.nan, "text", "\x1b[31m", np.zeros((3, 3)), b"\xff", np.zeros(0)))
    item.attrs[key] = value
    return f"attribute {key} = {value!r:.30}"


_OPERATIONS: tuple[Callable[[h5py.File, str, Rng], str], ...] = (
    _gone,
    _dtype,
    _dtype,
    _shape,
    _shape,
    _value,
    _length,
    _length,
    _link,
    _external,
    _group,
    _filtered,
    _attribute,
)
