"""Rewards: the relative reward of two models, how it is extracted, its baseline, and how good it is."""

from rrpolicy.rewards.bounded import AveragedReward, BoundedReward, DistanceReward
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.maps import RewardMap, reward_map
from rrpolicy.rewards.relative_reward import RelativeReward

__all__ = [
    "AveragedReward",
    "BoundedReward",
    "DiscriminatorReward",
    "DistanceReward",
    "RelativeReward",
    "RewardExtractor",
    "RewardMap",
    "guided",
    "reward_map",
]
