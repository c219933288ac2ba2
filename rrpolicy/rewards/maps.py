"""A reward drawn over a maze: the step head's ρ of resting states on a regular grid, smoothed between the walls.
Its maximum is where the expert is much more often than the base (Nuti, Franzmeyer, Henriques 2023, section 5.1)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrpolicy.common.messages import RrpolicyWarning, printable
from rrpolicy.common.typing import Array
from rrpolicy.data.normalizer import LEAST_CLIP, Normalizer
from rrpolicy.envs.maze import CELL_SIZE, MazeGeometry
from rrpolicy.rewards.protocol import StepReward

KERNEL_REACH = 3.0  # standard deviations; at the default smoothing it ends before a wall's far side
SUPPORT_REACH = 0.2  # cells: whose states count as visits of a place
SUPPORT_VISITS = 20  # of the base, for a place to be known


@dataclass(frozen=True, eq=False)
class RewardMap:
    """
    A reward over the free space of a maze.

    :param maze: the maze
    :param xy: scored positions (n, 2) in environment units
    :param values: smoothed rewards (n,) in nats
    :param grid: the same as a picture (rows · k, columns · k), top row first; NaN in walls
    :param known: bool (n,), where the base has been; None for everywhere
    """

    maze: MazeGeometry
    xy: Array
    values: Array
    grid: Array
    known: Array | None = None

    @property
    def maximum(self) -> Array:
        """The known position (2,) with the highest reward, environment units."""
        values = self.values if self.known is None else np.where(self.known, self.values, -np.inf)
        return self.xy[int(values.argmax())]

    @property
    def range(self) -> float:
        """Highest minus lowest reward of the picture, in nats."""
        return float(np.nanmax(self.grid) - np.nanmin(self.grid))

    @property
    def filled(self) -> Array:
        """The grid with walls taking their surroundings' values, so that a picture can be enlarged smoothly."""
        free = np.isfinite(self.grid)
        deviation = self.grid.shape[0] / self.maze.shape[0] / 2
        spread = _smoothed(np.where(free, self.grid, 0.0), free, deviation)
        low, high = np.nanmin(self.grid), np.nanmax(self.grid)
        return np.where(free, self.grid, np.clip(np.nan_to_num(spread, nan=low), low, high))

    def goal_error_cells(self, goal: Any) -> float:
        """
        Distance of the maximum from a goal, in cells.

        :param goal: (row, column) in cells, fractions allowed
        :raises ValueError: when the goal is not in a free cell
        """
        self.maze.free_cell(goal, "goal")
        return float(np.linalg.norm(self.maximum - self.maze.cell_to_xy(goal))) / CELL_SIZE

    def same_cell(self, goal: Any) -> bool:
        """Whether the maximum lies in the cell of ``goal`` (row, column)."""
        return tuple(self.maze.xy_to_cell(self.maximum).tolist()) == self.maze.free_cell(goal, "goal")


def reward_map(
    reward: StepReward,
    maze: Any,
    points_per_cell: int = 10,
    wall_margin: float = 0.1,
    smoothing: float = 0.15,
    base_xy: Array | None = None,
    levels: Sequence[int] | None = None,
) -> RewardMap:
    """
    Score resting states at regular places of a maze. Entries of the observation other than x, y (its first two), and
    actions where the reward scores them, are zero.

    A warning tells what share of the maze lies beyond what the reward was made for, as that of another maze.

    ρ is the log of a ratio of densities. Where the base has hardly been the ratio has no bound, and few data do not
    determine it: given ``base_xy``, the map is drawn there, but its maximum is looked for elsewhere.

    :param reward: a reward with a step head
    :param maze: a `MazeGeometry` or what it can be parsed from
    :param points_per_cell: places along a cell's side
    :param wall_margin: places nearer to a wall (environment units) are not scored: no ball can be there
    :param smoothing: standard deviation of a Gaussian over the scored places, in cells; 0 for none
    :param base_xy: positions (n, 2) of the base's data, environment units: places with fewer than ``SUPPORT_VISITS`` of
        them within ``SUPPORT_REACH`` are not known; None: all are
    :param levels: noise levels to average over, of a reward whose ``predict`` takes them, such as ``[far_level]`` of a
        `RelativeReward`; None: where that reward reads single states
    :return: the map
    :raises ValueError: naming the argument that is out of range, for levels of a reward whose ``predict`` takes
        none, or when the reward cannot score single states
    """
    maze = MazeGeometry.parse(maze)
    _check(points_per_cell, wall_margin, smoothing)
    rows, columns = ((np.arange(n * points_per_cell) + 0.5) / points_per_cell - 0.5 for n in maze.shape)
    places = maze.cell_to_xy(np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1))
    free = ~maze.is_wall(places)
    scored = free & (maze.clearance(places) >= wall_margin - 1e-9)
    if not scored.any():
        raise ValueError(f"wall_margin={wall_margin!r} leaves no place of the maze to score, wanted less")
    _warn_of_place(reward, places[scored])
    values = np.zeros(places.shape[:2])
    values[scored] = _score(reward, places[scored], levels)
    smooth = _smoothed(values, scored, smoothing * points_per_cell)
    known = None if base_xy is None else _visited(maze, base_xy, points_per_cell)[scored]
    if known is not None and not known.any():
        raise ValueError(f"base_xy holds no place that was visited {SUPPORT_VISITS} times")
    return RewardMap(maze, places[scored], smooth[scored], np.where(free, smooth, np.nan), known)


