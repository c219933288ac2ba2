"""What may become part of a dataset: arrays, lengths, flags and metadata, checked and copied so that nobody else can
change them."""

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from rrpolicy.common.messages import RrpolicyWarning, printable

_OWN_RANGE = 1 / 16  # of the largest value in size: what lies in less is an offset with something small on it
_ROUNDING = 1e-10  # of the largest value in size: what lies in less is a constant with errors of arithmetic
_TREMBLING = 1e-3  # environment units


def as_array(name: str, values: Any) -> np.ndarray:
    """Values as an array of whatever type, refused where there is none."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, OverflowError) as error:  # rows of unequal lengths, or what has no numbers at all
        raise ValueError(f"{name} is no array: {printable(error)}") from error


def frozen(name: str, values: np.ndarray, ndim: int) -> np.ndarray:
    """A read-only float32 copy, or the array itself where it already is one that nobody can write to."""
    given = array = as_array(name, values)
    if array.ndim != ndim or array.dtype.kind not in "fiub":
        wanted = "(N, width)" if ndim == 2 else "(N,)"
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, wanted numbers {wanted}")
    if ndim == 2 and array.shape[1] == 0:
        raise ValueError(f"{name} has shape {array.shape}, wanted at least one column")
    if array.flags.writeable or array.base is not None or array.dtype != np.float32:
        with np.errstate(over="ignore"):  # a number too large for float32 becomes inf, which is refused below
            array = np.array(array, dtype=np.float32, order="C")
        array.flags.writeable = False
    finite = np.isfinite(array)
    if not finite.all():
        where = np.argwhere(~finite)[0]
        place = f"row {where[0]}" + (f", column {where[1]}" if ndim == 2 else "")
        raise ValueError(f"{name} holds {array[tuple(where)]} at {place}, wanted finite values")
    if ndim == 2:
        _check_resolution(name, given, array)
    return array


def _check_resolution(name: str, given: np.ndarray, narrow: np.ndarray) -> None:
    """
    Check that float32 keeps the values of each column apart. Columns that have a range of their own are not looked at:
    there only values merge that nearly equal each other, as those of a robot at rest. What merges in a range below
    ``_TREMBLING`` is an almost constant column, which can be learned from as a constant, and is warned of.

    :param given: ``(N, width)`` finite
    :param narrow: the same as float32
    :raises ValueError: when more than half of a column's values merge
    """
    if not len(given) or given.dtype.kind == "b" or np.can_cast(given.dtype, np.float32):
        return
    low, high = narrow.min(axis=0), narrow.max(axis=0)
    largest = np.maximum(np.abs(low), np.abs(high))
    for column in np.flatnonzero(high - low < _OWN_RANGE * largest):
        kept = _count_different(narrow[:, column])
        if 2 * kept >= len(narrow) or 2 * kept >= (count := _count_different(given[:, column])):
            continue
        first, last = given[:, column].min().item(), given[:, column].max().item()
        if last - first <= _ROUNDING * largest[column]:
            continue
        told = (
            f"{name} column {column} holds {count} different values from {first!r} to {last!r}, of which float32 "
            f"keeps {kept} apart: subtract an offset in float64 first, such as {first!r}, or leave the column out"
        )
        if last - first > _TREMBLING:
            raise ValueError(told)
        warnings.warn(told, category=RrpolicyWarning, stacklevel=5)


def _count_different(values: np.ndarray) -> int:
    ordered = np.sort(values)
    return 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def whole_lengths(values: Any, count: int) -> np.ndarray:
    """A read-only int64 copy of whole numbers that add up to ``count``."""
    lengths, wanted = as_array("episode_lengths", values), f"lengths of at least 1 that add up to {count}"
    if lengths.ndim != 1 or not lengths.size:
        raise ValueError(f"episode_lengths has shape {lengths.shape}, wanted {wanted}")
    if lengths.dtype.kind not in "iu":
        raise ValueError(f"episode_lengths is {printable(lengths[:8])} of dtype {lengths.dtype}, wanted {wanted}")
    wrong = lengths[(lengths < 1) | (lengths > count)]  # before they are added up, which could overflow
    if wrong.size or lengths.sum() != count:
        told = f"holds {wrong[0]}" if wrong.size else f"has shape {lengths.shape} and sum {lengths.sum()}"
        raise ValueError(f"episode_lengths {told}, wanted {wanted}")
    lengths = lengths.astype(np.int64)
    lengths.flags.writeable = False
    return lengths


def plain(metadata: Any) -> dict[str, Any]:
    """A copy that shares nothing with what was given."""
    if not isinstance(metadata, Mapping):
        raise ValueError(f"metadata is {printable(metadata)}, wanted a mapping of JSON values")
    try:
        json.dumps(dict(metadata), allow_nan=False)
        return copy.deepcopy(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata holds what is no JSON: {printable(error)}") from error


def row_flags(name: str, flags: Any, count: int) -> np.ndarray:
    """Flags of rows as booleans (N,)."""
    array = as_array(name, flags)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}, wanted ({count},)")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {printable(array[:1])} of dtype {array.dtype}, wanted booleans, or 0 and 1")
    wrong = np.flatnonzero((array != 0) & (array != 1))
    if len(wrong):
        raise ValueError(f"{name} holds {array[wrong[0]]} at row {wrong[0]}, wanted booleans, or 0 and 1")
    return array.astype(bool)


def ends_of_episodes(terminated: Any, truncated: Any, count: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read-only flags ``(E,)`` of both kinds, or ``None`` for both where neither was given."""
    if terminated is None and truncated is None:
        return None, None
    flags = []
    for name, values in (("terminated", terminated), ("truncated", truncated)):
        array = np.zeros(count, dtype=bool) if values is None else row_flags(name, values, count)
        array.flags.writeable = False
        flags.append(array)
    return flags[0], flags[1]
