"""Rewards from pairs of diffusion agents: extract what the strong one wants, steer the weak one with it.

Names are imported when they are first used: the program is there, and can be stopped, before torch is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rrpolicy.common.version import __version__

if TYPE_CHECKING:
    from rrpolicy.agents.diffusion_agent import DiffusionAgent
    from rrpolicy.agents.guided_planner import GuidedPlanner
    from rrpolicy.agents.options import PlanningOptions
    from rrpolicy.data.dataset import TrajectoryDataset
    from rrpolicy.data.normalizer import Normalizer
    from rrpolicy.evaluation import evaluate
    from rrpolicy.evaluation.video import record_video
    from rrpolicy.rewards.discriminator import DiscriminatorReward
    from rrpolicy.rewards.extractor import RewardExtractor
    from rrpolicy.rewards.relative_reward import RelativeReward

__all__ = [
    "DiffusionAgent",
    "DiscriminatorReward",
    "GuidedPlanner",
    "Normalizer",
    "PlanningOptions",
    "RelativeReward",
    "RewardExtractor",
    "TrajectoryDataset",
    "__version__",
    "evaluate",
    "record_video",
]

_HOMES = {
    "DiffusionAgent": "agents.diffusion_agent",
    "DiscriminatorReward": "rewards.discriminator",
    "GuidedPlanner": "agents.guided_planner",
    "Normalizer": "data.normalizer",
    "PlanningOptions": "agents.options",
    "RelativeReward": "rewards.relative_reward",
    "RewardExtractor": "rewards.extractor",
    "TrajectoryDataset": "data.dataset",
    "evaluate": "evaluation",
    "record_video": "evaluation.video",
}


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package."""
    if name in _HOMES:
        value = getattr(import_module(f"rrpolicy.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    missing = f"rrpolicy.{name}"
    if not name.startswith("_"):
        try:
            return import_module(missing)
        except ModuleNotFoundError as error:
            if error.name != missing:
                raise
    raise AttributeError(f"module 'rrpolicy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
