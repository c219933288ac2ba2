"""A robot's demo in one picture: a row for each agent, its normalised score on the left, its walk on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy.common.files import atomic_write
from rrpolicy.evaluation import Row
from rrpolicy.evaluation.plots import COLOURS, DPI, FAINT, INK
from rrpolicy.experiments.locomotion.film import Moment

SCORE = "normalized_score"
CALLED = {"base": "base alone", "steered": "base steered by ρ"}
SIDE, WIDE = 1.75, 4.2  # inches: of a frame, of the scores


def plot_robots(
    rows: Sequence[Row], strips: Mapping[str, Sequence[Moment]], seconds: Sequence[float], path: Path, title: str
) -> Figure:
    """
    Write the picture.

    :param rows: with a score for each agent
    :param strips: of each agent, the frames of one episode; fewer than ``seconds`` where the robot has fallen
    :param seconds: when they were taken
    :param path: where it is written
    :param title: of the picture
    :return: the figure
    """
    n_rows, n_columns = len(strips), len(seconds)
    figure = Figure(figsize=(WIDE + SIDE * n_columns, 0.75 + SIDE * n_rows), layout="constrained")
    grid = figure.add_gridspec(n_rows, 1 + n_columns, width_ratios=[WIDE / SIDE, *[1.0] * n_columns])
    scores = {row["agent"]: row for row in rows if row["metric"] == SCORE}
    _draw_scores(figure.add_subplot(grid[:, 0]), [scores[name] for name in strips])
    for line, strip in enumerate(strips.values()):
        for column, when in enumerate(seconds):
            axes = figure.add_subplot(grid[line, 1 + column])
            _draw_moment(axes, strip[column] if column < len(strip) else None)
            if line == 0:
                axes.set_title(f"{when:.3g} s", fontsize=9, color=FAINT)
    figure.suptitle(title, fontsize=12, color=INK)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=DPI, facecolor="white")
    return figure


def _draw_scores(axes: Axes, rows: Sequence[Row]) -> None:
    """A dot, its interval and a number for each agent, the first on top, level with its frames."""
    for height, row in enumerate(reversed(rows)):
        colour = COLOURS[row["agent"]]
        axes.plot(
            (row["ci_low"], row["ci_high"]),
            (height, height),
            color=colour,
            linewidth=6,
            alpha=0.4,
            solid_capstyle="round",
        )
        dot: dict[str, Any] = {"marker": "o", "markersize": 11, "markeredgecolor": "white", "zorder": 3}
        axes.plot(row["mean"], height, color=colour, clip_on=False, **dot)
        axes.annotate(
            f"{row['mean']:.0f}",
            (row["mean"], height),
            xytext=(0, 10),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=10,
        )
    names = [CALLED.get(row["agent"], str(row["agent"])) for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.grid(True, axis="x", color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=10)
    axes.set_xlabel(f"normalised score (95 % interval, n = {rows[0]['n']})", fontsize=9, color=FAINT)


def _draw_moment(axes: Axes, moment: Moment | None) -> None:
    """A frame with the way that was made, or an empty place."""
    axes.axis("off")
    if moment is None:
        axes.set_box_aspect(1)
        return
    axes.imshow(moment.picture)
    text = f"fell after {moment.seconds:.1f} s" if moment.fallen else f"{moment.travelled:.1f} m"
    axes.text(0.04, 0.04, text, transform=axes.transAxes, fontsize=8, color=INK)
