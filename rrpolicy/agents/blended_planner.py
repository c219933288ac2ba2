"""The ceiling of steering: a base moved along the exact score difference of an expert, which ρ can only approach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.planning import Planner
from rrpolicy.common.arguments import number
from rrpolicy.common.noise import generator
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.score_model import Denoiser, check_compatible


class BlendedPlanner(Planner):
    """
    Plans with ε_base + scale · (ε_expert - ε_weak): the guidance that an exact ρ of the pair (weak, expert) would give.

    Where scales between 0 and 1 are worse than both ends, there is a valley between the two gaits, and no ρ can help.

    :param base: the agent that is steered
    :param expert: the strong agent of the pair, in the same space
    :param scale: 0 is the base; 1 the expert, if the base is the pair's own
    :param weak: the weak agent of the pair; None when that is the base; another to see what the pair can hand on
    :param options: of :class:`PlanningOptions`, in place of the base's
    :raises ValueError: when they do not share their space, or an option is out of range
    """

    def __init__(
        self,
        base: DiffusionAgent,
        expert: DiffusionAgent,
        scale: float = 1.0,
        weak: DiffusionAgent | None = None,
        **options: Any,
    ) -> None:
        self.base, self.expert, self.scale = base, expert, float(number("scale", scale, lowest=0))
        self.weak = base if weak is None else weak
        for other in (self.expert, self.weak):
            check_compatible(base, other)
        self.observation_space, self.action_space = base.observation_space, base.action_space
        self.layout, self.process = base.layout, base.process
        self.controller = base.controller
        self.planning = replace(base.planning, **options)
        self._check_planning()
        self._acting_generator = generator(0 if base.seed is None else base.seed)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the base computes; the pair has to be there, too."""
        return self.base.device

    @property
    def fast_noise(self) -> bool:  # type: ignore[override]
        """Whether noise is drawn where the base computes, as the base has it."""
        return self.base.fast_noise

    @property
    def normalizer(self) -> Normalizer:
        return self.base.normalizer

    def _denoiser(self) -> Denoiser:
        base, weak, expert = (agent.averaged.eps for agent in (self.base, self.weak, self.expert))
        its_own = self.weak is self.base

        def blended(x_t: Tensor, t: Tensor) -> Tensor:
            eps = base(x_t, t)
            return eps + self.scale * (expert(x_t, t) - (eps if its_own else weak(x_t, t)))

        return blended
