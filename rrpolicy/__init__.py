"""Rewards from pairs of diffusion agents: extract what the strong one wants, steer the weak one with it.

Names are imported when they are first used: the program is there, and can be stopped, before torch is.
"""

from typing import TYPE_CHECKING

from rrpolicy.common.lazy import lazy
from rrpolicy.common.version import __version__

if TYPE_CHECKING:
    from rrpolicy import zoo
    from rrpolicy.agents.diffusion_agent import DiffusionAgent
    from rrpolicy.agents.guided_planner import GuidedPlanner
    from rrpolicy.agents.options import PlanningOptions
    from rrpolicy.comparison import Comparison, diff
    from rrpolicy.data.dataset import TrajectoryDataset
    from rrpolicy.data.normalizer import Normalizer
    from rrpolicy.data.readers import load_dataset
    from rrpolicy.diffusion.score_model import ScoreModel
    from rrpolicy.evaluation import compare, evaluate
    from rrpolicy.evaluation.video import record_video
    from rrpolicy.rewards.discriminator import DiscriminatorReward
    from rrpolicy.rewards.extractor import RewardExtractor
    from rrpolicy.rewards.relative_reward import RelativeReward
    from rrpolicy.testing import check_agent

__all__ = [
    "Comparison",
    "DiffusionAgent",
    "DiscriminatorReward",
    "GuidedPlanner",
    "Normalizer",
    "PlanningOptions",
    "RelativeReward",
    "RewardExtractor",
    "ScoreModel",
    "TrajectoryDataset",
    "__version__",
    "check_agent",
    "compare",
    "diff",
    "evaluate",
    "load_dataset",
    "record_video",
    "zoo",
]

_HOMES = {
    "Comparison": "comparison",
    "DiffusionAgent": "agents.diffusion_agent",
    "DiscriminatorReward": "rewards.discriminator",
    "GuidedPlanner": "agents.guided_planner",
    "Normalizer": "data.normalizer",
    "PlanningOptions": "agents.options",
    "RelativeReward": "rewards.relative_reward",
    "RewardExtractor": "rewards.extractor",
    "ScoreModel": "diffusion.score_model",
    "TrajectoryDataset": "data.dataset",
    "check_agent": "testing",
    "compare": "evaluation",
    "diff": "comparison",
    "evaluate": "evaluation",
    "evaluate_policy": "evaluation",  # deprecated, hence in no list
    "load_dataset": "data.readers",
    "record_video": "evaluation.video",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
