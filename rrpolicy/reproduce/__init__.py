"""The paper's experiments as one command each: units of work that can be stopped anywhere, one CSV, figures from it.

`units` lists what is to be done, `variants` the ablations and controls, `workshop` keeps what was trained, `maze2d`
measures a unit, `results` is the CSV, `run` goes through the units, `figures` and `summary` show the CSV.
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
