"""Maps beside the CSV: what the sheet of pictures needs of each unit and a table cannot hold, a few kilobytes each."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import atomic_write
from rrpolicy.common.schema import read_small
from rrpolicy.experiments.maze2d.units import Unit
from rrpolicy.rewards.maps import RewardMap

MAX_BYTES, MAX_UNPACKED_BYTES = 2**22, 2**25


def map_path(out: Path, unit: Unit, variant: str = "") -> Path:
    """Where the map of a unit lies."""
    return out.with_suffix("") / "maps" / f"{f'{variant}_' if variant else ''}{unit.name}.npz"


def write_map(path: Path, drawn: RewardMap) -> None:
    """Keep what a picture needs: the grid below its highest value, in half precision, and where that is."""
    with atomic_write(path) as unfinished:
        highest = drawn.values.max()
        np.savez_compressed(unfinished, grid=(drawn.grid - highest).astype(np.float16), maximum=drawn.maximum)


def read_map(path: Path, unit: Unit) -> RewardMap:
    """
    What :func:`write_map` kept, ready to be drawn.

    :raises ValueError: when there is no such file or it is damaged
    """
    try:
        content = io.BytesIO(read_small(path, MAX_BYTES))
        with zipfile.ZipFile(content) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to {size} bytes, wanted at most {MAX_UNPACKED_BYTES}")
        with np.load(content, allow_pickle=False) as kept:
            grid, maximum = (np.asarray(kept[name], dtype=np.float64) for name in ("grid", "maximum"))
    except Exception as error:  # NumPy and the zip format raise what damage makes of them
        raise FileFault(path, f"is no map: {error}") from None
    if grid.ndim != 2 or maximum.shape != (2,) or not np.isfinite(maximum).all() or np.isposinf(grid).any():
        raise FileFault(path, f"is no map: grid {grid.shape} and maximum {maximum.shape}, wanted (n, m) and (2,)")
    return RewardMap(unit.task.maze, maximum[None], np.zeros(1), grid)
