"""Any score model of windows as an agent: plans are sampled from it as from a `DiffusionAgent`'s own network."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rrpolicy.agents.options import PlanningOptions
from rrpolicy.agents.planning import Planner
from rrpolicy.agents.policy import fingerprint
from rrpolicy.common.spaces import flat_box
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.score_model import Denoiser, ScoreModel, check_models
from rrpolicy.envs.controller import Controller


class ModelPlanner(Planner):
    """
    Acts by sampling windows of a score model, such as `models.from_module` makes of another library's network.

    It is a score model, too: two of them are extracted from as two agents are, with datasets in environment units.

    :param model: predicts the noise of normalised windows (H, D)
    :param observation_space: a flat Box, the environment's
    :param action_space: a flat Box, the environment's
    :param layout: what stands where in a window; its pinned entries are those of the model
    :param normalizer: environment units to the model's
    :param planning: options; None for the defaults
    :param controller: follows planned observations where the layout plans no actions
    :param seed: of the noise that plans are sampled from
    :raises ValueError: when model, layout, normaliser and spaces do not fit together, naming the first
    """

    def __init__(
        self,
        model: ScoreModel,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        layout: TrajectoryLayout,
        normalizer: Normalizer,
        planning: PlanningOptions | None = None,
        controller: Controller | None = None,
        seed: int = 0,
    ) -> None:
        check_models(model, model)
        self.observation_space = flat_box(observation_space, "observation")
        self.action_space = flat_box(action_space, "action")
        self.model, self.layout, self.process, self.seed = model, layout, model.process, seed
        self.controller = controller
        self.device = torch.device("cpu")
        self._normalizer = normalizer
        self._check_fit()
        clip = getattr(model, "clip", None)
        options = PlanningOptions() if planning is None else planning
        self.planning = options.settled(layout.longest_execution, 5.0 if clip is None else clip)
        self._check_planning()
        self._acting_generator = torch.Generator().manual_seed(seed)

    def _check_fit(self) -> None:
        layout, model = self.layout, self.model
        if tuple(model.event_shape) != layout.event_shape:
            raise ValueError(
                f"the model has events of shape {tuple(model.event_shape)}, the layout {layout.event_shape}"
            )
        pinned = getattr(model, "pinned", None)
        mine = np.zeros(layout.event_shape, dtype=bool) if pinned is None else pinned.numpy()
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
        return torch.tensor(self.layout.pinned)

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, H, D) of normalised windows ``x_t`` (B, H, D) at levels ``t`` (B,)."""
        return self.model.eps(x_t, t)

    def fingerprint(self) -> str:
        """Equal for planners and agents that share layout, normaliser and process."""
        return fingerprint(self.layout, self.normalizer, self.process)

    def _denoiser(self) -> Denoiser:
        return self.model.eps
