"""Learning curves beside the CSV: how agents did under the true reward while they learned, a small table for each unit.

They are condensed from the logs of training, which hold much more and stay with the archives.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import atomic_write
from rrpolicy.common.messages import printable
from rrpolicy.common.tables import read_table
from rrpolicy.common.typing import Array
from rrpolicy.experiments.maze2d.units import Unit

Curves = Mapping[tuple[str, str], Array]
"""(algorithm, what it was paid) -> (n, 3): decisions made, return and success rate of the latest training episodes."""

COLUMNS = ("algorithm", "pay", "decisions", "return", "success_rate")
_LOGGED = ("time/total_timesteps", "rollout/ep_rew_mean", "rollout/success_rate")


def curve_path(folder: Path, unit: Unit) -> Path:
    """Where the curves of a unit lie."""
    return folder / f"{unit.name}.csv"


def read_progress(path: Path) -> Array:
    """
    Read a learning curve.

    :param path: ``progress.csv`` of Stable-Baselines3's logger
    :return: a curve (n, 3); rows of the log from before the first episode's end are left out
    """
    heading, *lines = read_table(path) or [[]]
    found = [dict(zip(heading, line, strict=False)) for line in lines]
    rows = [[row.get(name, "") for name in _LOGGED] for row in found]
    return np.array([row for row in rows if all(row)], dtype=np.float64).reshape(-1, len(_LOGGED))


def write_curves(path: Path, curves: Curves) -> None:
    """Keep a unit's curves, in as many digits as a picture needs."""
    with atomic_write(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for names, curve in curves.items():
            writer.writerows([*names, *(f"{value:.6g}" for value in point)] for point in curve)


def read_curves(path: Path) -> dict[tuple[str, str], Array]:
    """
    What :func:`write_curves` kept.

    :raises ValueError: when there is no such file or it is something else
    """
    curves: dict[tuple[str, str], list[list[float]]] = {}
    try:
        head, *lines = read_table(path)
        if tuple(head) != COLUMNS:
            raise ValueError(f"its columns are {printable(head)}, wanted {', '.join(COLUMNS)}")
        for algorithm, pay, decisions, total, rate in lines:
            curves.setdefault((algorithm, pay), []).append([float(decisions), float(total), float(rate)])
        drawn = {names: np.array(points) for names, points in curves.items()}
        if not all(np.isfinite(points).all() for points in drawn.values()):
            raise ValueError("it holds numbers that are not finite")
    except (OSError, ValueError) as error:
        raise FileFault(path, f"holds no learning curves: {error}") from None
    return drawn
