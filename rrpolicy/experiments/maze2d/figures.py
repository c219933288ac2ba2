"""Figures of the maze experiment, made from the CSV and what lies beside it alone: heat maps with the true goals,
agents compared with intervals, the order of cells beside what needs no reward, and learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy.common.typing import Array
from rrpolicy.evaluation.plots import (
    COLOURS,
    FAINT,
    GOAL,
    INK,
    OTHERS,
    WALL_EDGE,
    draw_heat,
    draw_maze_axes,
    range_note,
)
from rrpolicy.experiments.maze2d.artifacts import Curves, curve_path, map_path, read_curves, read_map
from rrpolicy.experiments.maze2d.report import NEAR, OWN
from rrpolicy.experiments.maze2d.spec import AGENTS, MAZES, MazeUnit, goal_text
from rrpolicy.experiments.report import (
    by_role,
    draw_interval,
    interval_of,
    light,
    name_rows,
    plain,
    save_figure,
    values_of,
)
from rrpolicy.experiments.results import UNIT_DONE, Result
from rrpolicy.rewards.maps import RewardMap

HEAT_MAPS, STEERING, ORDER, RETRAINING = "heat_maps.png", "steering.png", "order.png", "retraining.png"
ORDERS = ("euclidean", "occupancy", "reward", "reward-far")
_COLOURS = {
    **COLOURS,
    "reward": COLOURS["steered"],
    "euclidean": COLOURS["base"],
    "occupancy": OTHERS[0],
    "reward-far": OTHERS[1],
}
_TRAINED = {"reward": ("trained on ρ", COLOURS["steered"]), "true": ("trained on the true reward", COLOURS["expert"])}
_LABELS = {
    "success_rate": "success rate",
    "return": "return",
    "spearman_path": "Spearman with −path",
    "topology_pairs_rate": "topology pairs in order",
    "detour_pairs_rate": "detour pairs in order",
}


def draw(results: Sequence[Result], out: Path, seed: int | None = None) -> list[Path]:
    """
    Draw what the results allow.

    :param results: as ``read_csv`` gives them; ablations and other methods are not drawn, and where seeds report, those
        that were seen while recipes changed are on the sheet of heat maps alone
    :param out: the CSV; figures go into the folder of its name beside it, where the maps and curves are
    :param seed: of the sheet of heat maps; None for the lowest there is
    :return: the files
    """
    main = [one for one in plain(results) if not one.variant]
    folder, written = out.with_suffix(""), []
    found = [one for one in main if (one.agent, one.metric) == OWN]
    if found:
        chosen = min(one.seed for one in found) if seed is None else seed
        written.append(save_figure(heat_maps(main, out, chosen), folder / HEAT_MAPS))
    reported = by_role(main, "maze2d")[0] if main else []
    for name, metrics, agents in (
        (STEERING, ("success_rate", "return"), AGENTS),
        (ORDER, ("spearman_path", "topology_pairs_rate", "detour_pairs_rate"), ORDERS),
    ):
        if any(one.metric in metrics for one in reported):
            written.append(save_figure(comparison(reported, metrics, agents), folder / name))
    trained = [one for one in results if one.variant == "training" and one.case]
    if trained:
        written.append(save_figure(retraining(trained, folder / "curves"), folder / RETRAINING))
    return written


def heat_maps(results: Sequence[Result], out: Path, seed: int) -> Figure:
    """
    A row of panels for each maze: the true goal is a star, the reward's maximum a ring.

    :raises ValueError: when a map is missing
    """
    units = {maze: _units(results, maze, seed) for maze in MAZES}
    units = {maze: row for maze, row in units.items() if row}
    width = max(len(row) for row in units.values())
    figure = Figure(figsize=(max(1.9 * width, 5.2), 1.9 * len(units) + 0.6), layout="constrained")
    panels = figure.subplots(len(units), width, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for line, row in zip(panels, units.values(), strict=True):
        for axes, unit in zip(line, row, strict=False):
            axes.set_axis_on()
            _panel(axes, read_map(map_path(out, unit), unit), unit)
    mine = [one for one in results if one.seed == seed]
    own, near = (values_of(mine, key) for key in (OWN, NEAR))
    figure.suptitle(
        f"Extracted rewards, seed {seed}: goal (star), maximum (ring), its error in cells\nin the goal's "
        f"own cell {sum(own):.0f} of {len(own)}, within one cell {sum(near):.0f}",
        fontsize=9,
        color=INK,
    )
    return figure


def comparison(results: Sequence[Result], metrics: Sequence[str], agents: Sequence[str]) -> Figure:
    """
    A row of panels for each metric, a panel for each maze: means over goals and seeds with 95 % intervals.
    """
    mazes = [maze for maze in MAZES if any(one.task == maze and one.metric in metrics for one in results)]
    size = 1.2 + 2.6 * len(mazes), (0.9 + 0.42 * len(agents)) * len(metrics) + 0.3
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(mazes), squeeze=False)
    for line, metric in zip(panels, metrics, strict=True):
        for axes, maze in zip(line, mazes, strict=True):
            of_maze = [one for one in results if one.task == maze and one.metric == metric and one.agent in agents]
            if not of_maze:  # the open maze has no walls to be on two sides of
                axes.set_axis_off()
                continue
            _intervals(axes, of_maze, agents, metric)
            axes.set_title(maze if metric == metrics[0] else "", fontsize=11, color=INK)
            if maze != mazes[0] and line[0].axison:
                axes.set_yticklabels([])
    figure.suptitle("Means over goals and seeds (n) with 95 % intervals", fontsize=10, color=FAINT)
    return figure


def retraining(results: Sequence[Result], folder: Path) -> Figure:
    """
    Learning curves under the true reward, a row for each algorithm and a panel for each maze.

    :param results: of the variant ``training``
    :param folder: of the units' curves
    :raises ValueError: when the curves of a unit are missing
    """
    kept: dict[str, list[Curves]] = {}
    for one in results:
        if (one.agent, one.metric) == UNIT_DONE:
            unit = next(unit for unit in _goals(one.task, one.seed) if unit.key == one.unit)
            kept.setdefault(one.task, []).append(read_curves(curve_path(folder, unit)))
    mazes = [maze for maze in MAZES if maze in kept]
    algorithms = list(dict.fromkeys(algorithm for algorithm, _ in kept[mazes[0]][0]))
    size = 1.2 + 2.6 * len(mazes), 0.8 + 2.1 * len(algorithms)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(algorithms), len(mazes), squeeze=False, sharex="row", sharey=True)
    for line, algorithm in zip(panels, algorithms, strict=True):
        for axes, maze in zip(line, mazes, strict=True):
            for pay, (label, colour) in _TRAINED.items():
                _band(axes, [curves[algorithm, pay] for curves in kept[maze]], label, colour)
            axes.set_title(maze if algorithm == algorithms[0] else "", fontsize=11, color=INK)
            axes.set_xlabel(f"thousand decisions (n = {len(kept[maze])})", fontsize=9, color=FAINT)
            light(axes, "both")
        line[0].set_ylabel(f"{algorithm}: return", fontsize=10, color=INK)
    panels[0, 0].set_ylim(bottom=0)
    panels[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle(
        "True return of the latest training episodes: median and range over goals and seeds", fontsize=10, color=FAINT
    )
    return figure


# ---------------------------------------------------------------------- panels


def _units(results: Iterable[Result], maze: str, seed: int) -> list[MazeUnit]:
    """Units that have a map, in the experiment's order of goals."""
    there = {one.case for one in results if one.task == maze and one.seed == seed and (one.agent, one.metric) == OWN}
    return [unit for unit in _goals(maze, seed) if unit.key[1] in there]


