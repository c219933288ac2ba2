"""The paper's second experiment: robots that walk badly, steered by what others do better.

`units` lists what is to be done, `variants` ablations, sweeps and uses, `data` the demonstrations; `workshop` keeps
what was trained, `pairs` measures a unit, `use` ρ as a reward; `experiment` ties them together, `summary` and
`figures` show what there is.
"""

from rrpolicy.experiments.locomotion.data import Demonstrations
from rrpolicy.experiments.locomotion.experiment import LocomotionExperiment, read_results, reproduction
from rrpolicy.experiments.locomotion.figures import draw
from rrpolicy.experiments.locomotion.summary import summary
from rrpolicy.experiments.locomotion.units import CASES, ROBOTS, Unit, select
from rrpolicy.experiments.locomotion.variants import MAIN, VARIANTS, Variant, variant_named

__all__ = [
    "CASES",
    "MAIN",
    "ROBOTS",
    "VARIANTS",
    "Demonstrations",
    "LocomotionExperiment",
    "Unit",
    "Variant",
    "draw",
    "read_results",
    "reproduction",
    "select",
    "summary",
    "variant_named",
]
