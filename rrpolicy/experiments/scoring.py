"""Scores as rows of results: how well a reward explains two models, what samples show, and episodes.

Every command, demo, experiment and zoo build takes its numbers from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

from rrpolicy import zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common.stats import share
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import Row, benchmark, result_row
from rrpolicy.experiments.recipes import DEFAULT_RECIPE, Recipe, build, section
from rrpolicy.experiments.results import estimate_row, plain_row
from rrpolicy.experiments.steps import new_agent, new_extractor, steer
from rrpolicy.experiments.task import Task, observations_for_plans
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.metrics import separation
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.metrics import explained_by_name, split_episodes
from rrpolicy.rewards.relative_reward import RelativeReward


@dataclass(frozen=True)
class Scoring:
    """
    The recipe's section ``[scores]``: how an extracted reward is scored.

    :param held_out: share of the episodes that is scored on and not extracted from
    :param n_groups: disjoint groups of held-out events, whose spread gives the interval of R²
    :param group_size: events in each
    :param n_plans: plans of a maze's base that are looked at for walls
    :param n_coverage: transitions of the base's data over which rewards in a maze are compared by EPIC and DARD
    :param n_canonical: samples behind the canonical forms of both; rewards of states lose nothing in it
    :param n_scored: windows, and steps, of data whose ρ is compared with the true reward
    :param least_scored: windows or steps of an episode behind its mean
    """

    held_out: float = 0.1
    n_groups: int = 8
    group_size: int = 128
    n_plans: int = 1000
    n_coverage: int = 1024
    n_canonical: int = 16
    n_scored: int = 8192
    least_scored: int = 4

    @classmethod
    def of(cls, recipe: Recipe | None) -> Scoring:
        """
        The options of a recipe; the defaults for None.

        :raises ValueError: for an entry that is not known
        """
        return build(cls, "scores", recipe, **(recipe or {}).get("scores", {}))


def split_data(
    data: Sequence[TrajectoryDataset], seed: int, recipe: Recipe | None = None
) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
    """Data to extract from and data to score on, see `metrics.split_episodes`; the recipe may set the share."""
    return split_episodes(data, Scoring.of(recipe).held_out, seed)


def explained_rows(
    reward: RelativeReward,
    base: DiffusionAgent,
    expert: DiffusionAgent,
    data: Sequence[TrajectoryDataset] | None,
    recipe: Recipe,
    seed: int = 0,
) -> list[Row]:
    """
    R² of ∇ρ for the score difference per noise level, with intervals over groups of events, see
    `metrics.explained_by_name`; the level is a key of its own.

    :param data: held-out data; None for samples of the two agents
    """
    scoring, generator = Scoring.of(recipe), torch.Generator().manual_seed(seed + 1)
    events = as_events(data, base, expert, seed + 1).draw(scoring.n_groups * scoring.group_size, generator)
    steering = steering_options(base, reward, recipe)
    found = explained_by_name(reward, base, expert, events.split(scoring.group_size), seed, **steering)
    return [{**result_row("reward", name, values), "level": level} for (name, level), values in found.items()]


def fit_rows(reward: RelativeReward) -> list[Row]:
    """What the fit report says of ρ beside R²: its range by head (nats) and the share of value targets clipped."""
    if (fit := reward.fit) is None:
        return []
    values = {"range_window": fit.window_range, "range_step": fit.step_range, "value_targets_clipped": fit.clipped}
    return [plain_row("reward", name, value) for name, value in values.items() if value is not None]


def steering_options(base: DiffusionAgent, reward: RelativeReward, recipe: Recipe) -> dict[str, Any]:
    """How a recipe steers a base, as `metrics.explained_when_guided` and `metrics.check_steering` take it."""
    steering = steer(base, reward, recipe)
    return {
        "n_sampling_steps": steering.planning.n_sampling_steps,
        "scale": steering.scale,
        "max_shift": steering.max_shift,
        "solver": steering.planning.sampler,
    }


def sample_rows(agent: str, samples: Array, classifier: ImageClassifier, held_out: Sequence[str]) -> list[Row]:
    """
    Share of samples in held-out classes, with Wilson's interval, and the classifier's mean confidence.

    :param agent: whose samples
    :param samples: uint8 (n, H, W, C)
    :param held_out: class names
    """
    sure = classifier.probabilities(samples).max(axis=1)
    found = share(classifier.says(samples, list(held_out)))
    return [estimate_row(agent, zoo.HARMFUL, found), result_row(agent, "judge_confidence", sure)]


def separation_rows(rho: Array, data: LabelledImages, held_out: Sequence[str]) -> list[Row]:
    """`metrics.separation` as rows, for scores (n,) in nats of n labelled images."""
    found = separation(rho, data.labels, data.class_names, held_out)
    return [estimate_row("rho", metric, estimate) for metric, estimate in found.items()]


# ---------------------------------------------------------------------- episodes


def n_episodes(recipe: Recipe) -> int:
    """Episodes of each agent: the recipe's, or the default."""
    values = {**section(DEFAULT_RECIPE, "evaluation"), **section(recipe, "evaluation")}
    return int(values["n_eval_episodes"])


