"""The steps of the main pipeline, shared by the command line, the demos and the zoo.

`task` is the environment, `recipes` the hyperparameters, `steps` the pipeline, `scoring` the measurements; `runs` and
`zoo_build` write results to disk.
`spec`, `runner`, `results`, `store` and `report` are what the paper's experiments (`maze2d`, `locomotion`, `images`)
share.
"""

from rrpolicy.experiments.recipes import DEFAULT_RECIPE, Recipe, section, total_timesteps
from rrpolicy.experiments.results import plain_row
from rrpolicy.experiments.scoring import (
    environments,
    explained_rows,
    fit_rows,
    sample_rows,
    separation_rows,
    split_data,
    steering_options,
)
from rrpolicy.experiments.steps import (
    collect_base,
    collect_expert,
    discriminate,
    extract,
    extract_on_policy,
    fine_tuned,
    map_reward,
    new_agent,
    new_extractor,
    save_agent,
    steer,
    train_base,
    train_expert,
)
from rrpolicy.experiments.task import (
    DEFAULT_ENV_ID,
    FASHION_MNIST,
    POINT_MAZE,
    Task,
    maze_normalizer,
    observations_for_plans,
)

__all__ = [
    "DEFAULT_ENV_ID",
    "DEFAULT_RECIPE",
    "FASHION_MNIST",
    "POINT_MAZE",
    "Recipe",
    "Task",
    "collect_base",
    "collect_expert",
    "discriminate",
    "environments",
    "explained_rows",
    "extract",
    "extract_on_policy",
    "fine_tuned",
    "fit_rows",
    "map_reward",
    "maze_normalizer",
    "new_agent",
    "new_extractor",
    "observations_for_plans",
    "plain_row",
    "sample_rows",
    "save_agent",
    "section",
    "separation_rows",
    "split_data",
    "steer",
    "steering_options",
    "total_timesteps",
    "train_base",
    "train_expert",
]
