"""What the maze experiment consists of: four mazes, eight goals in each, three seeds (Nuti et al. 2023, section 5.1).

A unit is the smallest piece that is kept when a run is stopped: the base of a maze and seed, or a pair with its goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rrpolicy.experiments import Task
from rrpolicy.experiments.names import check_names

Cell = tuple[float, float]


@dataclass(frozen=True)
class MazeSetting:
    """
    :param env_id: the PointMaze
    :param goals: (row, column) of its experts
    """

    env_id: str
    goals: tuple[Cell, ...]


def _setting(env_id: str, *goals: Cell) -> MazeSetting:
    return MazeSetting(env_id, tuple((float(row), float(column)) for row, column in goals))


MAZES: Mapping[str, MazeSetting] = {
    "open": _setting("PointMaze_Open-v3", (1, 1), (1, 5), (1.3, 1.7), (2, 3), (2.3, 4.3), (2.7, 3.1), (3, 1), (3, 5)),
    "umaze": _setting("PointMaze_UMaze-v3", (1, 1), (1, 2), (1, 3), (1.3, 2.7), (2, 3), (3, 1), (3, 2), (3, 3)),
    "medium": _setting("PointMaze_Medium-v3", (1, 1), (1, 6), (2, 2), (4, 4), (4, 6), (5, 3), (6, 1), (6, 6)),
    "large": _setting("PointMaze_Large-v3", (1, 1), (1, 10), (3, 6), (3, 8), (5, 2), (5, 4), (7, 1), (7, 10)),
}
SEEDS = (1, 2, 3)  # the recipe was found with seed 0
QUICK_GOALS = (0, 3)  # of each maze: a corner, and one inside


@dataclass(frozen=True)
class Unit:
    """
    :param maze: a name of :data:`MAZES`
    :param seed: of data, training and episodes
    :param goal: of the expert; None for the base alone
    """

    maze: str
    seed: int
    goal: Cell | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Maze, goal and seed as they stand in the CSV."""
        return self.maze, goal_text(self.goal), self.seed

    @property
    def task(self) -> Task:
        return _task(MAZES[self.maze].env_id, self.goal)

    @property
    def name(self) -> str:
        """Fit for a file."""
        return "_".join([self.maze, *([goal_text(self.goal)] if self.goal else []), f"seed-{self.seed}"])

    def __str__(self) -> str:
        return f"{self.maze} {f'goal {goal_text(self.goal)}' if self.goal else 'base'} seed {self.seed}"


@lru_cache
def _task(env_id: str, goal: Cell | None) -> Task:
    """One object for each task, since it looks its maze up only once."""
    return Task(env_id, None, goal)


def goal_text(goal: Cell | None) -> str:
    """``3-1``, ``1.3-2.7``; empty for None."""
    return "" if goal is None else "-".join(f"{value:g}" for value in goal)


def select(
    mazes: Sequence[str] | None = None,
    goals: Sequence[Cell] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    indices: Sequence[int] | None = None,
) -> list[Unit]:
    """
    The units to be done, bases before their pairs, all mazes of a seed before the next seed.

    :param mazes: only these; None for all
    :param goals: only these; None for all
    :param seeds: only these; None for :data:`SEEDS`
    :param quick: one seed and two goals of each maze, for what is not given
    :param indices: of each maze's goals, where neither goals are given nor a quick run is wanted; None for all; empty
        for bases alone, in a quick run as well
    :raises ValueError: for a name that is not known, goals that none of the mazes has, or goals of bases alone
    """
    names = list(dict.fromkeys(mazes)) if mazes else list(MAZES)
    check_names("maze", names, MAZES)
    chosen = {name: MAZES[name].goals for name in names}
    alone = indices is not None and not indices
    if goals and alone:
        raise ValueError(f"goal {goal_text(goals[0])} is given, but this is about bases alone")
    if goals:
        asked = {name: tuple(goal for goal in own if goal in goals) for name, own in chosen.items()}
        chosen = {name: own for name, own in asked.items() if own}
        missing = [goal for goal in goals if not any(goal in own for own in chosen.values())]
        if missing:
            known = "; ".join(",".join(f"{value:g}" for value in goal) for name in names for goal in MAZES[name].goals)
            raise ValueError(f"goal {goal_text(missing[0])} is not one of the experiment, which has {known}")
    elif (few := QUICK_GOALS if quick and not alone else indices) is not None:
        chosen = {name: tuple(own[index] for index in few) for name, own in chosen.items()}
    units = []
    for seed in dict.fromkeys(seeds or (SEEDS[:1] if quick else SEEDS)):
        for name, own in chosen.items():
            units += [Unit(name, seed), *(Unit(name, seed, goal) for goal in own)]
    return units
