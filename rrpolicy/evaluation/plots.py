"""Figures: a reward over its maze, plans, roll-outs and learning curves.
Figures are made without pyplot: nothing global changes and no display is needed. Colours suit colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MultipleLocator

from rrpolicy.agents.planning import Planner
from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import atomic_write
from rrpolicy.common.messages import printable
from rrpolicy.common.tables import read_table
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.envs.maze import CELL_SIZE, MazeGeometry
from rrpolicy.envs.render import SUCCESS_RADIUS
from rrpolicy.evaluation import EnvSource, Evaluation, compare
from rrpolicy.rewards.fit_report import LEAST_RANGE
from rrpolicy.rewards.maps import RewardMap

# Okabe and Ito's colours, and the drawings' own for walls, floor and goal
WALL, WALL_EDGE, FLOOR, GOAL = "#3a4254", "#242a38", "#faf8f3", "#d63348"
INK, FAINT = "#22262f", "#8b909c"
COLOURS = {"": "#0072b2", "base": "#8a8f99", "discriminator": "#e69f00", "steered": "#0072b2", "expert": "#009e73"}
OTHERS = ("#cc79a7", "#56b4e9", "#d55e00", "#6a51a3", "#b8a200", "#1b7f8c")
HEAT = "viridis"
PALE = 0.35  # opacity of a map that says nothing
TIME = "plasma"
PANEL = 4.3  # inches
BORDER = 0.5  # visible part of the outer walls, in cells
DPI = 160
PROGRESS_FILE = "progress.csv"
STEP_COLUMN = "time/total_timesteps"


# ---------------------------------------------------------------------- figures


def plot_reward_map(
    reward_map: RewardMap,
    goal: Any = None,
    path: str | Path | None = None,
    title: str | None = None,
    least_range: float = LEAST_RANGE,
) -> Figure:
    """
    A reward over its maze; one of a small range is pale, and the picture says so.

    :param reward_map: the reward
    :param goal: (row, column) in cells, marked with a star; the maximum is marked with a ring
    :param path: where to write it, any format of matplotlib's; None for nowhere
    :param title: of the picture
    :param least_range: see :func:`draw_heat`
    :return: the figure
    """
    figure, (axes,) = _panels(reward_map.maze, 1)
    _draw_reward(figure, axes, reward_map, goal, least_range)
    _title(axes, title or "Extracted reward ρ", range_note(reward_map, least_range))
    return _finished(figure, path)


def plot_hero(
    reward_map: RewardMap,
    agents: Predictor | Mapping[str, Predictor],
    env: EnvSource,
    path: str | Path | None = None,
    goal: Any = None,
    seed: int = 0,
    n_episodes: int = 24,
    deterministic: bool = True,
) -> Figure:
    """
    The main job in one picture: the extracted reward beside what the agents do.

    :param reward_map: the reward
    :param agents: one, or several by name: a panel each
    :param env: as in ``evaluate``
    :param path: where to write it; None for nowhere
    :param goal: (row, column) in cells
    :param seed: of the first episode, the same for every agent
    :param n_episodes: for each agent
    :param deterministic: passed to ``predict``
    :return: the figure
    """
    named: Mapping[str, Any] = agents if isinstance(agents, Mapping) else {"steered": agents}
    figure, axes = _panels(reward_map.maze, 1 + len(named))
    _draw_reward(figure, axes[0], reward_map, goal)
    told = range_note(reward_map) or "learned from base and expert, without the environment"
    _title(axes[0], "extracted reward ρ", told)
    colours = _colours(named)
    results = compare(named, env, n_episodes, seed, deterministic=deterministic, record_observations=True)
    for panel, (name, result) in zip(axes[1:], results.items(), strict=True):
        draw_maze_axes(panel, reward_map.maze, goal)
        _draw_rollouts(panel, result, colours[name])
        rate = result.success_rate
        outcome = "" if rate is None else f"{rate:.0%} of {n_episodes} episodes end at the goal"
        _title(panel, {"base": "base alone", "steered": "base steered by ρ"}.get(name, name), outcome)
    return _finished(figure, path)


def plot_plans(
    agents: Planner | Mapping[str, Planner],
    maze: Any,
    observations: Any,
    path: str | Path | None = None,
    goal: Any = None,
    title: str | None = None,
    deterministic: bool = False,
) -> Figure:
    """
    What agents plan from the same places, coloured from now to the plan's end.

    :param agents: one planner of x and y, or several by name: a panel each
    :param maze: a `MazeGeometry` or what it can be parsed from
    :param observations: (n, obs_dim) in environment units; repeat one to see how its plans vary
    :param path: where to write it; None for nowhere
    :param goal: (row, column) in cells
    :param title: of the picture
    :param deterministic: use the agent's fixed noise
    :return: the figure
    :raises ValueError: when an agent does not plan the first two entries of the observation
    """
    maze = MazeGeometry.parse(maze)
    named = agents if isinstance(agents, Mapping) else {"": agents}
    figure, axes = _panels(maze, len(named))
    for panel, (name, agent) in zip(axes, named.items(), strict=True):
        if agent.layout.columns[:2] != (0, 1):
            raise ValueError(f"agents must plan x and y first, {name or 'this one'} plans {agent.layout.columns}")
        plans = agent.plan(np.atleast_2d(observations), deterministic)[:, agent.layout.present :, :2]
        draw_maze_axes(panel, maze, goal)
        lines = _draw_plans(panel, plans)
        _title(panel, name)
    span = agent.layout.span - agent.layout.past - 1
    bar = figure.colorbar(lines, ax=axes, shrink=0.75, pad=0.02, label="environment steps from now")
    bar.set_ticks([0, 0.5, 1], labels=["0", f"{span / 2:g}", f"{span}"])
    bar.ax.set_ylim(0, 1)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=12, color=INK)
    return _finished(figure, path)


def plot_learning_curve(
    runs: str | Path | Mapping[str, str | Path],
    path: str | Path | None = None,
    metric: str = "train/loss",
    title: str | None = None,
) -> Figure:
    """
    A logged value over gradient steps, with its running mean.

    :param runs: one ``progress.csv`` of SB3's logger, or the folder that holds it, or several by name
    :param path: where to write it; None for nowhere
    :param metric: column of the file
    :param title: of the picture
    :return: the figure
    :raises ValueError: when a file cannot be read or has no such column, naming it
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    positive, colours = True, _colours(named if len(named) > 1 else [""])
    for (name, source), colour in zip(named.items(), colours.values(), strict=True):
        steps, values = _read_progress(Path(source), metric)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _running_mean(values), color=colour, linewidth=2, label=name)
        positive &= bool((values > 0).all() and values.max() > 10 * values.min())
    axes.set_yscale("log" if positive else "linear")
    _plain(axes, "gradient steps", metric.rpartition("/")[2].replace("_", " "), title)
    axes.grid(True, which="major", color="#e6e6ea", linewidth=0.8)
    if len(named) > 1:
        axes.legend(frameon=False)
    return _finished(figure, path)


