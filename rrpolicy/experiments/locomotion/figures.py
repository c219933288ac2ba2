"""Figures of the locomotion experiment, made from the CSV alone: everybody's scores, and the sweeps of steering."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy.common.files import atomic_write
from rrpolicy.evaluation import bootstrap_interval
from rrpolicy.evaluation.plots import COLOURS, DPI, FAINT, INK, OTHERS
from rrpolicy.experiments.locomotion.summary import AGENTS, SCORE, groups
from rrpolicy.experiments.locomotion.units import CASES
from rrpolicy.experiments.results import Result

SCORES, SWEEP = "scores.png", "sweep.png"
IN_A_ROW = 3  # panels
_COLOURS = {**COLOURS, "offline": COLOURS["steered"]}


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """
    Draw what the results allow.

    :param results: as ``read_csv`` gives them
    :param out: the CSV; figures go into the folder of its name beside it
    :return: the files
    """
    written = []
    for name, variant, agents in ((SCORES, "", list(AGENTS)), (SWEEP, "sweep", None)):
        own = [one for one in results if one.variant == variant and one.metric in (SCORE, "return")]
        if own:
            path = out.with_suffix("") / name
            figure = scores(own, agents)
            with atomic_write(path) as unfinished:
                figure.savefig(unfinished, dpi=DPI, facecolor="white")
            written.append(path)
    return written


def scores(results: Sequence[Result], agents: Sequence[str] | None = None) -> Figure:
    """
    A panel for each robot and kind of data, three in a row: normalised scores with 95 % intervals, base and expert as
    lines.

    :param results: rows of scores and returns
    :param agents: in this order; None: those that ran, in the order of the rows
    """
    ran = dict.fromkeys(one.agent for one in results if one.metric == "return" and not one.agent.endswith("-data"))
    shown = [agent for agent in agents or ran if agent in ran]
    panels = groups([one for one in results if one.metric == SCORE])
    panels.sort(key=lambda panel: list(CASES).index(panel[1]))
    n_columns, n_rows = min(len(panels), IN_A_ROW), -(-len(panels) // IN_A_ROW)
    figure = Figure(figsize=(1.8 + 3.0 * n_columns, n_rows * (1.0 + 0.42 * len(shown))), layout="constrained")
    for index, (robot, case, group) in enumerate(panels):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        _panel(axes, group, shown)
        axes.set_title(f"{robot}, {case} data", fontsize=11, color=INK)
        if index % n_columns:
            axes.set_yticklabels([])
    figure.suptitle("Normalised score: means with 95 % intervals", fontsize=10, color=FAINT)
    return figure


def _panel(axes: Axes, results: Sequence[Result], agents: Sequence[str]) -> None:
    for height, agent in enumerate(reversed(agents)):
        own = [one for one in results if one.agent == agent]
        if not own:
            continue
        values = np.array([one.value for one in own])
        low, high = bootstrap_interval(values, rate=False) if len(own) > 1 else (own[0].ci_low, own[0].ci_high)
        colour = _COLOURS.get(agent, OTHERS[0])
        axes.plot((low, high), (height, height), color=colour, linewidth=5, alpha=0.4, solid_capstyle="round")
        axes.plot(values.mean(), height, marker="o", markersize=8, markeredgecolor="white", color=colour)
        axes.annotate(
            f"{values.mean():.0f}",
            (float(values.mean()), height),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
        if agent in ("base", "expert"):
            axes.axvline(float(values.mean()), color=colour, linewidth=1, linestyle=":", zorder=0)
    axes.set_yticks(range(len(agents)), list(reversed(agents)))
    axes.set_ylim(-0.5, len(agents) - 0.2)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.grid(True, axis="x", color="#e6e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    n_seeds = len({one.seed for one in results})
    over = f"intervals over {n_seeds} seeds" if n_seeds > 1 else "one seed, intervals over episodes"
    axes.set_xlabel(over, fontsize=9, color=FAINT)
