"""Many images as one picture: a grid in which some can be framed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rrpolicy.common.files import atomic_write
from rrpolicy.common.typing import Array

PAPER, FRAME = (255, 255, 255), (213, 94, 0)  # colours around images, and around framed ones


def tiled(images: Any, n_columns: int = 8, framed: Any = None) -> Array:
    """
    Images row by row, each within a line of one pixel.

    :param images: uint8 (n, H, W, C) with 1 or 3 channels, n >= 1
    :param n_columns: of the grid; the last row is filled with paper
    :param framed: bool (n,), whose line is coloured; None for none
    :return: uint8 (rows * (H + 2), n_columns * (W + 2), 3)
    :raises ValueError: for other images
    """
    pixels = np.asarray(images)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or not len(pixels) or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"images are {pixels.dtype} {pixels.shape}, wanted uint8 (n, H, W, 1 or 3) with n >= 1")
    n, height, width, _ = pixels.shape
    n_rows = -(-n // n_columns)
    cells = np.full((n_rows * n_columns, height + 2, width + 2, 3), PAPER, dtype=np.uint8)
    if framed is not None:
        cells[:n][np.asarray(framed, dtype=bool)] = FRAME
    cells[:n, 1:-1, 1:-1] = pixels
    grid = cells.reshape(n_rows, n_columns, height + 2, width + 2, 3).swapaxes(1, 2)
    return grid.reshape(n_rows * (height + 2), n_columns * (width + 2), 3)


def write_grid(images: Any, path: str | Path, n_columns: int = 16, zoom: int = 2) -> None:
    """
    Write a grid as a PNG.

    :param images: as in :func:`tiled`
    :param zoom: every pixel becomes so many squared
    """
    grid = tiled(images, n_columns).repeat(zoom, axis=0).repeat(zoom, axis=1)
    with atomic_write(path) as unfinished:
        Image.fromarray(grid).save(unfinished, optimize=True)