# ---------------------------------------------------------------------- mazes


def draw_maze_axes(axes: Axes, maze: MazeGeometry, goal: Any = None, floor: str | None = FLOOR) -> None:
    """
    Walls, cell numbers, goal and axes of a maze.

    :param axes: to draw on
    :param maze: the maze
    :param goal: (row, column) in cells
    :param floor: its colour; None leaves what is there
    """
    left, right, bottom, top = maze.extent
    if floor:
        axes.set_facecolor(floor)
    corners = maze.cell_to_xy(np.argwhere(maze.walls) + np.array([0.5, -0.5]))
    squares = [Rectangle((float(x), float(y)), CELL_SIZE, CELL_SIZE) for x, y in corners]
    axes.add_collection(PatchCollection(squares, facecolor=WALL, edgecolor=WALL, linewidth=0.6, zorder=3))
    axes.add_collection(LineCollection(_wall_edges(maze), colors=WALL_EDGE, linewidths=1.6, zorder=4))
    numbers: dict[str, Any] = {"color": FAINT, "fontsize": 7.5, "ha": "center", "va": "center", "zorder": 5}
    middle = 0.5 - BORDER / 2  # of the visible part of the border
    for column in range(1, maze.shape[1] - 1):
        axes.annotate(f"{column}", maze.cell_to_xy((middle, column)).tolist(), **numbers)
    for row in range(1, maze.shape[0] - 1):
        axes.annotate(f"{row}", maze.cell_to_xy((row, middle)).tolist(), **numbers)
    if goal is not None:
        maze.free_cell(goal, "goal")
        _mark_goal(axes, maze.cell_to_xy(goal), maze)
    hidden = (1 - BORDER) * CELL_SIZE
    axes.set(xlim=(left + hidden, right - hidden), ylim=(bottom + hidden, top - hidden), aspect="equal")
    place = axes.get_subplotspec()
    axes.set(xlabel="x (m)", ylabel="y (m)" if place is None or place.is_first_col() else "")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(1 if max(maze.shape) <= 8 else 2))
    axes.tick_params(colors=INK, labelsize=8, length=3)
    axes.spines[:].set_visible(False)


