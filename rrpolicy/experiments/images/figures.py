"""Figures of the image experiment: AUROC at each noise level, mean ρ of every class and what samples show, made from
the CSV alone; and a sheet of samples for each unit, drawn while the models are at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy.common.files import atomic_write
from rrpolicy.common.typing import Array
from rrpolicy.evaluation.plots import COLOURS, DPI, FAINT, INK, OTHERS
from rrpolicy.experiments.images.rows import (
    AGENTS,
    ALLOWED,
    HARMFUL,
    class_means,
    held_out_of,
    of_control,
    of_pairs,
    per_level,
    tasks_of,
)
from rrpolicy.experiments.images.spec import CONTROL, GRADIENTS_ONLY, Unit
from rrpolicy.experiments.report import plain
from rrpolicy.experiments.results import Result

LEVELS, CLASSES, SAMPLES = "levels.png", "classes.png", "samples.png"
GRID = "#e6e6ea"
HELD_OUT = OTHERS[2]
_LINES = (  # label, variant, whose rows, colour
    ("ρ", "", of_pairs, COLOURS["steered"]),
    ("ρ without value matching", GRADIENTS_ONLY, of_pairs, COLOURS["discriminator"]),
    ("control: nothing was removed", "", of_control, COLOURS["base"]),
)
_BARS = {"base": COLOURS["base"], "expert": COLOURS["expert"], "steered-1": COLOURS["steered"], "steered-2": OTHERS[3]}


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """
    Draw what the results allow.

    :param results: as ``read_csv`` gives them
    :param out: the CSV; figures go into the folder of its name beside it
    :return: the files
    """
    main = [one for one in results if not one.variant]
    makers: dict[str, tuple[bool, Callable[[], Figure]]] = {
        LEVELS: (bool(per_level(results)), lambda: levels(results)),
        CLASSES: (any(class_means(main, task) for task in tasks_of(main)), lambda: classes(main)),
        SAMPLES: (any(one.metric == HARMFUL for one in plain(main)), lambda: samples(main)),
    }
    return [_save(make(), out.with_suffix("") / name) for name, (there, make) in makers.items() if there]


def levels(results: Sequence[Result]) -> Figure:
    """AUROC of noised images at each level: means, and the range over units; 0 is nearly clean."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, variant, rows, colour in _LINES:
        found = per_level(rows([one for one in results if one.variant == variant]))
        if not found:
            continue
        t, values = sorted(found), [found[level] for level in sorted(found)]
        n = max(map(len, values))
        axes.fill_between(t, [min(one) for one in values], [max(one) for one in values], color=colour, alpha=0.18, lw=0)
        axes.plot(t, [np.mean(one) for one in values], color=colour, marker="o", markersize=4, label=f"{label} ({n})")
    axes.axhline(0.5, color=FAINT, linewidth=1, linestyle=":")
    axes.set_xlabel("noise level t", fontsize=9, color=FAINT)
    axes.set_ylabel("AUROC, harmless over harmful", fontsize=9, color=FAINT)
    axes.legend(frameon=False, fontsize=8)
    _light(axes, "both")
    figure.suptitle("Held-out real images: means and ranges over units (number)", fontsize=10, color=INK)
    return figure


def classes(results: Sequence[Result]) -> Figure:
    """A panel for each set of held-out classes: mean ρ of every class, a dot for each unit."""
    tasks = tasks_of(results)
    n_classes = max(len(class_means(results, task)) for task in tasks)
    figure = Figure(figsize=(1.4 + 2.5 * len(tasks), 1.1 + 0.28 * n_classes), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharex=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        means, held_out = class_means(results, task), held_out_of(task)
        for height, (name, values) in enumerate(reversed(means.items())):
            colour = HELD_OUT if name in held_out else COLOURS["steered"]
            axes.barh(height, np.mean(values), color=colour, alpha=0.55, height=0.7)
            axes.plot(values, [height] * len(values), linestyle="", marker="o", markersize=3.5, color=colour)
        axes.axvspan(-ALLOWED, ALLOWED, color=GRID, alpha=0.6, zorder=0, linewidth=0)
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(means)), list(reversed(means)))
        if axes is not panels[0]:
            axes.tick_params(labelleft=False)
        axes.set_title(
            "nothing removed" if task == CONTROL else f"without {' and '.join(held_out)}", fontsize=10, color=INK
        )
        axes.set_xlabel("mean ρ, nats", fontsize=9, color=FAINT)
        _light(axes, "x")
    figure.suptitle("ρ of clean held-out images: removed classes in orange, ±1 nat in grey", fontsize=10, color=INK)
    return figure


def samples(results: Sequence[Result]) -> Figure:
    """A panel for each set of held-out classes: how many samples the classifier puts into them, a dot for each unit."""
    tasks = [task for task in tasks_of(results) if task != CONTROL]
    figure = Figure(figsize=(1.2 + 2.3 * len(tasks), 3.2), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for place, agent in enumerate(AGENTS):
            own = [one for one in results if (one.task, one.agent, one.metric) == (task, agent, HARMFUL)]
            if own:
                mean = float(np.mean([one.value for one in own]))
                axes.bar(place, mean, color=_BARS[agent], alpha=0.55, width=0.7)
                top = max(mean, *(one.ci_high for one in own))
                axes.annotate(
                    f"{mean:.3f}",
                    (place, top),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=INK,
                )
            for shift, one in zip(np.linspace(-0.2, 0.2, len(own)), own, strict=True):
                axes.plot([place + shift] * 2, (one.ci_low, one.ci_high), color=_BARS[agent], linewidth=1.5)
                axes.plot(place + shift, one.value, marker="o", markersize=4, color=_BARS[agent])
        axes.set_xticks(range(len(AGENTS)), [agent.replace("steered-", "ρ × ") for agent in AGENTS])
        axes.set_title(" and ".join(held_out_of(task)), fontsize=10, color=INK)
        _light(axes, "y")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("share of samples", fontsize=9, color=FAINT)
    figure.suptitle("Samples classified as the removed classes, with 95 % intervals", fontsize=10, color=INK)
    return figure


# ---------------------------------------------------------------------- sheets of samples


def sheet_path(out: Path, unit: Unit) -> Path:
    """Where the samples of a unit lie."""
    return out.with_suffix("") / "sheets" / f"{unit.name}.png"


def draw_samples(pictures: Mapping[str, Array], path: Path) -> Path:
    """
    Generators side by side; equal places began with the same noise, what is classified as a held-out class is framed.

    :param pictures: name of the generator -> a grid of their samples, uint8 (h, w, 3), all of one size
    :param path: of the figure
    :return: the file
    """
    height, width = next(iter(pictures.values())).shape[:2]
    figure = Figure(figsize=(2.0 * len(pictures), 2.0 * height / width + 0.3), layout="constrained")
    panels = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (name, picture) in zip(panels, pictures.items(), strict=True):
        axes.imshow(picture)
        axes.set_title(name, fontsize=9, color=INK)
        axes.set_axis_off()
    return _save(figure, path)


def _light(axes: Axes, grid: str) -> None:
    """Style axes: few marks besides the data."""
    axes.grid(True, axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)


def _save(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, dpi=DPI, facecolor="white")
    return path
