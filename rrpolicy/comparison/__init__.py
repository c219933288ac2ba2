"""What changed between two models, and whether it can be believed: `diff` and what it finds."""

from rrpolicy.comparison.attribution import Attribution, attribute
from rrpolicy.comparison.clips import Clip
from rrpolicy.comparison.difference import diff
from rrpolicy.comparison.divergence import Divergence, divergence, total_variation_bound
from rrpolicy.comparison.features import Features, names_of_environment
from rrpolicy.comparison.fit import Calibration, calibration, curl_share
from rrpolicy.comparison.null import NullTest
from rrpolicy.comparison.report import Comparison
from rrpolicy.comparison.result import Fit
from rrpolicy.comparison.samples import Samples, draw_samples
from rrpolicy.comparison.tree import Tree

__all__ = [
    "Attribution",
    "Calibration",
    "Clip",
    "Comparison",
    "Divergence",
    "Features",
    "Fit",
    "NullTest",
    "Samples",
    "Tree",
    "attribute",
    "calibration",
    "curl_share",
    "diff",
    "divergence",
    "draw_samples",
    "names_of_environment",
    "total_variation_bound",
]
