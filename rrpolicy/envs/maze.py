"""Geometry of a grid maze: cells, coordinates, walls and shortest paths, without any simulator.
Coordinates are PointMaze's: x grows with the column, y falls with the row, the origin is the maze's centre."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import read_small

WALL = "#"
FREE = "."
MARKS = "rgc"  # gymnasium-robotics' start, goal and combined cells: free cells with a wish attached
MAX_BYTES = 2**16  # of a text file
CELL_SIZE = 1.0  # PointMaze's maze_size_scaling
_WALL_SYMBOLS = frozenset("#1")
_FREE_SYMBOLS = frozenset(".0 ")
_NEIGHBOURS = ((-1, 0), (0, 1), (1, 0), (0, -1))


@dataclass(frozen=True)
class MazeGeometry:
    """
    An immutable grid maze.

    Cell coordinates are ``(row, column)``; whole numbers are cell centres, so ``(1.5, 2)`` lies on the border
    of the cells ``(1, 2)`` and ``(2, 2)``.

    :param rows: one string per row: ``#`` wall, ``.`` free, ``r``/``g``/``c`` free and marked (start, goal, both)
    :raises ValueError: for ragged rows, unknown characters, an open border or a maze without a free cell,
        naming row and column
    """

    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", _checked_rows(self.rows))

    @classmethod
    def parse(cls, maze: str | Path | MazeGeometry | Iterable[Any]) -> MazeGeometry:
        """
        Read a maze from what people write mazes in.

        :param maze: rows (strings, or lists of ``0``/``1``/marks as in gymnasium-robotics), one text with a line
            per row, or the path of a text file (a ``Path``, or a ``str`` of one line)
        :return: the maze
        :raises ValueError: if it is no maze (see the class) or the named file cannot be read
        """
        if isinstance(maze, MazeGeometry):
            return maze
        if isinstance(maze, Path) or (isinstance(maze, str) and "\n" not in maze):
            return cls._of_file(Path(maze))
        if isinstance(maze, str):
            lines = maze.splitlines()
            while lines and not lines[0].strip():
                lines.pop(0)
            while lines and not lines[-1].strip():
                lines.pop()
            return cls(tuple(line.rstrip("\r") for line in lines))
        return cls(tuple(row if isinstance(row, str) else "".join(str(cell) for cell in row) for row in maze))

    @classmethod
    def _of_file(cls, path: Path) -> MazeGeometry:
        text = _read_text(path)
        try:
            return cls.parse(text)
        except ValueError as error:
            raise ValueError(at(path, error)) from None

    @classmethod
    def from_env(cls, env: Any) -> MazeGeometry:
        """
        The maze of a gymnasium-robotics maze environment, wrapped or not.

        :param env: an environment whose unwrapped form has a ``maze`` with a ``maze_map``
        :return: its geometry
        :raises ValueError: if the environment has no maze
        """
        inner: Any = getattr(getattr(env, "unwrapped", env), "maze", None)
        if not hasattr(inner, "maze_map"):
            raise ValueError(f"env must be a gymnasium-robotics maze environment, got {env!r} without a maze")
        if inner.maze_size_scaling != CELL_SIZE:
            raise ValueError(f"env must have maze_size_scaling={CELL_SIZE}, got {inner.maze_size_scaling}")
        return cls.parse(inner.maze_map)

    def to_gymnasium(self) -> list[list[int | str]]:
        """The ``maze_map`` that gymnasium-robotics takes: 1 wall, 0 free, marks as they are."""
        return [[1 if cell == WALL else 0 if cell == FREE else cell for cell in row] for row in self.rows]

    def __str__(self) -> str:
        return "\n".join(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.rows), len(self.rows[0])

    @cached_property
    def walls(self) -> np.ndarray:
        """Read-only mask ``(rows, columns)``, True at walls."""
        mask = np.array([[cell == WALL for cell in row] for row in self.rows])
        mask.setflags(write=False)
        return mask

    @cached_property
    def free_cells(self) -> np.ndarray:
        """Free cells ``(n, 2)`` as (row, column), in reading order."""
        return np.argwhere(~self.walls)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the maze in environment units, as matplotlib's ``extent``."""
        height, width = self.shape
        return -width / 2 * CELL_SIZE, width / 2 * CELL_SIZE, -height / 2 * CELL_SIZE, height / 2 * CELL_SIZE

    # -------------------------------------------------------------- coordinates
    def cell_to_xy(self, cell: Any) -> np.ndarray:
        """
        Positions of cells.

        :param cell: cell coordinates (row, column) ``(..., 2)``, fractions allowed
        :return: positions (x, y) ``(..., 2)`` in environment units
        """
        rowcol = np.asarray(cell, dtype=np.float64)
        height, width = self.shape
        x = (rowcol[..., 1] + 0.5 - width / 2) * CELL_SIZE
        y = (height / 2 - rowcol[..., 0] - 0.5) * CELL_SIZE
        return np.stack([x, y], axis=-1)

    def xy_to_rowcol(self, xy: Any) -> np.ndarray:
        """
        Fractional cell coordinates of positions.

        :param xy: positions (x, y) ``(..., 2)`` in environment units
        :return: fractional cell coordinates (row, column) ``(..., 2)``; the inverse of :meth:`cell_to_xy`
        """
        xy = np.asarray(xy, dtype=np.float64)
        height, width = self.shape
        return np.stack([height / 2 - 0.5 - xy[..., 1] / CELL_SIZE, xy[..., 0] / CELL_SIZE + width / 2 - 0.5], axis=-1)

    def xy_to_cell(self, xy: Any) -> np.ndarray:
        """
        Cells of positions.

        :param xy: positions (x, y) ``(..., 2)`` in environment units
        :return: the cells (row, column) ``(..., 2)`` they lie in, int64; outside the maze they are out of range
        """
        return np.floor(self.xy_to_rowcol(xy) + 0.5).astype(np.int64)

    def is_wall(self, xy: Any) -> np.ndarray:
        """
        Whether positions lie in a wall.

        :param xy: positions ``(..., 2)`` in environment units
        :return: bool ``(...)``, True in a wall and outside the maze
        """
        cell = self.xy_to_cell(xy)
        limits = np.array(self.shape)
        outside = ((cell < 0) | (cell >= limits)).any(axis=-1)
        inner = np.clip(cell, 0, limits - 1)
        return self.walls[inner[..., 0], inner[..., 1]] | outside

    def clearance(self, xy: Any) -> np.ndarray:
        """
        Distance to the nearest wall.

        :param xy: positions ``(..., 2)`` in environment units
        :return: distances ``(...)`` in environment units; 0 inside a wall
        """
        xy = np.asarray(xy, dtype=np.float64)
        flat = xy.reshape(-1, 2)
        nearest = np.full(len(flat), np.inf)
        for centre in self.cell_to_xy(np.argwhere(self.walls)):
            outside = np.maximum(np.abs(flat - centre) - CELL_SIZE / 2, 0.0)
            np.minimum(nearest, np.hypot(outside[:, 0], outside[:, 1]), out=nearest)
        nearest[self.is_wall(flat)] = 0.0
        return nearest.reshape(xy.shape[:-1])

    # -------------------------------------------------------------- paths
    def free_cell(self, cell: Any, name: str = "cell") -> tuple[int, int]:
        """
        The whole cell that holds fractional cell coordinates.

        :param cell: (row, column), fractions allowed
        :param name: what the error message calls it
        :return: (row, column) of a free cell
        :raises ValueError: if it is no pair of finite numbers, lies outside the maze or in a wall, naming the maze
        """
        try:
            rowcol = np.asarray(cell, dtype=np.float64)
        except (TypeError, ValueError):
            rowcol = np.full(2, np.nan)
        if rowcol.shape != (2,) or not np.isfinite(rowcol).all():
            raise ValueError(f"{name} must be two finite numbers (row, column), got {cell!r}")
        row, column = (int(value) for value in np.floor(rowcol + 0.5))
        height, width = self.shape
        shown = f"({rowcol[0]:g}, {rowcol[1]:g})"
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"{name} {shown} lies outside the maze of {height} rows and {width} columns:\n{self}")
        if self.walls[row, column]:
            raise ValueError(f"{name} {shown} lies in a wall, cell ({row}, {column}) of the maze must be free:\n{self}")
        return row, column

    def path_distances(self, goal: Any) -> np.ndarray:
        """
        Length of the shortest path from every cell, by breadth-first search over the four neighbours.

        :param goal: (row, column) of a free cell, fractions are rounded to their cell
        :return: ``(rows, columns)`` in cells; infinite at walls and where no path leads
        :raises ValueError: if the goal is not in a free cell
        """
        start = self.free_cell(goal, "goal")
        distances = np.full(self.shape, np.inf)
        distances[start] = 0.0
        queue = deque([start])
        while queue:
            row, column = queue.popleft()
            for down, right in _NEIGHBOURS:
                cell = row + down, column + right
                if not self.walls[cell] and np.isinf(distances[cell]):
                    distances[cell] = distances[row, column] + 1.0
                    queue.append(cell)
        return distances

    def path(self, start: Any, goal: Any) -> list[tuple[int, int]]:
        """
        A shortest path over neighbouring free cells.

        :param start: (row, column) of a free cell, fractions are rounded to their cell
        :param goal: the same
        :return: the cells from start to goal, both included
        :raises ValueError: if one of them is not free or no path joins them
        """
        cell = self.free_cell(start, "start")
        distances = self.path_distances(goal)
        if np.isinf(distances[cell]):
            raise ValueError(f"no path leads from start {start!r} to goal {goal!r} in the maze:\n{self}")
        cells = [cell]
        while distances[cell] > 0:
            cell = min(((cell[0] + down, cell[1] + right) for down, right in _NEIGHBOURS), key=lambda c: distances[c])
            cells.append(cell)
        return cells


