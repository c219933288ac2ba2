"""Rewards from pairs of diffusion agents: extract what the strong one wants, steer the weak one with it."""

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.common.version import __version__
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.evaluation import evaluate_policy
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.video import record_video

__all__ = [
    "DiffusionAgent",
    "DiscriminatorReward",
    "GuidedPlanner",
    "Normalizer",
    "RelativeReward",
    "RewardExtractor",
    "TrajectoryDataset",
    "__version__",
    "evaluate_policy",
    "record_video",
]
