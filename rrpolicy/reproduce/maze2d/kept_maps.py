"""Maps beside the CSV: what the sheet of pictures needs of each unit and a table cannot hold, a few kilobytes each."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from rrpolicy.common.files import appearing
from rrpolicy.reproduce.maze2d.units import Unit
from rrpolicy.rewards.maps import RewardMap


def map_path(out: Path, unit: Unit, variant: str = "") -> Path:
    """Where the map of a unit lies."""
    return out.with_suffix("") / "maps" / f"{f'{variant}_' if variant else ''}{unit.name}.npz"


def write_map(path: Path, drawn: RewardMap) -> None:
    """Keep what a picture needs: the grid below its highest value, in half precision, and where that is."""
    with appearing(path) as unfinished:
        highest = drawn.values.max()
        np.savez_compressed(unfinished, grid=(drawn.grid - highest).astype(np.float16), maximum=drawn.maximum)


def read_map(path: Path, unit: Unit) -> RewardMap:
    """
    What :func:`write_map` kept, ready to be drawn.

    :raises ValueError: when there is no such file or it is damaged
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            grid, maximum = kept["grid"].astype(np.float64), kept["maximum"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no map: {error}") from None
    return RewardMap(unit.task.maze, maximum[None], np.zeros(1), grid)