def _read_text(path: Path) -> str:
    """Text of a maze file, whose trouble is a ValueError naming the path."""
    try:
        return read_small(path, MAX_BYTES).decode() + "\n"
    except (OSError, ValueError) as error:
        shown = printable(str(path), 200)
        fault = f"maze must be rows, text or a text file, could not read {shown!r}: {printable(error)}"
        raise ValueError(fault) from None


def _checked_rows(rows: Sequence[str]) -> tuple[str, ...]:
    """Rows in the canonical alphabet; raises ValueError naming row and column."""
    if isinstance(rows, str) or not rows or any(not isinstance(row, str) for row in rows):
        raise ValueError(f"maze must have at least one row, each a string, got {printable(rows)}")
    width = len(rows[0])
    canonical = []
    for r, row in enumerate(rows):
        if len(row) != width or not width:
            raise ValueError(f"maze row {r} has {len(row)} columns, row 0 has {width}: all must be equal and not 0")
        cells = []
        for c, symbol in enumerate(row):
            if symbol in _WALL_SYMBOLS:
                cells.append(WALL)
            elif symbol in _FREE_SYMBOLS:
                cells.append(FREE)
            elif symbol in MARKS:
                cells.append(symbol)
            else:
                raise ValueError(f"maze has the unknown character {symbol!r} in row {r}, column {c}: use # . r g c 1 0")
            if cells[-1] != WALL and (r in (0, len(rows) - 1) or c in (0, width - 1)):
                raise ValueError(f"maze has an open border at row {r}, column {c}: border cells must be walls (#)")
        canonical.append("".join(cells))
    if all(set(row) == {WALL} for row in canonical):
        raise ValueError("maze has no free cell")
    return tuple(canonical)
