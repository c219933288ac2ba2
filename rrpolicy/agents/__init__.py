"""Agents: diffusion planners that act through ``predict``, alone or steered by a reward."""

from typing import TYPE_CHECKING

from rrpolicy.common.lazy import lazy

if TYPE_CHECKING:
    from rrpolicy.agents.diffusion_agent import DiffusionAgent
    from rrpolicy.agents.guided_planner import GuidedPlanner
    from rrpolicy.agents.model_planner import ModelPlanner
    from rrpolicy.agents.options import PlanningOptions
    from rrpolicy.agents.planning import Planner
    from rrpolicy.agents.policy import DiffusionPolicy
    from rrpolicy.agents.refining import Rounds, refine

__all__ = [
    "DiffusionAgent",
    "DiffusionPolicy",
    "GuidedPlanner",
    "ModelPlanner",
    "Planner",
    "PlanningOptions",
    "Rounds",
    "refine",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "DiffusionAgent": "diffusion_agent",
        "DiffusionPolicy": "policy",
        "GuidedPlanner": "guided_planner",
        "ModelPlanner": "model_planner",
        "Planner": "planning",
        "PlanningOptions": "options",
        "Rounds": "refining",
        "refine": "refining",
    },
)
