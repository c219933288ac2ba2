"""Networks over events: one residual MLP for denoisers and rewards, the tables of them all, and users' own classes.

Every network reads the noise level and the pinned (conditioned) entries through one embedding that modulates each
block, so denoiser and reward are conditioned alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.convolution import ConvEncoder
from rrpolicy.diffusion.embedding import FourierFeatures, LevelEmbedding
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.transformer import TemporalTransformer
from rrpolicy.diffusion.unet import TemporalUnet
from rrpolicy.diffusion.unet_encoder import UNetEncoder


class ResidualMLP(nn.Module):
    """
    Residual MLP over the flattened event, between a shared encoder and (for denoisers) a shared decoder of its steps.

    Encoder and decoder see damped Fourier features of their step: what is near in space is learned once for all steps,
    and the trunk relates the steps.

    :param process: noise levels
    :param event_shape: (H, D), or any shape that is flattened to one step
    :param pinned: bool ``event_shape``, conditioned entries
    :param n_outputs: None for an output of the event's shape (denoiser), else the output width (reward: 1)
    :param width: width of trunk and embedding
    :param n_blocks: residual blocks
    :param n_fourier_features: random frequencies of the step encoder; 0 feeds the raw entries only
    :param bandwidth: scale of the random frequencies, radians per normalised unit
    :param n_clean_levels: cleanest levels at which the input comes without its noise, so that nothing is damped
    """

    step_width = 16

    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: tuple[int, ...],
        pinned: Tensor,
        n_outputs: int | None = None,
        width: int = 256,
        n_blocks: int = 3,
        n_fourier_features: int = 32,
        bandwidth: float = 10.0,
        n_clean_levels: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        horizon, step_dim = event_shape if len(event_shape) == 2 else (1, math.prod(event_shape))
        self._step_shape = (horizon, step_dim)
        self.n_blocks = n_blocks
        levels = torch.arange(process.n_diffusion_steps, device="cpu")
        noise_std = process.sigma(levels) / process.alpha(levels)
        noise_std[:n_clean_levels] = 0.0
        self.features = FourierFeatures(step_dim, n_fourier_features, bandwidth) if n_fourier_features else None
        n_step = step_dim
        if self.features is not None:
            # a table of all levels, made anew when other frequencies are loaded
            self.register_buffer("_noise_std", noise_std, persistent=False)
            self.register_buffer("_damping", self.features.damping(noise_std), persistent=False)
            self._noise_std: Tensor
            self._damping: Tensor
            self.register_load_state_dict_post_hook(_tabulate)
            n_step = step_dim + self.features.n_outputs
        step_width = max(self.step_width, 2 * step_dim)
        self.encode = nn.Linear(n_step, step_width)
        self.enter = nn.Linear(horizon * step_width, width)
        self.embed = LevelEmbedding(process, pinned, width // 2, bandwidth)
        self.film = nn.Linear(width // 2, n_blocks * 2 * width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(n_blocks))
        self.blocks = nn.ModuleList(nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(n_blocks))
        self.n_outputs = n_outputs
        if n_outputs is None:
            self.leave = nn.Linear(width, horizon * step_width)
            self.decode = nn.Sequential(nn.Linear(step_width + n_step, 64), nn.SiLU(), nn.Linear(64, step_dim))
        else:
            self.leave = nn.Linear(width, n_outputs)
        for parameter in self.blocks.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, *event_shape), (B,) -> (B, *event_shape) or (B, n_outputs)."""
        steps = x_t.reshape(x_t.shape[0], *self._step_shape)
        if self.features is not None:
            steps = torch.cat([steps, self.features(steps, self._damping[t][:, None])], dim=-1)
        h = self.enter(self.encode(steps).flatten(1))
        modulation = self.film(self.embed(x_t, t)).chunk(2 * self.n_blocks, dim=-1)
        for i, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            h = h + block(torch.addcmul(modulation[2 * i + 1], norm(h), 1 + modulation[2 * i]))
        output = self.leave(nn.functional.silu(h))
        if self.n_outputs is not None:
            return output
        summary = output.view(*steps.shape[:2], -1)
        return self.decode(torch.cat([summary, steps], dim=-1)).view_as(x_t)


def _tabulate(network: nn.Module, _: Any) -> None:
    """Make the table of an MLP anew; a function of the module, so that networks can be pickled and sent to workers."""
    if isinstance(network, ResidualMLP) and network.features is not None:
        network._damping.copy_(network.features.damping(network._noise_std))


NETWORKS: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "unet": TemporalUnet, "transformer": TemporalTransformer}
"""What can denoise: a network whose output has the event's shape."""

REWARD_NETWORKS: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "conv": ConvEncoder, "unet-encoder": UNetEncoder}
"""What can be a reward: a network with a vector for its output."""


# ---------------------------------------------------------------------- users' own networks

OWN = "own"
"""Key under which archives keep the arguments of an own network, JSON values of any names."""


def network_class(network: str | type[nn.Module], known: Mapping[str, type[nn.Module]], what: str) -> type[nn.Module]:
    """
    The class of a network that was given by name, or as a class of the user's own.

    :param known: the library's classes by name
    :param what: the argument, for the error
    :raises ValueError: for an unknown name, something else than a class of networks, or one that has a name of those
        that are known
    """
    if isinstance(network, str):
        if network not in known:
            raise ValueError(f"{what} is {network!r}, it must be one of {sorted(known)} or a class of networks")
        return known[network]
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise ValueError(f"{what} is {network!r:.60}, it must be one of {sorted(known)} or a class of networks")
    if network.__name__ in known:
        raise ValueError(
            f"{what} is a class {network.__name__}, which is a name of the library's own: call it otherwise"
        )
    return network


def network_name(network: str | type[nn.Module]) -> str:
    """What an archive calls a network: the name that was given, or that of the class."""
    return network if isinstance(network, str) else network.__name__


def named_network(
    name: str, given: type[nn.Module] | None, known: Mapping[str, type[nn.Module]], how: str
) -> str | type[nn.Module]:
    """
    The network that an archive names. Own classes come from the caller, never from a file.

    :param name: in the archive
    :param given: class that the caller passes; None for none
    :param known: the library's classes by name
    :param how: the call that passes one, for the error
    :raises ValueError: for an own class that is not passed, or another one
    """
    if name in known:
        if given is not None:
            raise ValueError(f"its network is {name!r}, which the library has: load it without a class")
        return name
    if given is None:
        raise ValueError(f"it was made with a network class {name!r} of its author: pass the class, {how.format(name)}")
    if network_name(given) != name:
        raise ValueError(f"it was made with a network class {name!r}, the class passed is {network_name(given)!r}")
    return given


def archived_kwargs(network: str | type[nn.Module], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A network's arguments as an archive keeps them."""
    return dict(kwargs) if isinstance(network, str) else {OWN: dict(kwargs)}


def restored_kwargs(network: str | type[nn.Module], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A network's arguments from an archive."""
    return dict(kwargs) if isinstance(network, str) else dict(kwargs.get(OWN) or {})
