"""Closed-loop evaluation: whole episodes of one agent or several, and their results with 95 % intervals."""

from rrpolicy.common.stats import Measure, bootstrap_interval
from rrpolicy.evaluation.episodes import MAX_EPISODE_STEPS, success_in
from rrpolicy.evaluation.results import (
    RESULTS_FILE,
    ROW_KEYS,
    Evaluation,
    Row,
    measure_row,
    paired_difference,
    read_results,
    result_row,
    table,
    write_results,
)
from rrpolicy.evaluation.run import (
    MAX_ENVS,
    EnvSource,
    compare,
    evaluate,
    evaluate_policy,
    make_env,
    stack_observations,
)

__all__ = [
    "MAX_ENVS",
    "MAX_EPISODE_STEPS",
    "RESULTS_FILE",
    "ROW_KEYS",
    "EnvSource",
    "Evaluation",
    "Measure",
    "Row",
    "bootstrap_interval",
    "compare",
    "evaluate",
    "evaluate_policy",
    "make_env",
    "measure_row",
    "paired_difference",
    "read_results",
    "result_row",
    "stack_observations",
    "success_in",
    "table",
    "write_results",
]
