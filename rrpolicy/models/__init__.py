"""Models that others made, as score models: any module with a noise path and a prediction, and the way back.

`paths` has the noise paths, `foreign` the adapter, `checks` the test of an adapter on data, and `steering` gives the
user's own network back with a reward added. `bridges`, `diffuser`, `diffusers` and `diffusion_policy` are adapters of
known libraries.
"""

from rrpolicy.models.bridges import (
    affine,
    classifier_free_pair,
    from_denoising_diffusion_pytorch,
    from_flow_matching,
    from_k_diffusion,
)
from rrpolicy.models.checks import ScoreModelCheck, check_pair, check_score_model
from rrpolicy.models.diffuser import diffuser_normalizer, from_diffuser, load_diffuser
from rrpolicy.models.diffusers import from_diffusers, from_diffusion_policy
from rrpolicy.models.diffusion_policy import load_diffusion_policy, load_lerobot, policy_events
from rrpolicy.models.foreign import ForeignModel, from_module
from rrpolicy.models.paths import NoisePath, edm, flow, ve, vp
from rrpolicy.models.steering import SteeredModule, steer
from rrpolicy.models.units import at_ratios, in_units_of

__all__ = [
    "ForeignModel",
    "NoisePath",
    "ScoreModelCheck",
    "SteeredModule",
    "affine",
    "at_ratios",
    "check_pair",
    "check_score_model",
    "classifier_free_pair",
    "diffuser_normalizer",
    "edm",
    "flow",
    "from_denoising_diffusion_pytorch",
    "from_diffuser",
    "from_diffusers",
    "from_diffusion_policy",
    "from_flow_matching",
    "from_k_diffusion",
    "from_module",
    "in_units_of",
    "load_diffuser",
    "load_diffusion_policy",
    "load_lerobot",
    "policy_events",
    "steer",
    "ve",
    "vp",
]
