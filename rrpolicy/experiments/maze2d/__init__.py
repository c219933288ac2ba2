"""The paper's first experiment: 32 goals in four mazes, one recipe.

`units` lists what is to be done, `variants` the ablations and controls, `workshop` keeps what was trained. `pairs`
measures a unit, `training` agents that learn from its reward, `peers` other methods; `experiment` ties them together.
`kept_maps` and `kept_curves` are what lies beside the CSV, `figures` and `summary` (with `comparisons`) show it.
"""

from rrpolicy.experiments.maze2d.experiment import MazeExperiment, read_results, reproduction
from rrpolicy.experiments.maze2d.figures import draw
from rrpolicy.experiments.maze2d.summary import summary
from rrpolicy.experiments.maze2d.units import MAZES, Unit, select
from rrpolicy.experiments.maze2d.variants import MAIN, VARIANTS, Variant, variant_named

__all__ = [
    "MAIN",
    "MAZES",
    "VARIANTS",
    "MazeExperiment",
    "Unit",
    "Variant",
    "draw",
    "read_results",
    "reproduction",
    "select",
    "summary",
    "variant_named",
]
