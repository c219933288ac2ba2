"""Surgery on texts with a structure: JSON at every path, TOML and CSV line by line, cell by cell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from fuzz.hostile import ADDED_KEYS, CONTAINERS, Rng, pick, raw_value
from fuzz.mutate import Mutation

Path = tuple[Any, ...]
_MARK = "@@HOSTILE@@"
MAX_ELEMENTS = 4  # of a list, each of which gets a path


def paths(value: Any, before: Path = ()) -> Iterator[Path]:
    """The place of every value in nested JSON, of long lists the first few."""
    if before:
        yield before
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*before, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:MAX_ELEMENTS]):
            yield from paths(inner, (*before, i))


def json_value(value: Any, rng: Rng, under: Path = ()) -> tuple[str, str]:
    """
    JSON text of a value with one thing changed in it.

    :param under: only there
    """
    value = json.loads(json.dumps(value))
    root = _at(value, under)
    known = list(paths(root))
    if not known:
        raw, key = raw_value(rng), pick(rng, ADDED_KEYS)
        root[key] = _MARK
        return json.dumps(value).replace(f'"{_MARK}"', raw), f"{key} = {raw:.60}"
    chosen = (*under, *pick(rng, known))
    kind, name = rng.random(), ".".join(map(str, chosen))
    holder, last = _at(value, chosen[:-1]), chosen[-1]
    if kind < 0.15:
        holder[last] = _like(holder[last], rng)
        return json.dumps(value), f"{name} = {json.dumps(holder[last]):.60}"
    if kind < 0.25:
        del holder[last]
        return json.dumps(value), f"del {name}"
    if kind < 0.35:
        other = _at(value, (*under, *pick(rng, known)))
        holder[last] = json.loads(json.dumps(other))
        return json.dumps(value), f"{name} = {json.dumps(other):.60}"
    raw = raw_value(rng)
    inner = _embedded(holder[last])
    if kind < 0.5 and isinstance(holder, dict):
        last = pick(rng, ADDED_KEYS)
        name = ".".join(map(str, (*chosen[:-1], last)))
    elif inner is not None and rng.random() < 0.8:
        holder[last], words = json_value(inner, rng)
        return json.dumps(value), f"{name}: {words}"
    holder[last] = _MARK
    return json.dumps(value).replace(f'"{_MARK}"', raw), f"{name} = {raw:.60}"


def json_file(content: bytes, rng: Rng) -> Mutation:
    """One thing changed in a JSON file, which may also be a list or a single value from then on."""
    value = json.loads(content)
    if rng.random() < 0.05:
        raw = pick(rng, (*CONTAINERS, raw_value(rng)))
        return raw.encode(), f"all = {raw:.60}"
    text, words = json_value(value, rng)
    return text.encode(), words


def toml_file(content: bytes, rng: Rng) -> Mutation:
    """A line of a TOML file changed, left out, said twice or added."""
    lines = content.decode().splitlines()
    at = int(rng.integers(len(lines)))
    raw = raw_value(rng).replace("null", "nan").replace("Infinity", "inf").replace("NaN", "nan").replace(":", "=")
    key, _, old = lines[at].partition("=")
    kind = rng.random()
    if kind < 0.1:
        words = f"line {lines[at]!r:.60} twice"
        lines.insert(at, lines[at])
    elif kind < 0.2:
        words = f"line {lines[at]!r:.60} left out"
        del lines[at]
    elif kind < 0.35 or not old:
        added = f"{pick(rng, ADDED_KEYS)} = {raw}"
        words = f"added {added:.60}"
        lines.insert(at + 1, added)
    else:
        lines[at] = f"{key}= {raw}"
        words = f"{lines[at]:.80}"
    return "\n".join(lines).encode(errors="surrogatepass"), words


CELLS = (
    "",
    "-1",
    "nan",
    "inf",
    "1e999",
    "1" * 5000,
    "x" * 200_000,
    '"',
    '"unclosed',
    "\0",
    "a\nb",
    "\x1b[31m",
    "1,5",
    "=1+1",
    "9" * 30,
    "1.5",
    "True",
    "../../x",
    " 1 ",
    "1_000",
)


def csv_file(content: bytes, rng: Rng) -> Mutation:
    """A cell, row or column of a CSV file changed, left out or said twice."""
    lines = [line.split(",") for line in content.decode().split("\n")]
    row = int(rng.integers(len(lines)))
    column = int(rng.integers(len(lines[row])))
    kind = rng.random()
    if kind < 0.1:
        del lines[row]
        words = f"row {row} left out"
    elif kind < 0.2:
        lines.insert(row, list(lines[row]))
        words = f"row {row} twice"
    elif kind < 0.3:
        del lines[row][column]
        words = f"cell {row}, {column} left out"
    elif kind < 0.4:
        for line in lines:
            del line[column : column + 1]
        words = f"column {column} left out"
    else:
        lines[row][column] = cell = pick(rng, CELLS)
        words = f"cell {row}, {column} = {cell!r:.40}"
    return "\n".join(",".join(line) for line in lines).encode(), words


def maze_file(content: bytes, rng: Rng) -> Mutation:
    """A character, row or column of a text changed."""
    lines = content.decode().split("\n")
    row = int(rng.integers(len(lines)))
    kind, line = rng.random(), lines[row]
    if kind < 0.2:
        lines.insert(row, line)
    elif kind < 0.3:
        lines[row] = line * int(rng.integers(0, 3000))
    else:
        at = int(rng.integers(len(line) + 1))
        symbol = pick(rng, ("#", ".", " ", "r", "g", "c", "0", "1", "\t", "é", "\0", "\x1b[31m", ""))
        lines[row] = line[:at] + symbol + line[at + 1 :]
    return "\n".join(lines).encode(), f"line {row} = {lines[row]!r:.60}"


def _at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _embedded(value: Any) -> Any:
    """What a string that is JSON itself holds, as spaces in Minari's metadata; None for other values."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return None
    try:
        return json.loads(value)
    except ValueError:
        return None


def _like(value: Any, rng: Rng) -> Any:
    """A neighbour: what a mistake, or somebody who knows the schema, would write."""
    if isinstance(value, bool) or value is None:
        return pick(rng, (True, False, None, 0, 1))
    if isinstance(value, int | float):
        multiples = (2 * value, 10 * value, 1000 * value, -value)
        return pick(rng, (value + 1, value - 1, *multiples, value + 0.5, float(value), str(value)))
    if isinstance(value, list):
        longer = (value + value[:1], value * 2, value * 1000)
        return pick(rng, (value[:-1], value[:1], value[::-1], *longer, [value], {"0": value}))
    if isinstance(value, dict):
        return pick(rng, (list(value.items()), [value], {**value, "": None}, dict(list(value.items())[:-1])))
    return pick(rng, (value + "x", value.upper(), value[:-1], value * 1000, [value], "\x1b[1m" + value))
