"""The ceiling of steering: a base moved along the exact score difference of an expert, which ρ can only approach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.planning import Planner
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.score_model import Denoiser, check_compatible


class BlendedPlanner(Planner):
    """
    Plans with ε_base + scale · (ε_expert - ε_base): the guidance that an exact ρ would give.

    Where scales between 0 and 1 are worse than both ends, there is a valley between the two gaits, and no ρ can help.

    :param base: the weak agent
    :param expert: the strong agent, in the same space
    :param scale: 0 is the base, 1 the expert
    :param options: of :class:`PlanningOptions`, in place of the base's
    :raises ValueError: when the two do not share their space, or an option is out of range
    """

    def __init__(self, base: DiffusionAgent, expert: DiffusionAgent, scale: float = 1.0, **options: Any) -> None:
        check_compatible(base, expert)
        self.base, self.expert, self.scale = base, expert, float(scale)
        self.observation_space, self.action_space = base.observation_space, base.action_space
        self.layout, self.process = base.layout, base.process
        self.controller, self.device = base.controller, base.device
        self.planning = replace(base.planning, **options)
        self._check_planning()
        self._acting_generator = torch.Generator().manual_seed(0 if base.seed is None else base.seed)

    @property
    def normalizer(self) -> Normalizer:
        return self.base.normalizer

    def _denoiser(self) -> Denoiser:
        base, expert = self.base.averaged.eps, self.expert.averaged.eps

        def blended(x_t: Tensor, t: Tensor) -> Tensor:
            return torch.lerp(base(x_t, t), expert(x_t, t), self.scale)

        return blended
