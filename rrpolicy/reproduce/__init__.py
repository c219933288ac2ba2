"""The paper's experiments as one command each: units of work that can be stopped anywhere, one CSV, figures from it.

`units` lists what is to be done, `variants` the ablations and controls, `workshop` keeps what was trained. `maze2d`
measures a unit, `training` agents that learn from its reward, `peers` other methods. `results` is the CSV, `kept_maps`
and `kept_curves` what lies beside it, `run` goes through the units, and `figures` and `summary` (with `tables` and
`comparisons`) show what there is.
"""

from rrpolicy.reproduce.figures import draw
from rrpolicy.reproduce.results import Result, read_csv
from rrpolicy.reproduce.run import Reproduction
from rrpolicy.reproduce.summary import summary
from rrpolicy.reproduce.units import MAZES, Unit, select
from rrpolicy.reproduce.variants import MAIN, VARIANTS, Variant, variant_named

__all__ = [
    "MAIN",
    "MAZES",
    "VARIANTS",
    "Reproduction",
    "Result",
    "Unit",
    "Variant",
    "draw",
    "read_csv",
    "select",
    "summary",
    "variant_named",
]
