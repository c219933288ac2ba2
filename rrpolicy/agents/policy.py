"""The trained part of a diffusion agent: a denoising network, its process and the one normaliser, in one module.

The first observation of a window is pinned: it stays clean in every x_t, reaches the network as a condition and is
excluded from the loss, so the agent models p(future | current observation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.agents.inverse_dynamics import InverseDynamics
from rrpolicy.common.fields import LayoutFields
from rrpolicy.common.kinds import check_network
from rrpolicy.common.noise import randint, randn
from rrpolicy.common.schema import checked
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.networks import NETWORKS, network_class
from rrpolicy.diffusion.process import DiffusionProcess

POLICIES = {
    "MlpPolicy": NETWORKS["mlp"],
    "UnetPolicy": NETWORKS["unet"],
    "TransformerPolicy": NETWORKS["transformer"],
}


class DiffusionPolicy(nn.Module):
    """
    A noise-predicting model of windows (H, D).

    :param policy: ``"MlpPolicy"`` (residual MLP), ``"UnetPolicy"`` (temporal U-Net, Janner et al. 2022) or
        ``"TransformerPolicy"`` (DiT over the rows, Peebles & Xie 2023), or an own class of networks, made by
        ``policy(process, event_shape, pinned, **policy_kwargs)`` and called as ``network(x_t, t)``
    :param layout: what a window holds
    :param process: noise levels and prediction type
    :param first_action_weight: weight of the first action in the loss (the one that is executed first)
    :param policy_kwargs: arguments of the network
    :param inverse_dynamics: arguments of the network that finds the action between two rows; None for no such network
    :raises ValueError: for an unknown policy or arguments that a network does not take
    """

    pinned: Tensor
    loss_weight: Tensor

    def __init__(
        self,
        policy: str | type[nn.Module],
        layout: TrajectoryLayout,
        process: DiffusionProcess,
        first_action_weight: float = 1.0,
        policy_kwargs: Mapping[str, Any] | None = None,
        inverse_dynamics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        network = network_class(policy, POLICIES, "policy")
        self.layout = layout
        self.process = process
        self.register_buffer("pinned", torch.tensor(layout.pinned, device="cpu"), persistent=False)
        weight = (~self.pinned).float()
        if layout.plan_actions:
            weight[layout.present, layout.action_slice] *= first_action_weight
        self.register_buffer("loss_weight", weight / weight.mean(), persistent=False)
        checked(LayoutFields, layout.to_dict(), "layout")  # no larger than what an archive may hold
        if isinstance(policy, str):
            check_network(policy_kwargs or {}, "policy_kwargs")
        check_network(inverse_dynamics or {}, "controller_kwargs")
        try:
            self.network = network(process, layout.event_shape, self.pinned, **(policy_kwargs or {}))
        except TypeError as error:
            raise ValueError(f"policy_kwargs is {dict(policy_kwargs or {})}: {error}") from error
        try:
            self.inverse_dynamics = None if inverse_dynamics is None else InverseDynamics(layout, **inverse_dynamics)
        except TypeError as error:
            raise ValueError(f"controller_kwargs is {inverse_dynamics}: {error}") from None

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.layout.event_shape

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the networks, which are what is called, as ``torch.nn.Module.compile`` does."""
        for network in (self.network, self.inverse_dynamics):
            if network is not None:
                network.compile(*args, **kwargs)

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """
        Predicted noise; zero at pinned entries.

        :param x_t: noised windows (B, H, D), clean at pinned entries
        :param t: levels (B,) int64
        """
        eps = self.process.eps_from_output(x_t, t, self.output(x_t, t))
        return torch.where(self.pinned, 0.0, eps)

    def output(self, x_t: Tensor, t: Tensor) -> Tensor:
        """
        The network's output, whose meaning is ``process.prediction``, (B, H, D).

        :raises ValueError: for an own network whose output has another shape
        """
        output = self.network(x_t, t)
        if output.shape != x_t.shape:
            raise ValueError(f"the network returned {tuple(output.shape)}, wanted the shape of x_t, {tuple(x_t.shape)}")
        return output

    def loss(self, x0: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        """
        Denoising loss (Ho et al. 2020, eq. 14, weighted by ``process.loss_weight``).

        :param x0: clean windows (B, H, D), normalised
        :param mask: (B, H), False for padding, which is never learned
        :param generator: source of levels and noise
        """
        return self.loss_at(x0, mask, *self.draw(x0, generator))

    def draw(self, x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Levels (B,) and noise (B, H, D) for clean windows ``x0`` (B, H, D), where these are."""
        t = randint(self.process.n_diffusion_steps, (len(x0),), generator, x0.device)
        return t, randn(x0.shape, generator, x0.device)

    def loss_at(self, x0: Tensor, mask: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The :meth:`loss` at levels ``t`` (B,) with ``noise`` (B, H, D)."""
        x_t = torch.where(self.pinned, x0, self.process.q_sample(x0, t, noise))
        error = (self.output(x_t, t).float() - self.process.target(x0, t, noise)) ** 2
        weight = self.loss_weight * mask[..., None] * self.process.loss_weight(t)[:, None, None]
        return (weight * error).mean()


def fingerprint(layout: TrajectoryLayout, normalizer: Normalizer, process: DiffusionProcess) -> str:
    """Readable identity of the space that a model's scores live in: fields joined by ``;``."""
    fields: dict[str, Any] = {
        **layout.to_dict(),
        "normalizer": normalizer.fingerprint(),
        "n_diffusion_steps": process.n_diffusion_steps,
        "schedule": process.schedule,
    }
    return ";".join(f"{name}={value}" for name, value in fields.items())
