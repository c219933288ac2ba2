"""Any score model of windows as an agent: plans are sampled from it as from a `DiffusionAgent`'s own network."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from rrpolicy.agents.checks import check_columns
from rrpolicy.agents.options import PlanningOptions
from rrpolicy.agents.planning import Planner
from rrpolicy.agents.policy import fingerprint
from rrpolicy.agents.ranges import LEAST_CLIP
from rrpolicy.common.arguments import flag
from rrpolicy.common.device import device_of
from rrpolicy.common.noise import generator
from rrpolicy.common.spaces import flat_box
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.score_model import (
    Denoiser,
    ScoreModel,
    check_models,
    clip_of,
    layout_of,
    normalizer_of,
    pinned_mask,
    pinned_on,
)
from rrpolicy.envs.controller import Controller


class ModelPlanner(Planner):
    """
    Acts by sampling windows of a score model, such as `models.from_module` makes of another library's network.

    It is a score model, too: two of them are extracted from as two agents are, with datasets in environment units.

    :param model: predicts the noise of normalised windows (H, D)
    :param observation_space: a flat Box, the environment's
    :param action_space: a flat Box, the environment's
    :param layout: what stands where in a window; its pinned entries are those of the model; None: the model's own
    :param normalizer: environment units to the model's; None: the model's own
    :param planning: options; None for the defaults
    :param controller: follows planned observations where the layout plans no actions
    :param seed: of the noise that plans are sampled from
    :param fast_noise: draw this noise where the model computes, as `TrainingOptions` have it
    :raises ValueError: when model, layout, normaliser and spaces do not fit together, naming the first
    """

    def __init__(
        self,
        model: ScoreModel,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        layout: TrajectoryLayout | None = None,
        normalizer: Normalizer | None = None,
        planning: PlanningOptions | None = None,
        controller: Controller | None = None,
        seed: int = 0,
        fast_noise: bool = False,
    ) -> None:
        check_models(model, model)
        self.observation_space = flat_box(observation_space, "observation")
        self.action_space = flat_box(action_space, "action")
        self.layout = _given("layout", layout, layout_of(model))
        self._normalizer = _given("normalizer", normalizer, normalizer_of(model))
        self.model, self.process, self.seed = model, model.process, seed
        self.fast_noise = flag("fast_noise", fast_noise)
        self.controller = controller
        self.device = device_of(model)
        self._check_fit()
        own, options = clip_of(model), PlanningOptions() if planning is None else planning
        clip = LEAST_CLIP[self.normalizer.mode] if own is None else own
        self.planning = options.settled(self.layout.longest_execution, clip)
        self._check_planning()
        check_columns(controller, self.layout)
        self._acting_generator = generator(seed)

    def _check_fit(self) -> None:
        layout, model = self.layout, self.model
        if tuple(model.event_shape) != layout.event_shape:
            raise ValueError(
                f"the model has events of shape {tuple(model.event_shape)}, the layout {layout.event_shape}"
            )
        mine = pinned_mask(model).cpu().numpy()
        if not np.array_equal(mine, layout.pinned):
            raise ValueError(
                f"the model has {int(mine.sum())} pinned entries, the layout {int(layout.pinned.sum())} or others: "
                "from_module(..., pinned=torch.tensor(layout.pinned))"
            )
        dims = (self.observation_space.shape[0], self.action_space.shape[0])
        if dims != (layout.observation_dim, layout.action_dim):
            wanted = (layout.observation_dim, layout.action_dim)
            raise ValueError(f"the spaces have {dims} numbers of observation and action, the layout {wanted}")

    @property
    def normalizer(self) -> Normalizer:
        return self._normalizer

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(H, D) of a window."""
        return self.layout.event_shape

    @property
    def pinned(self) -> Tensor:
        """Entries (H, D) that stay clean."""
        return pinned_on(self.layout, self.device)

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, H, D) of normalised windows ``x_t`` (B, H, D) at levels ``t`` (B,)."""
        return self.model.eps(x_t, t)

    def fingerprint(self) -> str:
        """Equal for planners and agents that share layout, normaliser and process."""
        return fingerprint(self.layout, self.normalizer, self.process)

    def _denoiser(self) -> Denoiser:
        return self.model.eps


def _given(name: str, value: Any, own: Any) -> Any:
    """:raises ValueError: where neither the caller nor the model has it"""
    if value is None and own is None:
        raise ValueError(f"the model has no {name} of its own: pass {name}=...")
    return own if value is None else value