def _wall_edges(maze: MazeGeometry) -> list[Array]:
    """Where a free cell meets a wall."""
    steps = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
    corners = np.stack([steps + steps[:, ::-1], steps - steps[:, ::-1]], axis=1) / 2  # both ends of each side
    pairs = ((cell, side) for cell in maze.free_cells for side in range(4) if maze.walls[tuple(cell + steps[side])])
    return [maze.cell_to_xy(cell + corners[side]) for cell, side in pairs]


def _marker_size(maze: MazeGeometry, cells: float) -> float:
    """Points of a marker that many cells wide."""
    return 72 * PANEL * cells / max(maze.shape) * 0.8


def _mark_goal(axes: Axes, xy: Array, maze: MazeGeometry) -> None:
    """A star in the circle that counts as success."""
    dashes = (0, (4, 3))
    circle = Circle(tuple(xy), SUCCESS_RADIUS, fill=False, edgecolor=GOAL, linewidth=1.2, linestyle=dashes, zorder=6)
    axes.add_patch(circle)
    size = max(9.0, _marker_size(maze, 0.3))
    axes.plot(*xy, marker="*", markersize=size, color=GOAL, markeredgecolor="white", markeredgewidth=1.2, zorder=10)


def draw_heat(axes: Axes, reward_map: RewardMap, least_range: float = LEAST_RANGE) -> AxesImage:
    """
    A reward as colours.

    :param axes: to draw on
    :param reward_map: the reward
    :param least_range: nats that the colours span at least. A map of a smaller range, as a pair without a difference
        has, is not stretched over all colours, and is pale
    """
    low, high = np.nanmin(reward_map.grid), np.nanmax(reward_map.grid)
    style: dict[str, Any] = {"cmap": HEAT, "interpolation": "bilinear", "zorder": 1}
    if high - low < least_range:
        middle = (low + high) / 2
        low, high, style["alpha"] = middle - least_range / 2, middle + least_range / 2, PALE
    return axes.imshow(reward_map.filled, extent=reward_map.maze.extent, vmin=low, vmax=high, **style)


def range_note(reward_map: RewardMap, least_range: float = LEAST_RANGE) -> str:
    """What a picture says of a map that :func:`draw_heat` draws pale; empty for others."""
    return "" if (found := reward_map.range) >= least_range else f"spans {found:.2g} nats, less than {least_range:g}"


