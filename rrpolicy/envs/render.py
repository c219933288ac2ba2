"""Draws a maze from above with ball, goal, trail, plans and heat map, by PIL alone: no OpenGL and no display.
Everything is drawn on a larger canvas and shrunk (supersampling), which is where the smooth edges come from."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rrpolicy.envs.maze import CELL_SIZE, MazeGeometry
from rrpolicy.envs.simulator import RADIUS

SUPERSAMPLING = 2
SUCCESS_RADIUS = 0.45  # gymnasium-robotics' own

FLOOR = (250, 248, 243)
GRID = (238, 234, 225)
WALL = (58, 66, 84)
WALL_EDGE = (36, 42, 56)
GOAL = (214, 51, 72)
BALL = (32, 122, 88)
TRAIL = (32, 122, 88)
PLAN = (235, 129, 27)
CANDIDATE = (120, 112, 150)
_HEAT = np.array(  # anchors of viridis, so that pictures agree with matplotlib's default
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


def draw_maze(
    maze: MazeGeometry,
    *,
    size: int = 480,
    position: Any = None,
    goal: Any = None,
    trail: Any = None,
    plans: Any = None,
    chosen: int | None = None,
    heat: Any = None,
    caption: str | None = None,
) -> np.ndarray:
    """
    A picture of the maze from above. All positions are (x, y) in environment units.

    :param maze: the maze
    :param size: longer side of the picture in pixels, at least 32; both sides come out even, as video codecs want
    :param position: the ball ``(2,)``, or several ``(n, 2)``
    :param goal: ``(2,)``; drawn with the radius that counts as success
    :param trail: where the ball was ``(n, 2)``, oldest first
    :param plans: planned positions ``(H, 2)`` or ``(n, H, 2)``
    :param chosen: which plan is followed, drawn last and strongest; None: the only one, or none of many
    :param heat: values ``(k rows, k columns)`` over the whole maze, top row first; NaN takes its neighbours' colour
    :param caption: a line of text in the top left corner
    :return: ``(height, width, 3)`` uint8
    :raises ValueError: naming the argument whose shape or value is wrong
    """
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size!r}")
    view = _View(maze, size)
    image = _background(maze, size).copy() if heat is None else _walls_over(maze, view, _heat_image(maze, view, heat))
    draw = ImageDraw.Draw(image, "RGBA")
    if goal is not None:
        _draw_goal(draw, view, _points(goal, "goal")[0])
    if trail is not None:
        _draw_trail(draw, view, _points(trail, "trail"))
    if plans is not None:
        _draw_plans(draw, view, np.asarray(plans, dtype=np.float64), chosen)
    if position is not None:
        _draw_balls(draw, view, _points(position, "position"))
    if caption:
        _draw_caption(draw, view, caption)
    return np.asarray(image.resize((view.width, view.height), Image.Resampling.BOX, reducing_gap=None))


class _View:
    """Where things are on the large canvas."""

    def __init__(self, maze: MazeGeometry, size: int) -> None:
        rows, columns = maze.shape
        longest = max(rows, columns)
        self.width, self.height = (max(2, 2 * round(size * n / longest / 2)) for n in (columns, rows))
        self.canvas = self.width * SUPERSAMPLING, self.height * SUPERSAMPLING
        self.scale = size * SUPERSAMPLING / longest / CELL_SIZE  # canvas pixels per environment unit
        self._centre = np.array(self.canvas) / 2

    def pixels(self, xy: np.ndarray) -> np.ndarray:
        """Canvas pixels ``(..., 2)`` of positions ``(..., 2)``."""
        return self._centre + np.asarray(xy) * (self.scale, -self.scale)

    def width_of(self, pixels: float) -> int:
        """A line width given in pixels of the finished picture at 480 pixels."""
        return max(1, round(pixels * SUPERSAMPLING * max(self.width, self.height) / 480))


def _points(value: Any, name: str) -> np.ndarray:
    """Positions as (n, 2), or a ValueError naming the argument."""
    points = np.asarray(value, dtype=np.float64)
    if points.ndim not in (1, 2) or points.shape[-1] != 2:
        raise ValueError(f"{name} must be positions (2,) or (n, 2), got shape {points.shape}")
    return points.reshape(-1, 2)


@lru_cache(maxsize=8)
def _background(maze: MazeGeometry, size: int) -> Image.Image:
    """Floor and walls, the same in every frame."""
    view = _View(maze, size)
    image = Image.new("RGB", view.canvas, FLOOR)
    draw = ImageDraw.Draw(image)
    for row, column in maze.free_cells:
        draw.rectangle(_cell_box(maze, view, int(row), int(column)), outline=GRID, width=SUPERSAMPLING)
    return _walls_over(maze, view, image)


def _cell_box(maze: MazeGeometry, view: _View, row: int, column: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a cell on the canvas."""
    left, top = view.pixels(maze.cell_to_xy((row - 0.5, column - 0.5)))
    right, bottom = view.pixels(maze.cell_to_xy((row + 0.5, column + 0.5)))
    return float(left), float(top), float(right), float(bottom)


