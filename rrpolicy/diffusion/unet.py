"""A temporal U-Net over events of H steps and D columns (Janner et al. 2022).

Convolutions over time are modulated by the one embedding of level and pinned entries that all networks share.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.embedding import LevelEmbedding
from rrpolicy.diffusion.process import DiffusionProcess


class TemporalUnet(nn.Module):
    """
    1-D U-Net over time (Janner et al. 2022): residual convolutions, FiLM on level and pinned entries.

    :param process: noise levels
    :param event_shape: (H, D)
    :param pinned: bool ``event_shape``, conditioned entries
    :param width: channels of the first level
    :param multipliers: channels of each level as multiples of ``width``; every level halves the horizon
    :param bandwidth: scale of the condition embedding's frequencies, radians per normalised unit
    """

    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: tuple[int, ...],
        pinned: Tensor,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 4),
        bandwidth: float = 10.0,
    ) -> None:
        super().__init__()
        if width % 8:
            raise ValueError(f"width is {width}, it must be a multiple of 8")
        horizon, step_dim = event_shape
        self._padded = -horizon % 2 ** (len(multipliers) - 1)
        embedding = 4 * width
        self.embed = LevelEmbedding(process, pinned, embedding, bandwidth)
        channels = [step_dim] + [width * multiplier for multiplier in multipliers]
        self.down = nn.ModuleList(_ConvBlock(channels[i], channels[i + 1], embedding) for i in range(len(multipliers)))
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[1:-1])
        self.middle = _ConvBlock(channels[-1], channels[-1], embedding)
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(channels[i + 1], channels[i], 4, stride=2, padding=1)
            for i in range(len(multipliers) - 1, 0, -1)
        )
        self.up = nn.ModuleList(
            _ConvBlock(2 * channels[i], channels[i], embedding) for i in range(len(multipliers) - 1, 0, -1)
        )
        self.leave = nn.Conv1d(channels[1], step_dim, 1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, H, D), (B,) -> (B, H, D)."""
        embedding = self.embed(x_t, t)
        h = nn.functional.pad(x_t.transpose(1, 2), (0, self._padded))
        skips = []
        for i, block in enumerate(self.down):
            h = block(h, embedding)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        h = self.middle(h, embedding)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = block(torch.cat([grow(h), skips.pop()], dim=1), embedding)
        return self.leave(h)[..., : x_t.shape[1]].transpose(1, 2)


class _ConvBlock(nn.Module):
    """Two convolutions with group norm, FiLM between them, and a residual path."""

    def __init__(self, n_in: int, n_out: int, embedding: int, kernel: int = 5) -> None:
        super().__init__()
        self.first = self._convolution(n_in, n_out, kernel)
        self.film = nn.Linear(embedding, 2 * n_out)
        self.second = self._convolution(n_out, n_out, kernel)
        self.skip = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)

    @staticmethod
    def _convolution(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2), nn.GroupNorm(8, n_out), nn.SiLU())
