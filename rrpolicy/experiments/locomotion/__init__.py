"""The paper's second experiment: locomotion robots, whose base is steered by the reward of a pair.

`spec` lists units and variants; `artifacts` are data sets and what is trained; `measure` chooses what is measured of a
unit: `measure_pair` agents, sweeps and transfer, `measure_learning` policies trained on rewards, `measure_reward` ρ as
a reward; `film` records videos, `report` makes tables and figures.
"""

from rrpolicy.experiments.locomotion.artifacts import Demonstrations, RobotStore
from rrpolicy.experiments.locomotion.measure import LocomotionExperiment, reproduction
from rrpolicy.experiments.locomotion.report import draw, summary
from rrpolicy.experiments.locomotion.spec import (
    CASES,
    MAIN,
    PAPER,
    VARIANTS,
    RobotUnit,
    RobotVariant,
    known_robots,
    select,
    variant_named,
)

read_results = LocomotionExperiment.read_results

__all__ = [
    "CASES",
    "MAIN",
    "PAPER",
    "VARIANTS",
    "Demonstrations",
    "LocomotionExperiment",
    "RobotStore",
    "RobotUnit",
    "RobotVariant",
    "draw",
    "known_robots",
    "read_results",
    "reproduction",
    "select",
    "summary",
    "variant_named",
]