def _walls_over(maze: MazeGeometry, view: _View, image: Image.Image) -> Image.Image:
    """Paint the walls, and an edge where a wall meets a free cell."""
    draw = ImageDraw.Draw(image)
    for row, column in np.argwhere(maze.walls):
        draw.rectangle(_cell_box(maze, view, int(row), int(column)), fill=WALL)
    edge = view.width_of(2.5)
    for row, column in maze.free_cells.tolist():
        left, top, right, bottom = _cell_box(maze, view, row, column)
        sides = {(-1, 0): (left, top, right, top), (1, 0): (left, bottom, right, bottom)}
        sides |= {(0, -1): (left, top, left, bottom), (0, 1): (right, top, right, bottom)}
        for (down, along), line in sides.items():
            if maze.walls[row + down, column + along]:
                draw.line(line, fill=WALL_EDGE, width=edge)
    return image


def _heat_image(maze: MazeGeometry, view: _View, heat: Any) -> Image.Image:
    """Colours of a grid of values, smoothly enlarged."""
    values = np.asarray(heat, dtype=np.float64)
    rows, columns = maze.shape
    fits = values.ndim == 2 and values.shape[0] % rows == 0 and values.shape[1] * rows == values.shape[0] * columns
    if not fits or values.size == 0:
        raise ValueError(f"heat must have k times {maze.shape} values for a whole k, got shape {values.shape}")
    known = np.isfinite(values)
    if not known.any():
        return Image.new("RGB", view.canvas, FLOOR)
    values = _spread(np.where(known, values, np.nan))
    low, high = values.min(), values.max()
    level = (values - low) / max(high - low, 1e-12) * (len(_HEAT) - 1)
    lower = np.minimum(level.astype(np.int64), len(_HEAT) - 2)
    colours = _HEAT[lower] + (level - lower)[..., None] * (_HEAT[lower + 1] - _HEAT[lower])
    return Image.fromarray(colours.round().astype(np.uint8)).resize(view.canvas, Image.Resampling.BILINEAR)


def _spread(values: np.ndarray) -> np.ndarray:
    """Fill NaN from known neighbours, ring by ring, so that enlarging does not bleed at the walls."""
    while np.isnan(values).any():
        padded = np.pad(values, 1, constant_values=np.nan)
        around = np.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
        known = np.isfinite(around)
        mean = np.where(known, around, 0.0).sum(0) / np.maximum(known.sum(0), 1)
        values = np.where(np.isnan(values) & known.any(0), mean, values)
    return values


def _disc(
    draw: ImageDraw.ImageDraw,
    centre: np.ndarray,
    radius: float,
    fill: tuple[int, ...] | None,
    outline: tuple[int, ...] | None = None,
    width: int = 2 * SUPERSAMPLING,
) -> None:
    """A filled circle."""
    x, y = float(centre[0]), float(centre[1])
    box = x - radius, y - radius, x + radius, y + radius
    draw.ellipse(box, fill=fill, outline=outline, width=width if outline else 0)


