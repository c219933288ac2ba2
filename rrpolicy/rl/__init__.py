"""Reinforcement learning on an extracted reward, and other learners that it is compared with."""

from rrpolicy.rl import finetune
from rrpolicy.rl.adversarial import Demonstrations, PeerReward, PeerSettings, train_peer
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.dagger import Visits
from rrpolicy.rl.distill import Distillation
from rrpolicy.rl.distill_plans import PlanDistillation
from rrpolicy.rl.finetune import FinetuneSettings, SquashedReward
from rrpolicy.rl.iq_learn import InverseQSettings, train_inverse_q
from rrpolicy.rl.on_reward import Settings, evaluate_trained, make_reward_env, train_on_reward
from rrpolicy.rl.policies import ActionRepeat, MeanAction, Sb3Agent, load_policy, save_policy
from rrpolicy.rl.replay import ReplayTraining
from rrpolicy.rl.sb3_files import is_sb3_agent, load_sb3_agent
from rrpolicy.rl.td3bc import OfflineSettings, train_offline
from rrpolicy.rl.vecnormalize import ObservationStatistics, read_statistics

__all__ = [
    "ActionRepeat",
    "Demonstrations",
    "Distillation",
    "FinetuneSettings",
    "InverseQSettings",
    "MeanAction",
    "ObservationStatistics",
    "OfflineSettings",
    "PeerReward",
    "PeerSettings",
    "PlanDistillation",
    "ReplayTraining",
    "Sb3Agent",
    "Settings",
    "SquashedReward",
    "Visits",
    "clone_behaviour",
    "evaluate_trained",
    "finetune",
    "is_sb3_agent",
    "load_policy",
    "load_sb3_agent",
    "make_reward_env",
    "read_statistics",
    "save_policy",
    "train_inverse_q",
    "train_offline",
    "train_on_reward",
    "train_peer",
]
