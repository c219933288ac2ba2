"""Inverse dynamics: the action that leads from an observation to the next one that is planned (Ajay et al. 2023).

A small network is regressed on the transitions of the data, beside the denoiser; an agent that plans observations then
acts through it as it would through a hand-written controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.device import device_of
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.data.windows import WindowSampler

INVERSE_DYNAMICS: Final = "inverse-dynamics"
"""What an agent calls this controller in its arguments and in its archive."""


class InverseDynamics(nn.Module):
    """
    Residual MLP from an observation and what is planned for the next row to the first action between them.

    :param layout: of the plans; its columns are what the target holds, its stride how far ahead that lies
    :param width: width of the residual stream
    :param n_blocks: residual blocks
    """

    def __init__(self, layout: TrajectoryLayout, width: int = 128, n_blocks: int = 2) -> None:
        super().__init__()
        self.columns = list(layout.columns)
        self.transition = TrajectoryLayout(layout.observation_dim, layout.action_dim, horizon=2, stride=layout.stride)
        self.enter = nn.Linear(layout.observation_dim + len(self.columns), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(n_blocks)
        )
        self.leave = nn.Linear(width, layout.action_dim)

    def transitions(self, datasets: Sequence[TrajectoryDataset], normalizer: Normalizer) -> WindowSampler:
        """
        What it is learned from.

        :raises ValueError: when no episode has rows so far apart
        """
        advice = f"inverse dynamics is learned from rows {self.transition.stride} steps apart"
        advice += ", make the stride smaller" if self.transition.stride > 1 else ""
        return WindowSampler(datasets, self.transition, normalizer, advice=advice)

    def forward(self, observations: Tensor, targets: Tensor) -> Tensor:
        """
        Actions that lead to the targets, in normalised units.

        :param observations: (..., obs_dim), normalised
        :param targets: (..., n_columns), the planned columns one row later, normalised
        :return: actions (..., act_dim), normalised
        """
        h = self.enter(torch.cat([observations, targets - observations[..., self.columns]], dim=-1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(nn.functional.silu(h))

    def loss(self, transitions: Tensor) -> Tensor:
        """
        Mean squared error of the actions.

        :param transitions: (B, 2, act_dim + obs_dim), normalised windows of ``transition``
        """
        observations = self.transition.observations_of(transitions)
        actions = self.transition.actions_of(transitions)[:, 0]
        return nn.functional.mse_loss(self(observations[:, 0], observations[:, 1, self.columns]).float(), actions)


@dataclass(frozen=True)
class LearnedController:
    """
    Inverse dynamics as a controller, in environment units.

    :param network: the trained network
    :param normalizer: of the agent that plans
    """

    network: InverseDynamics
    normalizer: Normalizer

    @usual_torch()
    @torch.no_grad()
    def action(self, observations: Any, targets: Any) -> np.ndarray:
        """
        Actions that lead to the targets, in environment units.

        :param observations: ``(..., obs_dim)`` in environment units
        :param targets: planned columns of the next row ``(..., n_columns)`` in environment units
        :return: actions ``(..., act_dim)`` in environment units, not clipped
        """
        units, columns = self.normalizer.observations, tuple(self.network.columns)
        rows = (
            units.normalize_bounded(np.asarray(observations)),
            units.select(columns).normalize_bounded(np.asarray(targets)),
        )
        place = device_of(self.network)
        current, wanted = (torch.as_tensor(row, dtype=torch.float32).to(place) for row in rows)
        return self.normalizer.actions.denormalize(self.network(current, wanted).cpu().numpy())
