"""The real environments that everybody of a unit is run in, under the true dense reward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import gymnasium as gym

from rrpolicy.experiments import DEFAULT_RECIPE, Recipe, section
from rrpolicy.experiments.maze2d.units import Unit

PLANNERS_AT_ONCE = 64  # which plan for all environments in one batch
NETWORKS_AT_ONCE = 8  # a small network gains nothing from larger batches, and a maze takes tens of megabytes


def n_episodes(recipe: Recipe) -> int:
    """Of each agent."""
    values = {**section(DEFAULT_RECIPE, "evaluation"), **section(recipe, "evaluation")}
    return int(values["n_eval_episodes"])


@contextmanager
def environments(unit: Unit, recipe: Recipe, at_once: int) -> Iterator[list[gym.Env]]:
    """
    :param unit: a pair
    :param recipe: says how many episodes there are
    :param at_once: most environments
    """
    with ExitStack() as stack:
        envs = [unit.task.make(reward_type="dense") for _ in range(min(n_episodes(recipe), at_once))]
        for env in envs:
            stack.callback(env.close)
        yield envs
