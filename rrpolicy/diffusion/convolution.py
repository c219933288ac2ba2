"""A convolutional encoder of image-shaped events (C, H, W) with a vector head: the contracting half of a U-Net.

Noise level and pinned entries modulate each residual block through the one embedding that all networks share; the last,
coarsest map is flattened, since where something is may matter as much as what it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.embedding import LevelEmbedding
from rrpolicy.diffusion.process import DiffusionProcess

N_GROUPS = 8


class ConvEncoder(nn.Module):
    """
    Residual convolutions at falling resolution, for rewards of images and latents.

    :param process: noise levels
    :param event_shape: (C, H, W)
    :param pinned: bool ``event_shape``, conditioned entries
    :param n_outputs: output width (reward: 1)
    :param width: channels of the first level
    :param multipliers: channels of each level as multiples of ``width``; every level but the first halves the map
    :param bandwidth: scale of the condition embedding's frequencies, radians per normalised unit
    :raises ValueError: for events of another shape, or a width that the groups cannot share
    """

    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: tuple[int, ...],
        pinned: Tensor,
        n_outputs: int = 1,
        width: int = 48,
        multipliers: tuple[int, ...] = (1, 2, 2),
        bandwidth: float = 10.0,
    ) -> None:
        super().__init__()
        if len(event_shape) != 3:
            raise ValueError(f"the network 'conv' needs events (C, H, W), event_shape is {tuple(event_shape)}")
        if width % N_GROUPS:
            raise ValueError(f"width is {width}, it must be a multiple of {N_GROUPS}")
        channels = [width * multiplier for multiplier in multipliers]
        embedding = 4 * width
        self.embed = LevelEmbedding(process, pinned, embedding, bandwidth)
        self.enter = nn.Conv2d(event_shape[0], width, 3, padding=1)
        self.blocks = nn.ModuleList(
            _ResidualBlock(n_in, n_out, embedding) for n_in, n_out in zip([width, *channels], channels, strict=False)
        )
        self.shrink = nn.AvgPool2d(2, ceil_mode=True)
        height, breadth = event_shape[1:]
        for _ in channels[1:]:
            height, breadth = -(-height // 2), -(-breadth // 2)
        self.norm = nn.GroupNorm(N_GROUPS, channels[-1])
        self.leave = nn.Linear(channels[-1] * height * breadth, n_outputs)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, n_outputs)."""
        embedding = self.embed(x_t, t)
        h = self.enter(x_t)
        for i, block in enumerate(self.blocks):
            h = block(h if i == 0 else self.shrink(h), embedding)
        return self.leave(nn.functional.silu(self.norm(h)).flatten(1))


class _ResidualBlock(nn.Module):
    """Two convolutions after group norm, FiLM between them, and a residual path; the identity at first."""

    def __init__(self, n_in: int, n_out: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(N_GROUPS, n_in), nn.SiLU(), nn.Conv2d(n_in, n_out, 3, padding=1))
        self.film = nn.Linear(embedding, 2 * n_out)
        self.norm = nn.GroupNorm(N_GROUPS, n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.skip: nn.Module = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.second.weight)
        if self.second.bias is not None:
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(self.first(x)), 1 + scale)
        return self.skip(x) + self.second(nn.functional.silu(h))