def _goals(maze: str, seed: int) -> list[MazeUnit]:
    return [MazeUnit(maze, seed, goal) for goal in MAZES[maze].goals]


def _panel(axes: Axes, drawn: RewardMap, unit: MazeUnit) -> None:
    draw_heat(axes, drawn)
    draw_maze_axes(axes, drawn.maze, unit.goal, floor=None)
    for text in list(axes.texts):  # the numbers of cells are too small to be read here
        text.remove()
    axes.set(xlabel="", ylabel="", xticks=[], yticks=[])
    hit = drawn.same_cell(unit.goal)
    for colour, width in ((WALL_EDGE, 3.0), ("white", 1.5)):
        axes.plot(
            *drawn.maximum,
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=colour,
            markeredgewidth=width,
            zorder=7,
        )
    error = drawn.goal_error_cells(unit.goal)
    title = f"{unit.maze} {goal_text(unit.goal)}: {error:.2f}"
    note = range_note(drawn)
    axes.set_title(f"{title}\n{note}" if note else title, fontsize=8, color=INK if hit else GOAL, pad=3)


def _intervals(axes: Axes, results: Sequence[Result], agents: Sequence[str], metric: str) -> None:
    """A dot and a bar for each agent; the interval is over seeds, or over goals or episodes of one."""
    for height, agent in enumerate(reversed(agents)):
        own = [one for one in results if one.agent == agent]
        if not own:
            continue
        number = interval_of(own, rate=metric.endswith("rate"))
        text = f"{number[0]:.2f}" if abs(number[0]) < 10 else f"{number[0]:.0f}"
        draw_interval(axes, height, number, _COLOURS[agent], text)
    name_rows(axes, agents)
    if metric != "return":
        axes.set_xlim(min(-0.04, axes.get_xlim()[0]), 1.04)
    counts = sorted({len([one for one in results if one.agent == agent]) for agent in agents} - {0})
    axes.set_xlabel(f"{_LABELS[metric]} (n = {', '.join(map(str, counts))})", fontsize=9, color=FAINT)
    light(axes, "x")


def _band(axes: Axes, curves: Sequence[Array], label: str, colour: str) -> None:
    """Median and range of curves (n, 3), at the decisions that all of them have reached."""
    first, last = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    longest = max(curves, key=len)[:, 0]
    at = longest[(longest >= first) & (longest <= last)]
    values = np.array([np.interp(at, curve[:, 0], curve[:, 1]) for curve in curves])
    axes.fill_between(at / 1000, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    axes.plot(at / 1000, np.median(values, axis=0), color=colour, linewidth=2, label=label)