def with_episodes(recipe: Recipe, n_episodes: int | None) -> Recipe:
    """The recipe, with another number of episodes where one is given."""
    if n_episodes is None:
        return recipe
    values = section({**DEFAULT_RECIPE, **recipe}, "evaluation")
    return {**recipe, "evaluation": {**values, "n_eval_episodes": n_episodes}}


@contextmanager
def environments(task: Task, n: int, **kwargs: Any) -> Iterator[list[gym.Env]]:
    """
    Copies of the real environment, closed in the end.

    :param n: how many
    :param kwargs: of the environment
    """
    with ExitStack() as stack:
        yield [stack.enter_context(closing(task.make(**kwargs))) for _ in range(n)]


# ---------------------------------------------------------------------- latency

GUIDED = {"n_sampling_steps": 5, "sampler": "ddim", "n_action_steps": 8}
REFERENCE = {
    "policy": "UnetPolicy",
    "policy_kwargs": {"width": 32},
    "n_diffusion_steps": 20,
    "n_sampling_steps": 20,
    "sampler": "ddpm",
    "n_action_steps": 1,
}


def latency(
    recipe: Recipe, n_repeats: int = 200, seed: int = 0, task: Task | None = None, compiled: bool = False
) -> list[Row]:
    """
    Time guided plans of a recipe's networks, untrained: the time of a plan does not depend on the weights.

    :param recipe: of the agents
    :param n_repeats: plans timed at batch 1
    :param seed: of weights and observations
    :param task: whose agents; default PointMaze_UMaze-v3
    :param compiled: time the guided planner by ONNX Runtime, too
    :return: rows for DDIM with 5 steps and 8 actions per plan against a temporal U-Net of width 32 with 20 ancestral
        steps that plans at every step, see `evaluation.benchmark.latency`
    :raises ValueError: for fewer than one repeat
    """
    task = task or Task.create()
    observations = observations_for_plans(task.maze, benchmark.BATCH, seed)
    guided, reference = latency_planners(recipe, seed, task)
    fast = guided.compile() if compiled else None
    return benchmark.latency(guided, reference, observations, n_repeats, fast)


def latency_planners(recipe: Recipe, seed: int = 0, task: Task | None = None) -> tuple[GuidedPlanner, GuidedPlanner]:
    """The planner that is timed and the reference, both untrained; see :func:`latency`."""
    task = task or Task.create()
    return _planner(task, recipe, seed, GUIDED), _planner(task, recipe, seed, REFERENCE)


def _planner(task: Task, recipe: Recipe, seed: int, changes: dict[str, Any]) -> GuidedPlanner:
    agent = new_agent(task, {**recipe, "agent": {**section(recipe, "agent"), **changes}}, seed)
    reward = new_extractor(agent, agent, recipe, seed).reward
    steering = {k: v for k, v in section(recipe, "steering").items() if k in ("scale", "max_shift")}
    return steer(agent, reward, {**recipe, "steering": steering})