def _draw_reward(
    figure: Figure, axes: Axes, reward_map: RewardMap, goal: Any, least_range: float = LEAST_RANGE
) -> None:
    """Heat, contours, goal, maximum and scale."""
    maze = reward_map.maze
    image = draw_heat(axes, reward_map, least_range)
    if reward_map.range >= least_range and reward_map.range > 0:
        levels = np.linspace(np.nanmin(reward_map.grid), np.nanmax(reward_map.grid), 11)[1:-1]
        style: dict[str, Any] = {"colors": "white", "linewidths": 0.5, "linestyles": "solid", "alpha": 0.35}
        axes.contour(reward_map.filled, levels, extent=maze.extent, origin="upper", zorder=2, **style)
    draw_maze_axes(axes, maze, goal, floor=None)
    size = max(14.0, _marker_size(maze, 0.42))
    for colour, width in ((WALL_EDGE, 4.2), ("white", 2.2)):
        ring: dict[str, Any] = {"marker": "o", "markersize": size, "markerfacecolor": "none", "zorder": 7}
        axes.plot(*reward_map.maximum, markeredgecolor=colour, markeredgewidth=width, **ring)
    label = f"ρ (nats, up to a constant), range {reward_map.range:.3g}"
    bar = figure.colorbar(image, ax=axes, shrink=0.75, pad=0.03, label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _draw_rollouts(axes: Axes, result: Evaluation, colour: str) -> None:
    """Where the ball went: open circles at the starts, full ones at the ends."""
    paths = [observations[:, :2] for observations in result.observations or ()]
    axes.add_collection(LineCollection(paths, colors=colour, linewidths=1.3, alpha=0.55, zorder=5, capstyle="round"))
    starts, ends = (np.array([path[index] for path in paths]) for index in (0, -1))
    axes.scatter(starts[:, 0], starts[:, 1], s=20, facecolor="white", edgecolor=colour, linewidth=1.1, zorder=6)
    axes.scatter(ends[:, 0], ends[:, 1], s=26, facecolor=colour, edgecolor="white", linewidth=0.8, zorder=9)


def _draw_plans(axes: Axes, plans: Array) -> LineCollection:
    """Draw plans (n, H, 2) as lines whose colour is time."""
    pieces = np.stack([plans[:, :-1], plans[:, 1:]], axis=2).reshape(-1, 2, 2)
    when = np.tile(np.linspace(0, 1, plans.shape[1])[:-1], len(plans))
    lines = LineCollection(list(pieces), array=when, cmap=TIME, linewidths=1.6, alpha=0.85, zorder=5)
    lines.set_clim(0, 1.08)  # the last colours are too pale
    axes.add_collection(lines)
    axes.scatter(plans[:, 0, 0], plans[:, 0, 1], s=22, facecolor="white", edgecolor=INK, linewidth=1.1, zorder=6)
    return lines


# ---------------------------------------------------------------------- curves


def _read_progress(source: Path, metric: str) -> tuple[Array, Array]:
    """Gradient steps (n,) and values (n,) of a CSV log."""
    file = source / PROGRESS_FILE if source.is_dir() else source
    try:
        heading, *lines = read_table(file) or [[]]
    except OSError as error:
        raise ValueError(f"could not read the log {printable(str(file), 200)}: {printable(error)}") from None
    rows = [dict(zip(heading, line, strict=False)) for line in lines]
    filled = [row for row in rows if row.get(metric) and row.get(STEP_COLUMN)]
    if not filled:
        known = ", ".join(sorted(heading))
        raise FileFault(file, f"has no values of {metric!r} over {STEP_COLUMN!r}, it has {known}")
    try:
        steps, values = (np.array([float(row[key]) for row in filled]) for key in (STEP_COLUMN, metric))
        if not (np.isfinite(steps).all() and np.isfinite(values).all()):
            raise ValueError("it holds numbers that are not finite")
    except ValueError as error:
        raise FileFault(file, f"the log is damaged: {error}") from None
    return steps, values


def _running_mean(values: Array, fraction: float = 0.05) -> Array:
    """Mean over a window of the given fraction of all values, shorter at the ends."""
    window = np.ones(min(len(values), 1 + 2 * max(1, round(len(values) * fraction / 2))))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


# ---------------------------------------------------------------------- helpers


def _panels(maze: MazeGeometry, n: int) -> tuple[Figure, Sequence[Axes]]:
    """A row of equal axes with the maze's proportions, and room for one scale."""
    rows, columns = (n - 2 + 2 * BORDER for n in maze.shape)
    longest = max(rows, columns)
    size = PANEL * columns / longest * n + 1.2, PANEL * rows / longest + 0.75
    figure = Figure(figsize=size, layout="constrained")
    return figure, list(figure.subplots(1, n, squeeze=False)[0])


def _colours(names: Iterable[str]) -> dict[str, str]:
    """The usual agents have the same colour in every picture, others the next that is free."""
    others = cycle(OTHERS)
    return {name: COLOURS.get(name) or next(others) for name in names}


def _title(axes: Axes, text: str, below: str = "") -> None:
    axes.set_title(f"{text}\n" if below else text, fontsize=12, color=INK, pad=6)
    if below:
        axes.text(0.5, 1.02, below, transform=axes.transAxes, ha="center", va="bottom", fontsize=9, color=FAINT)


def _plain(axes: Axes, x: str, y: str, title: str | None) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    if title:
        _title(axes, title)


def _finished(figure: Figure, path: str | Path | None) -> Figure:
    """Write the figure in one step, so that no half picture is ever there."""
    if path is None:
        return figure
    target = Path(path)
    target = target if target.suffix else target.with_name(f"{target.name}.png")
    with atomic_write(target) as unfinished:
        figure.savefig(unfinished, dpi=DPI, facecolor="white")
    return figure
