"""JSON of strangers: read strictly, compared with a schema, written so that it reads back equal.

A schema names every field with its type and bounds (`common.kinds` has them all); what it does not name is refused,
so no path, module or size is ever taken from a file unless it was allowed.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from rrpolicy.common.messages import printable

MAX_DEPTH = 12  # of JSON values in each other
MAX_CONTAINERS = 2**19  # objects and lists, each of which takes up to 250 bytes in memory


class Fields(BaseModel):
    """A JSON object with these fields and no others; numbers are finite, and nothing is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def checked(schema: type[Model], values: Any, what: str, max_depth: int = MAX_DEPTH) -> Model:
    """
    Values as their schema has them.

    :param schema: such as those of `common.kinds`
    :param values: what a file holds, JSON values
    :param what: where they stand, such as ``"card.json"``
    :param max_depth: of values in each other
    :raises ValueError: naming the first field that is missing, unknown, of another type or out of bounds
    """
    check_depth(values, what, max_depth)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = printable(".".join(map(str, first["loc"])), 80)
        whole = not place or first["type"] in ("missing", "extra_forbidden")
        given = "" if whole else f", got {printable(first['input'], 60)}"
        fault = printable(first["msg"].removeprefix("Value error, "), 120)
        raise ValueError(f"{what}: {f'{place}: ' if place else ''}{fault}{given}") from None


def check_depth(values: Any, what: str, max_depth: int = MAX_DEPTH) -> None:
    """
    Refuse JSON values that are nested too deeply to be worked with.

    :raises ValueError: beyond ``max_depth``
    """
    within: list[Iterator[Any]] = [iter([values])]
    while within:  # depth first, since all values of one level would take as much memory as the values themselves
        value = next(within[-1], within)
        if value is within:
            within.pop()
        elif isinstance(value, dict | list | tuple):
            if len(within) >= max_depth and value:
                raise ValueError(f"{what} is nested more than {max_depth} levels deep")
            within.append(iter(value.values() if isinstance(value, dict) else value))


def read_small(path: str | os.PathLike[str], limit: int = 2**22) -> bytes:
    """
    The bytes of a small file, such as a card, a recipe or a maze.

    :param path: a regular file; devices and pipes, which may never end, are not read
    :param limit: largest number of bytes
    :raises OSError: when there is no such file, or it cannot be read
    :raises ValueError: for something else than a regular file, or a larger one
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"has more than {limit} bytes, too large")
    return data


def from_json(data: bytes | str) -> Any:
    """
    JSON values of a text.

    :param data: UTF-8
    :raises ValueError: for what is no JSON, a number that is not finite, a key that stands twice or too much nesting
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        check_containers(text)
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_distinct)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error


def check_containers(text: str) -> None:
    """
    Refuse JSON that takes many times its size in memory, before it is parsed.

    :raises ValueError: for more than :data:`MAX_CONTAINERS` opening brackets, those inside of strings included
    """
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise ValueError(f"has more than {MAX_CONTAINERS} lists and objects, too many")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {printable(text, 40)} is not finite")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return values


def plain(values: Any, allow_nan: bool = False) -> Any:
    """
    JSON values of what numpy and tuples stand in: the form in which they are read back.

    :param allow_nan: leave numbers that are not finite to a later check
    :raises TypeError: for something that JSON has no form for
    :raises ValueError: for NaN or infinite numbers
    """
    return json.loads(json.dumps(values, allow_nan=allow_nan, default=_plain))


def native(value: Any) -> Any:
    """A number of numpy as Python's own, also inside dictionaries, lists and tuples; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: native(one) for key, one in value.items()}
    return type(value)(map(native, value)) if type(value) in (list, tuple) else value


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)  # a number of numpy or torch
    if item is None or getattr(value, "ndim", 1) != 0:
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return item()
