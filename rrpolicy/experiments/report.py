"""Functions that reports share: values of a metric, means, ratios and intervals as text, Markdown, and drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy.common.files import atomic_write
from rrpolicy.common.stats import bootstrap_interval, mean_ratio, student_mean
from rrpolicy.common.typing import Array
from rrpolicy.evaluation.plots import DPI, INK
from rrpolicy.experiments.results import Result
from rrpolicy.experiments.tuning_log import Tuning, read_log

Key = tuple[str, str]  # agent, metric, of a number that has neither reference nor level nor step
NOTHING = "–"


def of_metric(results: Iterable[Result], key: Key, reference: str = "") -> list[Result]:
    """The results of one metric, one for each unit, without those at noise levels or steps."""
    return [one for one in results if one.measured == (*key, reference, None, None)]


def plain(results: Iterable[Result]) -> list[Result]:
    """The results of single agents: without reference, noise level and step."""
    return [one for one in results if one.measured == (one.agent, one.metric, "", None, None)]


def values_of(results: Iterable[Result], key: Key, reference: str = "") -> list[float]:
    """The values of one metric, a number for each unit."""
    return [one.value for one in of_metric(results, key, reference)]


def mean(results: Iterable[Result], key: Key, digits: int = 3) -> str:
    """The mean of a metric over the units that have it."""
    values = values_of(results, key)
    return f"{np.mean(values):.{digits}f}" if values else NOTHING


def paired_ratio(first: Array, second: Array) -> dict[str, float]:
    """
    The ratio of the means of two paired samples as columns of a row, see :func:`mean_ratio`.

    :return: mean, ci_low, ci_high and n
    """
    return mean_ratio(first, second).columns()


def ratio(results: Sequence[Result], first: Key, second: Key) -> str:
    """The ratio of the means of two metrics over units that have both, with its 95 % interval."""
    by_key = {key: {one.unit: one.value for one in of_metric(results, key)} for key in (first, second)}
    units = [unit for unit in by_key[first] if unit in by_key[second]]
    above, below = (np.array([by_key[key][unit] for unit in units]) for key in (first, second))
    number = paired_ratio(above, below)
    if np.isnan(number["mean"]):
        return NOTHING
    return f"{number['mean']:.3f} [{number['ci_low']:.3f}, {number['ci_high']:.3f}]"


def interval_of(results: Sequence[Result], rate: bool = False) -> tuple[float, float, float]:
    """
    Mean with its 95 % interval: Student's t over training seeds where there are several, units of one seed averaged
    first; over the units where they all have one seed; over episodes where there is one unit.

    :param results: of one metric, at least one
    :param rate: of successes; where all units have the same rate of 0 or 1, their episodes give the interval
    """
    values = [one.value for one in results]
    mean = float(np.mean(values))
    if len(results) == 1:
        return mean, results[0].ci_low, results[0].ci_high
    if rate and min(values) == max(values):
        return mean, *bootstrap_interval(np.repeat(values, [one.n for one in results]), rate=True)
    seeds = seed_means(results)
    if len(seeds) == 1:
        return mean, *bootstrap_interval(np.array(values), rate=False)
    found = student_mean(list(seeds.values()))
    low, high = mean + found.low - found.value, mean + found.high - found.value
    return (mean, max(low, 0.0), min(high, 1.0)) if rate else (mean, low, high)


def seed_means(results: Iterable[Result]) -> dict[int, float]:
    """Seed -> mean of its units; in the order of the seeds."""
    found: dict[int, list[float]] = {}
    for one in results:
        found.setdefault(one.seed, []).append(one.value)
    return {seed: float(np.mean(found[seed])) for seed in sorted(found)}


def seeds_text(seeds: Sequence[int]) -> str:
    """``1–3``, ``4, 6``."""
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}–{seeds[-1]}" if whole else ", ".join(map(str, seeds))


def by_role(results: Sequence[Result], experiment: str) -> list[list[Result]]:
    """
    Results of the seeds that report, of those that were seen while recipes changed, of those of tuning, and the rest.

    :param results: of one pair, or of several that are summed up
    :param experiment: its name in the tuning log; seeds of another one have no roles
    """
    tuning = read_log().get(experiment, Tuning())
    groups: dict[str, list[Result]] = {"reporting": [], "seen": [], "tuning": [], "": []}
    for one in results:
        groups[tuning.role(one.seed)].append(one)
    return [group for group in groups.values() if group]


def seeds_of(results: Sequence[Result], experiment: str) -> str:
    """``4–6``, or ``1–3, seen while tuning``; arguments as of :func:`by_role`."""
    tuning = read_log().get(experiment, Tuning())
    seeds = sorted({one.seed for one in results})
    return seeds_text(seeds) + (", seen while tuning" if {tuning.role(seed) for seed in seeds} == {"seen"} else "")


def markdown(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table, a text for each cell."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, ["---"] * len(heading), *lines))


# ---------------------------------------------------------------------- drawing


def draw_interval(
    axes: Axes, height: float, number: tuple[float, float, float], colour: str, text: str, size: int = 8
) -> None:
    """
    Draw a dot with its interval and its number above.

    :param height: where on the y-axis
    :param number: mean and the two ends of its interval
    :param text: the number as it is written
    :param size: of the dot, points
    """
    mean, low, high = number
    axes.plot((low, high), (height, height), color=colour, linewidth=0.6 * size, alpha=0.4, solid_capstyle="round")
    dot = {"marker": "o", "markersize": size, "markeredgecolor": "white", "zorder": 3}
    axes.plot(mean, height, color=colour, clip_on=False, **dot)  # type: ignore[arg-type]
    place = {"xytext": (0, size - 1), "textcoords": "offset points", "ha": "center"}
    axes.annotate(text, (mean, height), fontsize=min(size, 10), color=INK, **place)  # type: ignore[arg-type]


def name_rows(axes: Axes, names: Sequence[str], top: float = 0.2) -> None:
    """Write the names of rows, the first on top, each at its whole number on the y-axis."""
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.set_ylim(-0.5, len(names) - top)


def light(axes: Axes, grid: Literal["x", "y", "both"], size: int = 9) -> None:
    """Style axes: a pale grid, two spines, labels of this size."""
    axes.grid(True, axis=grid, color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=size)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a picture in one step."""
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=DPI, facecolor="white")
    return path
