"""A small transformer over events of H steps and D columns: DiT (Peebles & Xie 2023) with steps for patches.

Every step is a token; level and pinned entries modulate each block (adaLN-Zero) through the one embedding that all
networks share. Gates start at zero, so every block starts as the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.embedding import LevelEmbedding, sinusoids
from rrpolicy.diffusion.process import DiffusionProcess


class TemporalTransformer(nn.Module):
    """
    Attention between the steps of an event, for denoisers and rewards.

    :param process: noise levels
    :param event_shape: (H, D)
    :param pinned: bool ``event_shape``, conditioned entries
    :param n_outputs: None for an output of the event's shape (denoiser), else the output width (reward: 1)
    :param width: width of a token
    :param n_blocks: blocks of attention and MLP
    :param n_heads: attention heads, each ``width / n_heads`` wide
    :param bandwidth: scale of the condition embedding's frequencies, radians per normalised unit
    :raises ValueError: for a width that the heads cannot share or that is odd
    """

    def __init__(
        self,
        process: DiffusionProcess,
        event_shape: tuple[int, ...],
        pinned: Tensor,
        n_outputs: int | None = None,
        width: int = 64,
        n_blocks: int = 3,
        n_heads: int = 4,
        bandwidth: float = 10.0,
    ) -> None:
        super().__init__()
        if width % 2 or width % n_heads:
            raise ValueError(f"width is {width}, it must be even and a multiple of n_heads, {n_heads}")
        horizon, step_dim = event_shape
        self.n_outputs = n_outputs
        self.embed = LevelEmbedding(process, pinned, 2 * width, bandwidth)
        self.encode = nn.Linear(step_dim, width)
        self.places = nn.Parameter(sinusoids(horizon, width))
        self.blocks = nn.ModuleList(_Block(width, n_heads) for _ in range(n_blocks))
        self.modulate = nn.Linear(2 * width, 6 * n_blocks * width)
        self.modulate_last = nn.Linear(2 * width, 2 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.leave = nn.Linear(width, step_dim if n_outputs is None else n_outputs)
        for layer in (self.modulate, self.modulate_last):  # adaLN-Zero
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, H, D), (B,) -> (B, H, D) or (B, n_outputs), the mean over steps."""
        embedding = self.embed(x_t, t)[:, None]
        h = self.encode(x_t) + self.places
        for block, modulation in zip(self.blocks, self.modulate(embedding).chunk(len(self.blocks), -1), strict=True):
            h = block(h, modulation)
        scale, shift = self.modulate_last(embedding).chunk(2, dim=-1)
        output = self.leave(torch.addcmul(shift, self.norm(h), 1 + scale))
        return output if self.n_outputs is None else output.mean(dim=1)


class _Block(nn.Module):
    """Attention, then an MLP of four times the width; scale, shift and gate of each come from outside."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attend = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """Tokens (B, H, width) and their event's modulation (B, 1, 6 * width) -> tokens."""
        scale, shift, gate, mlp_scale, mlp_shift, mlp_gate = modulation.chunk(6, dim=-1)
        h = torch.addcmul(h, gate, self._attention(torch.addcmul(shift, self.norm(h), 1 + scale)))
        return torch.addcmul(h, mlp_gate, self.mlp(torch.addcmul(mlp_shift, self.norm(h), 1 + mlp_scale)))

    def _attention(self, h: Tensor) -> Tensor:
        # Not scaled_dot_product_attention: its CPU kernel has no second derivative, which training a reward takes
        query, key, value = self.attend(h).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        return self.merge((weights @ value).transpose(1, 2).flatten(2))
