"""The measurements of one unit of the maze experiment: the reward's map against the maze, and episodes of the agents.

Everything random follows from the unit's seed; agents are loaded anew for every unit, so a resumed run gives the same
numbers as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import Evaluation, Row, evaluate, paired_difference, result_row
from rrpolicy.experiments.maze2d.artifacts import MazeStore, map_path, write_map
from rrpolicy.experiments.maze2d.measure_peers import measure_peers
from rrpolicy.experiments.maze2d.measure_reward import distances, orders, recovery_rows
from rrpolicy.experiments.maze2d.measure_training import measure_training
from rrpolicy.experiments.maze2d.spec import MAIN, MazeUnit, MazeVariant
from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.results import Log, Recorder
from rrpolicy.experiments.runner import Reproduction, Running
from rrpolicy.experiments.scoring import Scoring, environments, n_episodes
from rrpolicy.experiments.spec import Experiment
from rrpolicy.experiments.store import digest
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.maze_metrics import crosses_walls
from rrpolicy.rewards.relative_reward import RelativeReward

MAX_ENVS = 64  # for which a planner plans in one batch
PAIRS = (("steered", "expert"), ("steered", "discriminator"), ("steered", "base"))  # that are compared


class MazeExperiment(Experiment[MazeUnit]):
    """
    The maze experiment.

    :param recipe: every number
    :param out: the CSV; maps and curves go into the folder of its name beside it
    :param work: folder of archives
    :param variant: ablation or control
    """

    names = ("maze", "goal")

    def __init__(self, recipe: Recipe, out: Path, work: Path, variant: MazeVariant = MAIN) -> None:
        recipe = variant.applied(recipe)
        super().__init__(variant.name)
        self._digest = digest(recipe)
        self._part = variant.part
        self._out = out
        self._store = MazeStore(work, recipe, variant)

    def digest(self, unit: MazeUnit) -> str:
        """The digest of the recipe."""
        return self._digest

    def shared(self, unit: MazeUnit) -> dict[str, Callable[[], object]]:
        """The bases of a maze and seed, unless no base is needed."""
        if self._part == "peers" and unit.goal is not None:
            return {}
        return {str(one): partial(self._store.base, one) for one in self._store.bases_of(unit)}

    def measure(self, unit: MazeUnit, log: Log) -> Recorder:
        """All measurements of a unit."""
        if unit.goal is None:
            return measure_base(self._store, unit, log)
        if self._part == "training":
            return measure_training(self._store, unit, self._out.with_suffix("") / "curves", log)
        if self._part == "peers":
            return measure_peers(self._store, unit, log)
        recorder, drawn = measure_pair(self._store, unit, log)
        write_map(map_path(self._out, unit, self.variant), drawn)
        return recorder


def reproduction(
    units: Sequence[MazeUnit],
    recipe: Recipe,
    out: Path,
    work: Path,
    variant: MazeVariant = MAIN,
    **running: Unpack[Running],
) -> Reproduction[MazeUnit]:
    """
    A run of the maze experiment.

    :param units: as :func:`select` gives them
    :param recipe: every number
    :param out: the CSV
    :param work: folder of archives and finished units, needed to go on
    :param variant: ablation or control
    :param running: ``progress_bar``, ``log`` and ``jobs`` of :class:`Reproduction`
    """
    return Reproduction(units, MazeExperiment(recipe, out, work, variant), out, work, **running)


# ---------------------------------------------------------------------- units


def measure_base(store: MazeStore, unit: MazeUnit, log: Log = lambda text: None) -> Recorder:
    """The base alone: CPU time, and how many of its plans lead through walls, with other planning methods if wanted."""
    recorder = Recorder(log)
    recorder.start("training the base")
    base, seconds = store.base(unit)
    recorder.times(base_data=store.data(unit)[1], base=seconds)
    ways = {"base": {}, **(_other_ways(base) if store.variant.part == "plans" else {})}
    for name, options in ways.items():
        recorder.start(f"plans of {name}")
        recorder.rows(_plan_rows(name, base.with_planning(**options), unit, Scoring.of(store.recipe).n_plans))
    recorder.done()
    return recorder


def _other_ways(base: DiffusionAgent) -> dict[str, dict[str, Any]]:
    """Planning methods for the same base: options by name."""
    return {
        "base-steps-10": {"n_sampling_steps": 10},
        "base-ancestral": {"n_sampling_steps": base.process.n_diffusion_steps, "sampler": "ddpm"},
        "base-best-of-4": {"n_candidates": 4},
        "base-steps-10-best-of-4": {"n_sampling_steps": 10, "n_candidates": 4},
    }


def _plan_rows(name: str, base: DiffusionAgent, unit: MazeUnit, n: int) -> list[Row]:
    maze = unit.task.maze
    observations = experiments.observations_for_plans(maze, n, unit.seed)
    plans = np.asarray(base.plan(observations, deterministic=False)[..., :2], dtype=np.float64)
    return [
        result_row(name, "plans_through_walls_rate", crosses_walls(maze, plans)),
        result_row(name, "planned_positions_in_walls", maze.is_wall(plans).mean(axis=1)),
    ]


def measure_pair(store: MazeStore, unit: MazeUnit, log: Log = lambda text: None) -> tuple[Recorder, RewardMap]:
    """All measurements of a base, an expert and their reward."""
    recorder = Recorder(log)
    recorder.start("data")
    store.data(unit)
    base, _ = store.base(unit)
    recorder.start("training the expert")
    expert, expert_seconds = store.expert(unit)
    recorder.start("extracting the reward")
    reward, reward_seconds = store.reward(unit)
    recorder.times(expert_data=store.data(unit)[1], expert=expert_seconds, reward=reward_seconds)
    recorder.start("drawing the map")
    data = store.data(MazeUnit(unit.maze, unit.seed))[0], store.data(unit)[0]
    drawn = experiments.map_reward(reward, unit.task.maze, store.recipe, data[0])
    recorder.rows(recovery_rows("reward", drawn, unit.goal))
    far = experiments.map_reward(reward, unit.task.maze, store.recipe, levels=[reward.far_level])
    recorder.rows(orders(drawn, far, unit.goal, *data))
    recorder.start("EPIC and DARD")
    recorder.rows(distances(reward, unit, data[0], Scoring.of(store.recipe)))
    recorder.start("R²")
    held_out = store.sources(unit)[1]
    recorder.rows(experiments.explained_rows(reward, base, expert, held_out, store.recipe, unit.seed))
    _measure_agents(store, unit, recorder, reward, base, expert)
    recorder.done()
    return recorder, drawn


# ---------------------------------------------------------------------- the agents


def _measure_agents(
    store: MazeStore,
    unit: MazeUnit,
    recorder: Recorder,
    reward: RelativeReward,
    base: DiffusionAgent,
    expert: DiffusionAgent,
) -> None:
    """Success and return of all agents of this variant, and their differences episode by episode."""
    wanted = store.variant.agents
    actor = store.second_base(unit)[0] if store.variant.unseen_base else base
    agents: dict[str, Predictor] = {"base": actor}
    if "discriminator" in wanted:
        recorder.start("training the discriminator")
        other, seconds = store.discriminator(unit)
        recorder.times(discriminator=seconds)
        agents["discriminator"] = experiments.steer(actor, other, store.recipe)
    agents |= {"steered": experiments.steer(actor, reward, store.recipe), "expert": expert}
    settings = experiments.section(store.recipe, "evaluation")
    results: dict[str, Evaluation] = {}
    with environments(unit.task, min(n_episodes(store.recipe), MAX_ENVS), reward_type="dense") as envs:
        for name in wanted:
            recorder.start(f"episodes of {name}")
            results[name] = evaluate(agents[name], envs, seed=unit.seed * 1000, **settings)
            recorder.rows(results[name].rows(name))
    for one, two in PAIRS:
        if one in results and two in results:
            recorder.rows([_difference(results, one, two, metric) for metric in ("success_rate", "return")])


def _difference(results: Mapping[str, Evaluation], one: str, two: str, metric: str) -> Row:
    return {"agent": one, "reference": two, "metric": metric, **paired_difference(results[one], results[two], metric)}
