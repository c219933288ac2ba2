"""What the maze experiment consists of: four mazes, eight goals in each, three seeds, and its variants.

Nuti et al. 2023, section 5.1. A unit is the base of a maze and seed, or a pair with its goal. An ablation removes
a part of the method; a control removes the signal, so that there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from rrpolicy.experiments.spec import Unit, Variant, check_names, variant_of
from rrpolicy.experiments.task import Task

Cell = tuple[float, float]


@dataclass(frozen=True)
class MazeSetting:
    """
    A maze of the experiment and the goals of its experts.

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
SEEDS = (1, 2, 3)  # the recipe was found with seed 0; seeds that report: tuning_log.toml
QUICK_GOALS = (0, 3)  # of each maze: a corner, and one inside


@dataclass(frozen=True)
class MazeUnit(Unit):
    """
    A unit of the maze experiment: the base of a maze, or a pair of base and expert for one goal.

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
) -> list[MazeUnit]:
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
            units += [MazeUnit(name, seed), *(MazeUnit(name, seed, goal) for goal in own)]
    return units


# ---------------------------------------------------------------------- variants

ExpertKind = Literal["tuned", "scratch", "second-base", "base"]
Source = Literal["base", "expert"]
Part = Literal["pair", "plans", "training", "peers"]
AGENTS = ("base", "discriminator", "steered", "expert")


@dataclass(frozen=True)
class MazeVariant(Variant):
    """
    See :class:`spec.Variant`; beside that:

    :param expert: fine-tuned from the base, trained from scratch, the base of the next seed, or the base itself
    :param sources: whose data the models are compared at
    :param unseen_base: steer the base of the next seed, from which the reward was not extracted
    :param n_rounds: on-policy rounds that follow the extraction
    :param shuffled: fit ρ to targets that belong to other events
    :param agents: names of the agents that run in the environment; of ``peers``, the methods
    :param part: what is measured: the pair itself, other planning methods with its base, agents trained on its reward,
        or other methods on the same data
    :param goals: which of each maze's goals are done unless others are given; None for all, empty for bases alone
    """

    expert: ExpertKind = "tuned"
    sources: tuple[Source, ...] = ("base", "expert")
    unseen_base: bool = False
    n_rounds: int = 0
    shuffled: bool = False
    agents: tuple[str, ...] = ("base", "steered", "expert")
    part: Part = "pair"
    goals: tuple[int, ...] | None = None

    @property
    def has_goal(self) -> bool:
        """Whether the expert, and so the reward, depends on the goal."""
        return self.expert in ("tuned", "scratch")


MAIN = MazeVariant(agents=AGENTS)
_SMALL_DATA = {"base_transitions": 10_000, "expert_transitions": 10_000}
_LONG = {"total_timesteps": 16_000}
_NOISED = {"n_clean_levels": 0}
_CONTROL = ("base", "steered")

VARIANTS: Mapping[str, MazeVariant] = {
    variant.name: variant
    for variant in (
        MazeVariant("data-10k", "10 000 transitions for each agent", {"data": _SMALL_DATA}),
        MazeVariant("step-head", "the per-step head steers, there is no other", {"extraction": {"heads": ["step"]}}),
        MazeVariant("gradients-only", "no value matching", {"extraction": {"value_coef": 0.0}}),
        MazeVariant("noised-states", "the step head never sees clean states", {"extraction": {"step_kwargs": _NOISED}}),
        MazeVariant("no-row-weighting", "no weighting of rows", {"extraction": {"row_weighting": False}}),
        MazeVariant("one-round", "one on-policy round", n_rounds=1),
        MazeVariant("two-rounds", "two on-policy rounds", n_rounds=2),
        MazeVariant("base-windows", "compared at base data only", sources=("base",)),
        MazeVariant("expert-windows", "compared at expert data only", sources=("expert",)),
        MazeVariant("expert-from-scratch", "the expert does not start from the base", expert="scratch"),
        MazeVariant("ddim", "steering by DDIM, not DPM-Solver++", {"steering": {"sampler": "ddim"}}, agents=AGENTS),
        MazeVariant("long-base", "bases alone, which learn four times as long", {"base": _LONG}, goals=()),
        MazeVariant(
            "plans", "bases alone: more denoising steps, the likeliest of several plans", part="plans", goals=()
        ),
        MazeVariant("unseen-base", "a base of another seed is steered by the same reward", unseen_base=True),
        MazeVariant("second-base", "control: the expert is a second base", expert="second-base", agents=_CONTROL),
        MazeVariant("identical", "control: the expert is the base", expert="base", agents=_CONTROL),
        MazeVariant("shuffled", "control: targets belong to other events", shuffled=True, agents=_CONTROL),
        MazeVariant("training", "PPO and SAC trained on the reward and on the true one", part="training", goals=(0, 3)),
        MazeVariant(
            "peers",
            "AIRL, GAIL and behaviour cloning on the expert's data",
            agents=("airl", "gail", "cloning"),
            part="peers",
            goals=(0, 3),
        ),
        MazeVariant(
            "score-peers",
            "DIFO and IQ-Learn on the expert's data",
            agents=("difo", "iq-learn"),
            part="peers",
            goals=(0, 3),
        ),
    )
}

variant_named = partial(variant_of, VARIANTS, MAIN)
