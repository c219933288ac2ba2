"""Models that others made, as score models: any module with a noise path and a prediction, and the way back.

`paths` has the noise paths, `foreign` the adapter, `checks` the test of an adapter on data, and `steering` gives the
user's own network back with a reward added.
"""

from rrpolicy.models.checks import ScoreModelCheck, check_pair, check_score_model
from rrpolicy.models.foreign import ForeignModel, from_module
from rrpolicy.models.paths import NoisePath, edm, flow, ve, vp
from rrpolicy.models.steering import SteeredModule, steer

__all__ = [
    "ForeignModel",
    "NoisePath",
    "ScoreModelCheck",
    "SteeredModule",
    "check_pair",
    "check_score_model",
    "edm",
    "flow",
    "from_module",
    "steer",
    "ve",
    "vp",
]
