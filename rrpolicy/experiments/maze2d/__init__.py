"""The paper's first experiment: 32 goals in four mazes, one recipe.

`spec` lists units and variants; `artifacts` stores what a unit trains; `measure` measures a unit, with `measure_reward`
(scores of a reward), `measure_training` (agents that learn from it) and `measure_peers` (other methods); `report`
makes the tables, `figures` the figures.
"""

from rrpolicy.experiments.maze2d.artifacts import MazeStore
from rrpolicy.experiments.maze2d.figures import draw
from rrpolicy.experiments.maze2d.measure import MazeExperiment, reproduction
from rrpolicy.experiments.maze2d.report import summary
from rrpolicy.experiments.maze2d.spec import MAIN, MAZES, VARIANTS, MazeUnit, MazeVariant, select, variant_named

read_results = MazeExperiment.read_results

__all__ = [
    "MAIN",
    "MAZES",
    "VARIANTS",
    "MazeExperiment",
    "MazeStore",
    "MazeUnit",
    "MazeVariant",
    "draw",
    "read_results",
    "reproduction",
    "select",
    "summary",
    "variant_named",
]