def _check(points_per_cell: int, wall_margin: float, smoothing: float) -> None:
    if isinstance(points_per_cell, bool) or not isinstance(points_per_cell, (int, np.integer)) or points_per_cell < 1:
        raise ValueError(f"points_per_cell={points_per_cell!r}, wanted an integer of at least 1")
    for name, value in (("wall_margin", wall_margin), ("smoothing", smoothing)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name}={value!r}, wanted a finite number that is not negative")


def _warn_of_place(reward: StepReward, xy: Array) -> None:
    """Tell what share of the places (n, 2) lies where neither of the reward's two models plans."""
    normalizer = getattr(reward, "normalizer", None)
    if not isinstance(normalizer, Normalizer) or normalizer.observations.width < 2:
        return
    position, bound = normalizer.observations.select((0, 1)), LEAST_CLIP[normalizer.mode]
    share = float((np.abs(position.normalize(xy)) > bound).any(axis=1).mean())
    if share > 0:
        low, high = (position.offset + side * position.scale for side in (-bound, bound))
        warnings.warn(
            f"{share:.0%} of the maze lies beyond what the reward was made for: x, y within {_told(low, high)}, "
            f"the maze reaches over {_told(xy.min(axis=0), xy.max(axis=0))}",
            RrpolicyWarning,
            stacklevel=3,
        )


def _told(low: Array, high: Array) -> str:
    return ", ".join(f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True))


def _score(reward: StepReward, xy: Array, levels: Sequence[int] | None) -> Array:
    """Rewards (n,) of balls at rest."""
    layout = reward.layout
    if layout is None or layout.observation_dim < 2:
        raise ValueError(f"reward has the layout {layout}, wanted observations that begin with x, y")
    observations = np.zeros((len(xy), layout.observation_dim), dtype=np.float32)
    observations[:, :2] = xy
    actions = np.zeros((len(xy), layout.action_dim), dtype=np.float32) if layout.plan_actions else None
    options: dict[str, Any] = {} if levels is None else {"levels": levels}
    if options and not _takes_levels(reward):
        raise ValueError(f"levels is {printable(levels)}, and {type(reward).__name__}.predict takes none")
    return np.asarray(reward.predict(observations, actions, **options), dtype=np.float64)


def _takes_levels(reward: StepReward) -> bool:
    takes = inspect.signature(reward.predict).parameters
    return "levels" in takes or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in takes.values())


def _visited(maze: MazeGeometry, xy: Array, points_per_cell: int) -> Array:
    """Places (rows · k, columns · k) with enough states in a square around them."""
    shape = tuple(n * points_per_cell for n in maze.shape)
    places = np.floor((maze.xy_to_rowcol(np.asarray(xy)[:, :2]) + 0.5) * points_per_cell).astype(np.int64)
    visits = np.zeros(shape)
    np.add.at(visits, tuple(np.clip(places, 0, np.array(shape) - 1).T), 1.0)
    near = (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= SUPPORT_REACH * points_per_cell for n in shape)
    down, along = near
    return np.asarray(down @ visits @ along >= SUPPORT_VISITS)


def _smoothed(values: Array, known: Array, deviation: float) -> Array:
    """
    Local linear regression with Gaussian weights over known places (Fan 1993). A plain weighted mean would lean away
    from walls, where its neighbourhood is cut off, and so move a maximum that lies beside one.

    :param values: (rows, columns), 0 where unknown
    :param known: bool (rows, columns)
    :param deviation: of the Gaussian, in grid points
    :return: (rows, columns), NaN where nothing known is in reach
    """
    down, along = (_moments(n, deviation) for n in values.shape)
    orders = ((0, 0), (1, 0), (0, 1))  # of the fitted plane's terms: 1, rows down, columns along
    normal = np.empty((*values.shape, 3, 3))
    right = np.empty((*values.shape, 3))
    for i, (a, b) in enumerate(orders):
        right[..., i] = down[a] @ values @ along[b].T
        for j, (c, d) in enumerate(orders):
            normal[..., i, j] = down[a + c] @ known @ along[b + d].T
    weight = normal[..., 0, 0]
    normal += 1e-9 * np.eye(3)  # a single row of places has no slope across
    fitted = np.linalg.solve(normal, right[..., None])[..., 0, 0]
    return np.where(weight > 0, fitted, np.nan)


def _moments(n: int, deviation: float) -> list[Array]:
    """Weights (n, n) of each place's neighbours along one axis, times the distance to the power 0, 1 and 2."""
    distance = np.arange(n) - np.arange(n)[:, None]
    weight = (distance == 0).astype(np.float64)
    if deviation > 0:
        weight = np.exp(-0.5 * (distance / deviation) ** 2) * (np.abs(distance) <= KERNEL_REACH * deviation)
    return [weight * distance**power for power in range(3)]
