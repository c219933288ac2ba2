"""The two planners of ``rrpolicy benchmark latency``: a recipe's, and a reference with the usual slow settings."""

from __future__ import annotations

from typing import Any

from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.evaluation import Row, benchmark
from rrpolicy.experiments.recipes import Recipe, section
from rrpolicy.experiments.steps import new_agent, new_extractor, steer
from rrpolicy.experiments.task import Task, observations_for_plans

GUIDED = {"n_sampling_steps": 5, "sampler": "ddim", "n_action_steps": 8}
REFERENCE = {
    "policy": "UnetPolicy",
    "policy_kwargs": {"width": 32},
    "n_diffusion_steps": 20,
    "n_sampling_steps": 20,
    "sampler": "ddpm",
    "n_action_steps": 1,
}


def latency(recipe: Recipe, n_repeats: int = 200, seed: int = 0, task: Task | None = None) -> list[Row]:
    """
    Time guided plans of a recipe's networks, untrained: the time of a plan does not depend on the weights.

    :param recipe: of the agents
    :param n_repeats: plans timed at batch 1
    :param seed: of weights and observations
    :param task: whose agents; default PointMaze_UMaze-v3
    :return: rows for DDIM with 5 steps and 8 actions per plan against a temporal U-Net of width 32 with 20 ancestral
        steps that plans at every step, see `evaluation.benchmark.latency`
    :raises ValueError: for fewer than one repeat
    """
    task = task or Task.create()
    observations = observations_for_plans(task.maze, benchmark.BATCH, seed)
    return benchmark.latency(*latency_planners(recipe, seed, task), observations, n_repeats)


def latency_planners(recipe: Recipe, seed: int = 0, task: Task | None = None) -> tuple[GuidedPlanner, GuidedPlanner]:
    """The planner that is timed and the reference, both untrained; see :func:`latency`."""
    task = task or Task.create()
    return _planner(task, recipe, seed, GUIDED), _planner(task, recipe, seed, REFERENCE)


def _planner(task: Task, recipe: Recipe, seed: int, changes: dict[str, Any]) -> GuidedPlanner:
    agent = new_agent(task, {**recipe, "agent": {**section(recipe, "agent"), **changes}}, seed)
    reward = new_extractor(agent, agent, recipe, seed).reward
    steering = {k: v for k, v in section(recipe, "steering").items() if k in ("scale", "max_shift")}
    return steer(agent, reward, {**recipe, "steering": steering})
