"""Which arrays of a Minari episode make a vector: the rule of ``common.spaces.flattened_box``, applied to the JSON of a
space, which is never built, since a file may declare bounds of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.common.spaces import GOAL_KEYS
from rrpolicy.common.typing import Array

_MOST_LEVELS, _MOST_PARTS = 16, 1000
_KINDS = ("Box", "Dict", "Tuple", "Discrete", "MultiDiscrete", "MultiBinary", "Text")


class Part(NamedTuple):
    """
    One array of a vector.

    :param path: keys of dictionaries and numbers in tuples that lead to it
    :param n_axes: of one element
    """

    path: tuple[str | int, ...]
    n_axes: int


def parts_of(folder: Path, name: str, space: Mapping[str, Any]) -> tuple[Part, ...]:
    """
    The arrays of a space in the order of its vector.

    :param folder: for errors
    :param name: ``"observation_space"`` or ``"action_space"``
    :param space: JSON of a Box, or a Dict or Tuple of boxes
    :raises ValueError: for other spaces and for images, naming the folder
    """
    parts = []
    for part in _walk(folder, name, space, ()):
        parts.append(part)
        if len(parts) > _MOST_PARTS:
            raise FileFault(folder, f"{name} has more than {_MOST_PARTS} parts")
    if not parts:
        raise FileFault(folder, f"{name} is {space.get('type')} without parts, wanted at least one Box")
    return tuple(parts)


def _walk(folder: Path, name: str, space: Any, path: tuple[str | int, ...]) -> Iterator[Part]:
    kind = space.get("type") if isinstance(space, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS or len(path) > _MOST_LEVELS:
        shown = printable(repr(kind), 40)
        raise FileFault(folder, f"not a Minari dataset that can be read: {_place(name, path)} is of type {shown}")
    if kind in ("Dict", "Tuple"):
        for key, part in _entries(folder, _place(name, path), kind, space.get("subspaces")):
            yield from _walk(folder, name, part, (*path, key))
        return
    shape = space.get("shape")
    told = {"Box": shape, "Discrete": space.get("n")}.get(kind)
    shown = f"{_place(name, path)} is {kind}{'' if told is None else printable(f'({told})', 60)}"
    if kind != "Box" or not isinstance(shape, list):
        raise FileFault(folder, f"{shown}, wanted a flat Box, or a Dict or Tuple of boxes")
    if len(shape) > 1 and space.get("dtype") == "uint8":
        raise FileFault(folder, f"{shown}, wanted a flat Box: images are not supported, encode them as vectors")
    yield Part(path, len(shape))


def _entries(folder: Path, place: str, kind: str, parts: Any) -> list[tuple[str | int, Any]]:
    """Keys and spaces that are used, as ``common.spaces`` chooses them."""
    if kind == "Tuple" and isinstance(parts, list):
        return list(enumerate(parts))
    if kind == "Tuple" or not isinstance(parts, dict):
        raise FileFault(folder, f"{place} is a {kind} with subspaces of type {type(parts).__name__}")
    if "observation" in parts and len(parts) > 1 and parts.keys() <= GOAL_KEYS:
        return [("observation", parts["observation"])]
    if odd := [key for key in parts if not key.strip(".") or "/" in key]:  # would be more than one step in a file
        raise FileFault(folder, f"{place} has the key {printable(repr(odd[0]), 40)}, wanted names without '/'")
    return list(parts.items())


def _place(name: str, path: tuple[str | int, ...]) -> str:
    return printable("/".join([name, *map(str, path)]), 100)


def joined(folder: Path, place: str, parts: tuple[Part, ...], read: Callable[[tuple[str | int, ...]], Array]) -> Array:
    """
    One array ``(T, width)`` of all parts.

    :param place: names the arrays in errors
    :param read: gives the array ``(T, ...)`` under a path
    :raises ValueError: when one has other axes than its space says, or another length
    """
    arrays = []
    for path, n_axes in parts:
        array = read(path)
        if array.ndim != n_axes + 1:
            told = f"{_place(place, path)} has shape {array.shape}, wanted {n_axes + 1} axes as its space says"
            raise FileFault(folder, told)
        arrays.append(array if n_axes == 1 else array.reshape(len(array), int(np.prod(array.shape[1:]))))
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise FileFault(folder, f"{place} has parts of {sorted(lengths)} rows, wanted equal ones")
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
