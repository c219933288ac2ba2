"""The paper's third experiment on a small scale: images, and what an expert that never saw some classes thinks of them.

`units` lists what is to be done, `variants` ablations; `workshop` keeps what was trained, `samples` what it drew;
`measures` asks everything about a unit; `experiment` ties them together, `summary` and `figures` show what there is.
"""

from rrpolicy.experiments.images.experiment import ImageExperiment, read_results, reproduction
from rrpolicy.experiments.images.figures import draw
from rrpolicy.experiments.images.summary import summary
from rrpolicy.experiments.images.units import CASES, CONTROL, Unit, select, with_pairs
from rrpolicy.experiments.images.variants import MAIN, VARIANTS, Variant, variant_named
from rrpolicy.experiments.images.workshop import ArtifactStore

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
