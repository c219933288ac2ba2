"""Pictures of a comparison: attribution over time and feature, and windows drawn over each other."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rrpolicy.common.files import atomic_write
from rrpolicy.common.typing import Array
from rrpolicy.comparison.features import Features
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.evaluation.plots import COLOURS, FAINT, INK, OTHERS, draw_maze_axes

DPI = 110
SIGNED = "RdBu"
MOST_COLUMNS = 4  # features that a line chart shows


def attribution_map(mean: Array, features: Features) -> Figure:
    """
    Mean attribution (H, D) as a heat map, features over time.

    :param mean: nats, in which blue raises ρ towards the expert and red lowers it
    """
    height, width = features.shape
    figure = Figure(
        figsize=(max(4.6, min(9.0, 1.6 + 0.45 * height)), max(2.2, 1.1 + 0.28 * width)), layout="constrained"
    )
    axes = figure.subplots()
    bound = float(np.abs(mean).max()) or 1.0
    image = axes.imshow(mean.T, cmap=SIGNED, vmin=-bound, vmax=bound, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(width), [_short(name) for name in features.columns], fontsize=8)
    shown = sorted({round(i) for i in np.linspace(0, height - 1, min(height, 9))})
    axes.set_xticks(shown, [str(features.rows[i]) for i in shown], fontsize=8)
    axes.set_xlabel("environment steps from now" if features.layout is not None else "row", fontsize=8, color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("nats a window", fontsize=8)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    return figure


def windows_picture(
    windows: Mapping[str, Array], features: Features, columns: list[int], maze: MazeGeometry | None = None
) -> Figure:
    """
    Windows of several models over each other: paths in a maze, else lines of some features over time.

    :param windows: name -> (n, H, D) in environment units
    :param columns: features that lines show
    :param maze: walls, where windows hold x and y first among their observations
    """
    colours = colours_of(windows)
    if maze is not None and maze_columns(features) is not None:
        return _paths(windows, features, maze, colours)
    chosen = columns[:MOST_COLUMNS] or [0]
    figure = Figure(figsize=(4.6, 1.1 + 1.15 * len(chosen)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(chosen), 1, sharex=True))
    for panel, column in zip(panels, chosen, strict=True):
        for name, values in windows.items():
            _lines(panel, features, values[:, :, column], colours[name])
        panel.set_title(_short(features.columns[column], 40), loc="left", fontsize=8, color=INK)
        _plain(panel)
    panels[-1].set_xlabel("environment steps from now" if features.layout is not None else "row", fontsize=8, color=INK)
    _legend(panels[0], colours)
    return figure


def distribution_picture(base: Array, expert: Array, name: str, labels: tuple[str, str]) -> Figure:
    """
    Histograms of one feature under both models.

    :param base: values of all rows and events (n,), environment units
    :param expert: as many
    """
    figure = Figure(figsize=(3.4, 2.1), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([base, expert])
    low, high = np.quantile(both, (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for values, label, colour in ((base, labels[0], COLOURS["base"]), (expert, labels[1], COLOURS["expert"])):
        axes.hist(
            np.clip(values, edges[0], edges[-1]), edges.tolist(), density=True, color=colour, alpha=0.55, label=label
        )
    axes.set_xlabel(_short(name, 40), fontsize=8, color=INK)
    axes.set_yticks([])
    _plain(axes)
    axes.legend(fontsize=7, frameon=False)
    return figure


def maze_columns(features: Features) -> tuple[int, int] | None:
    """Packed columns of x and y, the first two observation entries; None where they are not planned."""
    layout = features.layout
    if layout is None or layout.columns[:2] != (0, 1):
        return None
    first = layout.observation_slice.start
    return first, first + 1


def png(figure: Figure) -> bytes:
    """A figure as a PNG file's content."""
    file = io.BytesIO()
    figure.savefig(file, dpi=DPI, facecolor="white", format="png", metadata={"Software": None})
    return file.getvalue()


def write_png(content: bytes, path: Path) -> None:
    """Write a picture in one step."""
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)


def colours_of(names: Mapping[str, Any]) -> dict[str, str]:
    """A colour for each name: the first is the base's, the last the expert's."""
    keys = list(names)
    between = dict(zip(keys[1:-1], (OTHERS[1], COLOURS["steered"], *OTHERS), strict=False))
    return {**{keys[0]: COLOURS["base"]}, **between, **({keys[-1]: COLOURS["expert"]} if len(keys) > 1 else {})}


def _paths(windows: Mapping[str, Array], features: Features, maze: MazeGeometry, colours: dict[str, str]) -> Figure:
    figure = Figure(figsize=(4.2, 4.4), layout="constrained")
    axes = figure.subplots()
    draw_maze_axes(axes, maze)
    x, y = maze_columns(features) or (0, 1)
    for name, values in windows.items():
        for path in values:
            axes.plot(path[:, x], path[:, y], color=colours[name], linewidth=1.4, alpha=0.75, zorder=6)
        axes.plot(values[:, 0, x], values[:, 0, y], "o", color=INK, markersize=4, zorder=7)
    _legend(axes, colours)
    return figure


def _lines(axes: Axes, features: Features, values: Array, colour: str) -> None:
    marker = "o" if len(features.rows) == 1 else ""
    for row in values:
        axes.plot(features.rows, row, color=colour, linewidth=1.1, alpha=0.7, marker=marker, markersize=3)


def _legend(axes: Axes, colours: Mapping[str, str]) -> None:
    handles = [Line2D([], [], color=colour, label=_short(name, 18)) for name, colour in colours.items()]
    axes.legend(handles=handles, fontsize=7, framealpha=0.7, edgecolor="none").set_zorder(12)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=7, colors=INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def _short(text: str, most: int = 26) -> str:
    shown = text if text.isprintable() else repr(text)[1:-1]
    shown = shown.replace("$", r"\$")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