def _draw_goal(draw: ImageDraw.ImageDraw, view: _View, goal: np.ndarray) -> None:
    """A star inside the circle that counts as success."""
    centre = view.pixels(goal)
    _disc(draw, centre, view.scale * SUCCESS_RADIUS, (*GOAL, 38), outline=(*GOAL, 150), width=view.width_of(1.5))
    angles = np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42) * max(view.scale * 0.2, 6.0 * SUPERSAMPLING)
    star = centre + np.stack([radii * np.cos(angles), -radii * np.sin(angles)], axis=1)
    draw.polygon([tuple(point) for point in star.tolist()], fill=GOAL, outline=(255, 255, 255), width=SUPERSAMPLING)


def _draw_balls(draw: ImageDraw.ImageDraw, view: _View, positions: np.ndarray) -> None:
    """Of true size, but large enough to be seen in large mazes."""
    for centre in view.pixels(positions):
        _disc(draw, centre, max(view.scale * RADIUS, 4.5 * SUPERSAMPLING), BALL, outline=(255, 255, 255))


def _draw_trail(draw: ImageDraw.ImageDraw, view: _View, trail: np.ndarray) -> None:
    """A line that fades towards the past, in few pieces so that long episodes stay cheap."""
    pixels = view.pixels(trail)
    pieces = min(24, max(1, len(pixels) - 1))
    borders = np.linspace(0, len(pixels) - 1, pieces + 1).round().astype(np.int64)
    for piece, (first, last) in enumerate(pairwise(borders)):
        line = [tuple(point) for point in pixels[first : last + 1].tolist()]
        if len(line) > 1:
            opacity = 40 + round(170 * (piece + 1) / pieces)
            draw.line(line, fill=(*TRAIL, opacity), width=view.width_of(3), joint=None)


def _draw_plans(draw: ImageDraw.ImageDraw, view: _View, plans: np.ndarray, chosen: int | None) -> None:
    """Candidates thin and pale, the followed one strong and with its steps as dots."""
    if plans.ndim not in (2, 3) or plans.shape[-1] != 2:
        raise ValueError(f"plans must be positions (H, 2) or (n, H, 2), got shape {plans.shape}")
    plans = plans[None] if plans.ndim == 2 else plans
    if chosen is None and len(plans) == 1:
        chosen = 0
    if chosen is not None and not 0 <= chosen < len(plans):
        raise ValueError(f"chosen must be one of the {len(plans)} plans, got {chosen!r}")
    for index, plan in enumerate(plans):
        if index != chosen:
            line = [tuple(point) for point in view.pixels(plan).tolist()]
            draw.line(line, fill=(*CANDIDATE, 110), width=view.width_of(1.6), joint="curve")
    if chosen is None:
        return
    pixels = view.pixels(plans[chosen])
    draw.line([tuple(point) for point in pixels.tolist()], fill=PLAN, width=view.width_of(3), joint="curve")
    for point in pixels:
        _disc(draw, point, view.width_of(3.4), PLAN, outline=(255, 255, 255), width=SUPERSAMPLING)


@lru_cache(maxsize=4)
def _font(pixels: int) -> Any:
    """Pillow's own font, so that no system font is needed."""
    return ImageFont.load_default(pixels)


def _draw_caption(draw: ImageDraw.ImageDraw, view: _View, caption: str) -> None:
    """White text on the wall's colour."""
    font = _font(view.width_of(17))
    margin = view.width_of(6)
    left, top, right, bottom = draw.textbbox((2 * margin, 2 * margin), caption, font=font)
    box = (left - margin, top - margin, right + margin, bottom + margin)
    draw.rounded_rectangle(box, radius=margin, fill=(*WALL_EDGE, 215))
    draw.text((2 * margin, 2 * margin), caption, fill=(255, 255, 255), font=font)
