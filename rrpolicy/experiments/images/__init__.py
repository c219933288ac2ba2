"""The paper's third experiment on a small scale: rewards of image models whose expert never saw some classes.

`spec` lists units and variants; `artifacts` keeps what was trained and drawn; `measure` measures a unit; `rows` selects
results, `aims` and `summary` put them into tables, `figures` draws them.
"""

from rrpolicy.experiments.images.artifacts import ArtifactStore
from rrpolicy.experiments.images.figures import draw
from rrpolicy.experiments.images.measure import ImageExperiment, read_results, reproduction
from rrpolicy.experiments.images.spec import (
    CASES,
    CONTROL,
    MAIN,
    VARIANTS,
    Unit,
    Variant,
    select,
    variant_named,
    with_pairs,
)
from rrpolicy.experiments.images.summary import summary

__all__ = [
    "CASES",
    "CONTROL",
    "MAIN",
    "VARIANTS",
    "ArtifactStore",
    "ImageExperiment",
    "Unit",
    "Variant",
    "draw",
    "read_results",
    "reproduction",
    "select",
    "summary",
    "variant_named",
    "with_pairs",
]
