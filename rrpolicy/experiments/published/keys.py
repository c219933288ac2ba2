"""Keys of published numbers: a key finds the rows of a number and says how they are summed up.

A key is the name of a CSV and conditions, ``locomotion robot=hopper agent=steered metric=gap_closed seeds=headline``,
with the options ``stat``, ``interval`` and ``column``; ``KEY / KEY`` is a ratio of means, ``KEY - KEY`` a paired
difference, and the second may be a plain number. ``images/summary.md "what=..." "column=..."`` takes the numbers of a
summary's cell. The written number itself says how many decimals it has.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rrpolicy.common.stats import (
    Measure,
    bootstrap_mean,
    hierarchical_mean,
    mean_ratio,
    student_mean,
    student_ratio,
    wilson_interval,
)
from rrpolicy.experiments.published.rows import Number, Rows

NUMBER = re.compile(r"[−+-]?(?:\d{1,3}(?:[ ,]\d{3})+(?!\d)(?:\.\d+)?|\d+\.\d+|\.\d+|\d+)")
OPTIONS = {"stat": "mean", "interval": "", "column": ""}
OPERATORS = ("/", "-")


@dataclass(frozen=True)
class Figure:
    """
    What a key gives.

    :param numbers: value, low and high of its interval; hits and of how many
    :param seeds: behind it
    """

    numbers: tuple[float, ...]
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Key:
    """
    The rows of a number and how they are summed up.

    :param name: of the CSV or card, see :class:`Rows`
    :param conditions: on columns
    :param options: of :data:`OPTIONS`
    """

    name: str
    conditions: Mapping[str, str]
    options: Mapping[str, str]

    def numbers(self, rows: Rows) -> list[Number]:
        """
        The numbers of the rows.

        :raises ValueError: when there are none
        """
        found = rows.select(self.name, self.conditions, self.options["column"])
        if not found:
            raise ValueError(f"no row of {self.name} has {', '.join(map('='.join, self.conditions.items()))}")
        return found


def parsed(text: str, common: Sequence[str] = ()) -> list[Key | float | str]:
    """
    Keys, plain numbers and operators of a text.

    :param text: as in this module's first lines
    :param common: words that every key begins with that has no name of its own; its own have precedence
    :raises ValueError: for something else
    """
    parts: list[Key | float | str] = []
    words: list[str] = []
    for word in [*shlex.split(text), ""]:
        if word and word not in OPERATORS:
            words.append(word)
            continue
        number = len(words) == 1 and NUMBER.fullmatch(words[0])
        named = any("=" not in one for one in words)
        parts.append(float(words[0]) if number else _key(words if named else [*common, *words]))
        parts += [word] if word else []
        words = []
    if len(parts) not in (1, 3):
        raise ValueError(f"a key is one selection, or two with one of {' '.join(OPERATORS)} between, got {text!r}")
    return parts


def _key(words: Sequence[str]) -> Key:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    if not names:
        raise ValueError(f"a key begins with the name of a CSV, got {' '.join(words)!r}")
    options = {name: given.pop(name, default) for name, default in OPTIONS.items()}
    return Key(names[-1], given, options)


def figure(text: str, rows: Rows, common: Sequence[str] = ()) -> Figure:
    """
    The numbers of a key; raises as :func:`parsed` and :meth:`Key.numbers` do.

    :param text: the key
    :param rows: where its rows are
    :param common: as in :func:`parsed`
    """
    parts = parsed(text, common)
    if len(parts) == 1:
        (key,) = parts
        return _summed(key, rows) if isinstance(key, Key) else Figure((float(key),))
    first, operator, second = parts
    if isinstance(first, Key) and isinstance(second, Key):
        return _paired(first, second, operator == "/", rows)
    if not isinstance(first, Key) or isinstance(second, Key | str):
        raise ValueError(f"the first of two operands must be a key, got {text!r}")
    one = _summed(first, rows)
    change: Callable[[float], float] = lambda value: value / second if operator == "/" else value - second  # noqa: E731
    return Figure(tuple(map(change, one.numbers)), one.seeds)


# ---------------------------------------------------------------------- summing up


def _summed(key: Key, rows: Rows) -> Figure:
    if key.name.endswith(".md"):
        cell = rows.cell(key.name, key.conditions, key.options["column"])
        numbers = [float(number[0].replace("−", "-")) for number in NUMBER.finditer(cell)]
        return Figure(tuple(numbers[key.options["stat"] == "worst" :]))  # mean, worst and how many
    found = key.numbers(rows)
    values, seeds = [one.value for one in found], tuple(sorted({one.seed for one in found}))
    stat, n = key.options["stat"], len(values)
    hits = sum(value == 1 for value in values)
    plain: dict[str, Callable[[], tuple[float, ...]]] = {
        "min": lambda: (min(values),),
        "max": lambda: (max(values),),
        "sum": lambda: (sum(values),),
        "median": lambda: (float(np.median(values)),),
        "sd": lambda: (float(np.std(values, ddof=1)),),
        "count": lambda: (n,),
        "hits": lambda: (hits, n),
        "share": lambda: (hits / n, *wilson_interval(hits, n)),
        "mean": lambda: _mean(found, key.options["interval"], str(key.conditions.get("metric", "")).endswith("rate")),
    }
    if stat not in plain:
        raise ValueError(f"stat must be one of {', '.join(plain)}, got {stat!r}")
    return Figure(plain[stat](), seeds)


def _mean(found: Sequence[Number], interval: str, rate: bool) -> tuple[float, ...]:
    """Mean with its interval: over episodes for one row, over seeds for several, over units for several of one seed."""
    values, means = [one.value for one in found], list(by_seed(found).values())
    value = float(np.mean(values))
    if len(found) == 1:
        return value, found[0].low, found[0].high
    if interval == "range":
        return value, min(means), max(means)
    if rate and min(values) == max(values) and value in (0, 1):
        n = sum(one.n for one in found)
        return value, *wilson_interval(value * n, n)
    if interval == "hierarchical":
        measure = hierarchical_mean([Measure(one.value, one.low, one.high, one.n) for one in found])
    elif interval == "units" or len(means) == 1:
        measure = bootstrap_mean(values, rate=False)
    else:
        measure = student_mean(means)
    low, high = value + measure.low - measure.value, value + measure.high - measure.value
    return (value, max(low, 0.0), min(high, 1.0)) if rate else (value, low, high)


def by_seed(found: Sequence[Number]) -> dict[int, float]:
    """Seed -> mean of its numbers."""
    groups: dict[int, list[float]] = {}
    for one in found:
        groups.setdefault(one.seed, []).append(one.value)
    return {seed: float(np.mean(groups[seed])) for seed in sorted(groups)}


def _paired(first: Key, second: Key, ratio: bool, rows: Rows) -> Figure:
    """Ratio of means or difference over the seeds that both have; without an interval for a single one."""
    ours, theirs = first.numbers(rows), second.numbers(rows)
    if first.options["interval"] == "units" and ratio:
        values = {(one.unit, one.seed): one.value for one in theirs}
        pairs = [(one.value, values[one.unit, one.seed]) for one in ours if (one.unit, one.seed) in values]
        above, below = np.array(pairs).T
        return Figure(tuple(mean_ratio(above, below)[:3]), tuple(sorted({one.seed for one in ours})))
    means, others = by_seed(ours), by_seed(theirs)
    seeds = tuple(seed for seed in means if seed in others)
    if not seeds:
        raise ValueError(f"no seed has rows of both {first.conditions} and {second.conditions}")
    a, b = (np.array([values[seed] for seed in seeds]) for values in (means, others))
    if len(seeds) == 1:
        return Figure((float(a[0] / b[0] if ratio else a[0] - b[0]),), seeds)
    return Figure(tuple((student_ratio(a, b) if ratio else student_mean(a - b))[:3]), seeds)


# ---------------------------------------------------------------------- writing


def rendered(template: str, found: Figure) -> str:
    """
    A text with its numbers replaced, each as it is written there: decimals, zero before the point, sign, thousands.

    :param template: such as ``.91 [.79, 1.10]`` or ``24/24``
    :param found: as many numbers as the text has, or more
    :raises ValueError: when the text has more
    """
    places = list(NUMBER.finditer(template))
    if not places or len(places) > len(found.numbers):
        raise ValueError(f"{template!r} has {len(places)} numbers, its key gives {len(found.numbers)}")
    text, end = "", 0
    for place, value in zip(places, found.numbers, strict=False):
        text += template[end : place.start()] + like(place[0], value)
        end = place.end()
    return text + template[end:]


def like(template: str, value: float) -> str:
    """A number written as another one is; one that may have a sign gets the minus of the page."""
    digits = template.lstrip("−+-")
    decimals = len(digits.partition(".")[2])
    text = f"{abs(value):.{decimals}f}"
    if separator := re.search(r"\d([ ,])\d", digits):
        text = f"{abs(value):,.{decimals}f}".replace(",", separator[1])
    negative = value < 0 and float(text.replace(" ", "").replace(",", "")) != 0
    text = text.removeprefix("0") if digits.startswith(".") and text.startswith("0.") else text
    sign = ("-" if "-" in template[:1] else "−") if negative else ("+" if template.startswith("+") else "")
    return sign + text
