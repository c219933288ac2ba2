"""What tables of results are made of: the values of a metric, means and ratios as text, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from rrpolicy.common.stats import mean_ratio
from rrpolicy.common.typing import Array
from rrpolicy.experiments.results import Result

Key = tuple[str, str]  # agent, metric
NOTHING = "–"


def values_of(results: Iterable[Result], key: Key) -> list[float]:
    """The values of one metric, a number for each unit."""
    return [one.value for one in results if (one.agent, one.metric) == key]


def mean(results: Iterable[Result], key: Key, digits: int = 3) -> str:
    """Of the units that have this metric."""
    values = values_of(results, key)
    return f"{np.mean(values):.{digits}f}" if values else NOTHING


def paired_ratio(first: Array, second: Array) -> dict[str, float]:
    """:func:`mean_ratio` of two equally long samples as columns of a row: mean, ci_low, ci_high and n."""
    return mean_ratio(first, second).columns()


def ratio(results: Iterable[Result], first: Key, second: Key) -> str:
    """Of the means of two metrics over units that have both, with its 95 % interval."""
    by_key: dict[Key, dict[tuple[str, str, int], float]] = {first: {}, second: {}}
    for one in results:
        if (one.agent, one.metric) in by_key:
            by_key[one.agent, one.metric][one.unit] = one.value
    units = [unit for unit in by_key[first] if unit in by_key[second]]
    above, below = (np.array([by_key[key][unit] for unit in units]) for key in (first, second))
    number = paired_ratio(above, below)
    if np.isnan(number["mean"]):
        return NOTHING
    return f"{number['mean']:.3f} [{number['ci_low']:.3f}, {number['ci_high']:.3f}]"


def markdown(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table, a text for each cell."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, ["---"] * len(heading), *lines))
