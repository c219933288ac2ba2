"""The conditional U-Net of Diffusion Policy (Chi et al. 2023), with the names of LeRobot's weights.

Actions are convolved over time; noise level and observations modulate every block (FiLM, Perez et al. 2018). The
original implementation names a few of the same weights otherwise: :func:`lerobot_names`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LAST_GROUPS = 8  # of the convolution before the output, whatever n_groups says


class ConditionalUnet(nn.Module):
    """
    Called as theirs are: ``unet(actions, timestep, global_cond=features)``.

    :param action_dim: numbers of an action
    :param n_condition: numbers of ``global_cond``
    :param down_dims: channels of each level; every level but the last halves the horizon
    :param kernel_size: of the convolutions, odd
    :param n_groups: of the group norms
    :param step_embed_dim: width of the noise level's embedding
    :param scales: whether features scale the channels (``use_film_scale_modulation``, ``cond_predict_scale``) or only
        shift them
    """

    def __init__(
        self,
        action_dim: int,
        n_condition: int,
        down_dims: Sequence[int] = (512, 1024, 2048),
        kernel_size: int = 5,
        n_groups: int = 8,
        step_embed_dim: int = 128,
        scales: bool = True,
    ) -> None:
        super().__init__()
        width, last = step_embed_dim, len(down_dims) - 1

        def block(n_in: int, n_out: int) -> _Block:
            return _Block(n_in, n_out, width + n_condition, kernel_size, n_groups, scales)

        self.diffusion_step_encoder = nn.Sequential(
            _Sinusoids(width), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        self.down_modules = nn.ModuleList()
        for level, (n_in, n_out) in enumerate(zip([action_dim, *down_dims], down_dims, strict=False)):
            shrink = nn.Identity() if level == last else nn.Conv1d(n_out, n_out, 3, stride=2, padding=1)
            self.down_modules.append(nn.ModuleList([block(n_in, n_out), block(n_out, n_out), shrink]))
        self.mid_modules = nn.ModuleList([block(down_dims[-1], down_dims[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList()
        for level in range(last, 0, -1):
            n_in, n_out = down_dims[level], down_dims[level - 1]
            grow = nn.ConvTranspose1d(n_out, n_out, 4, stride=2, padding=1)
            self.up_modules.append(nn.ModuleList([block(2 * n_in, n_out), block(n_out, n_out), grow]))
        self.final_conv = nn.Sequential(
            _Convolution(down_dims[0], down_dims[0], kernel_size, LAST_GROUPS), nn.Conv1d(down_dims[0], action_dim, 1)
        )

    def forward(self, x: Tensor, timestep: Tensor | int, global_cond: Tensor | None = None) -> Tensor:
        """(B, H, action_dim), (B,) or one number, (B, n_condition) -> (B, H, action_dim)."""
        time = torch.as_tensor(timestep, device=x.device).expand(len(x))
        embedding = self.diffusion_step_encoder(time)
        if global_cond is not None:
            embedding = torch.cat([embedding, global_cond], dim=-1)
        down: Any = self.down_modules
        up: Any = self.up_modules
        h, skips = x.transpose(1, 2), []
        for first, second, shrink in down:
            h = second(first(h, embedding), embedding)
            skips.append(h)
            h = shrink(h)
        for middle in self.mid_modules:
            h = middle(h, embedding)
        for first, second, grow in up:
            h = torch.cat([h, skips.pop()], dim=1)
            h = grow(second(first(h, embedding), embedding))
        return self.final_conv(h).transpose(1, 2)


class _Sinusoids(nn.Module):
    """sin and cos of the level at ``width / 2`` frequencies from 1 to 1e-4, evenly spread on a log scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n_frequencies = width // 2

    def forward(self, time: Tensor) -> Tensor:
        places = torch.arange(self.n_frequencies, device=time.device) / max(self.n_frequencies - 1, 1)
        angles = time[:, None] * torch.exp(-math.log(10_000) * places)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _Convolution(nn.Module):
    """A convolution over time, group norm and Mish."""

    def __init__(self, n_in: int, n_out: int, kernel: int, n_groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(n_in, n_out, kernel, padding=kernel // 2)
        self.block = nn.Sequential(convolution, nn.GroupNorm(n_groups, n_out), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Block(nn.Module):
    """Two convolutions with FiLM between them, and a residual path."""

    def __init__(self, n_in: int, n_out: int, n_condition: int, kernel: int, n_groups: int, scales: bool) -> None:
        super().__init__()
        self.scales = scales
        self.conv1 = _Convolution(n_in, n_out, kernel, n_groups)
        self.conv2 = _Convolution(n_out, n_out, kernel, n_groups)
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(n_condition, n_out * (2 if scales else 1)))
        self.residual_conv = nn.Identity() if n_in == n_out else nn.Conv1d(n_in, n_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        film = self.cond_encoder(embedding)[..., None]
        if self.scales:
            scale, shift = film.chunk(2, dim=1)
            h = scale * self.conv1(x) + shift
        else:
            h = self.conv1(x) + film
        return self.conv2(h) + self.residual_conv(x)


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """
    Arguments of a :class:`ConditionalUnet` that its weights tell: all but ``n_groups``.

    :param weights: its state dictionary
    :raises ValueError: for the weights of something else
    """
    try:
        width = weights["diffusion_step_encoder.1.weight"].shape[1]
        n_levels = 1 + max(int(match[1]) for name in weights if (match := re.match(r"down_modules\.(\d{1,3})\.", name)))
        firsts = [weights[f"down_modules.{level}.0.conv1.block.0.weight"] for level in range(n_levels)]
        film = weights["down_modules.0.0.cond_encoder.1.weight"]
        return {
            "action_dim": firsts[0].shape[1],
            "n_condition": film.shape[1] - width,
            "down_dims": tuple(first.shape[0] for first in firsts),
            "kernel_size": firsts[0].shape[2],
            "step_embed_dim": width,
            "scales": film.shape[0] == 2 * firsts[0].shape[0],
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"it holds no weights of a conditional U-Net: {error} is missing") from error


def lerobot_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the original ``ConditionalUnet1D`` under LeRobot's names; others keep theirs."""
    renamed = {}
    for name, value in weights.items():
        name = name.replace(".blocks.0.", ".conv1.").replace(".blocks.1.", ".conv2.")
        renamed[re.sub(r"(_modules\.\d+\.2)\.conv\.", r"\1.", name)] = value
    return renamed
