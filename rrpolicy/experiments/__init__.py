"""The steps of the main job, one home for command line, demo and zoo: all their numbers come from the same code.

`task` says where, `recipes` with which numbers, `steps` does it, `scores` measures it; `runs` and `zoo_build` keep it.
"""

from rrpolicy.experiments.recipes import DEFAULT_RECIPE, Recipe, section, total_timesteps
from rrpolicy.experiments.scores import explained_rows, plain_row, split_data
from rrpolicy.experiments.steps import (
    collect_base,
    collect_expert,
    discriminate,
    extract,
    extract_on_policy,
    fine_tuned,
    map_reward,
    maze_normalizer,
    new_agent,
    new_extractor,
    save_agent,
    steer,
    train_base,
    train_expert,
)
from rrpolicy.experiments.task import DEFAULT_ENV_ID, POINT_MAZE, Task, observations_for_plans

__all__ = [
    "DEFAULT_ENV_ID",
    "DEFAULT_RECIPE",
    "POINT_MAZE",
    "Recipe",
    "Task",
    "collect_base",
    "collect_expert",
    "discriminate",
    "explained_rows",
    "extract",
    "extract_on_policy",
    "fine_tuned",
    "map_reward",
    "maze_normalizer",
    "new_agent",
    "new_extractor",
    "observations_for_plans",
    "plain_row",
    "save_agent",
    "section",
    "split_data",
    "steer",
    "total_timesteps",
    "train_base",
    "train_expert",
]
