"""Rewards: the relative reward of two models, how it is extracted, its baseline, and how good it is."""

from rrpolicy.rewards.algebra import CombinedReward
from rrpolicy.rewards.bellman import BellmanReward
from rrpolicy.rewards.centred import CentredReward
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.ensemble import Ensemble
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.laplace import LaplaceReward
from rrpolicy.rewards.maps import RewardMap, reward_map
from rrpolicy.rewards.on_policy import learn_on_policy, on_policy_targets
from rrpolicy.rewards.protocol import RewardFunction, StepReward
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.reward_archive import load_reward
from rrpolicy.rewards.support import Support
from rrpolicy.rewards.transforms import AveragedReward, BoundedReward, DistanceReward
from rrpolicy.rewards.uncertain import UncertainReward, with_max_uncertainty

__all__ = [
    "AveragedReward",
    "BellmanReward",
    "BoundedReward",
    "CentredReward",
    "CombinedReward",
    "DiscriminatorReward",
    "DistanceReward",
    "Ensemble",
    "LaplaceReward",
    "RelativeReward",
    "RewardExtractor",
    "RewardFunction",
    "RewardMap",
    "StepReward",
    "Support",
    "UncertainReward",
    "guided",
    "learn_on_policy",
    "load_reward",
    "on_policy_targets",
    "reward_map",
    "with_max_uncertainty",
]
