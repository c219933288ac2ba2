"""The embedding of noise level and pinned (conditioned) entries as one vector, which every network has beside x_t.

Networks are modulated by it (FiLM, Perez et al. 2018), so denoiser and reward are conditioned alike. Places
in space come as Fourier features that fade as the noise grows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.process import DiffusionProcess


class FourierFeatures(nn.Module):
    """
    sin and cos of fixed random projections, damped where noise has washed the frequency out.

    Noise of standard deviation s leaves exp(-½ |b|² s²) of cos(b·x). With s = σ/α, the noise of the estimate x_t/α,
    high frequencies vanish smoothly as the noise grows instead of turning into noise themselves.

    :param n_inputs: width of the input
    :param n_features: number of frequencies (the output is twice as wide)
    :param bandwidth: scale of the frequencies' magnitudes, radians per normalised unit
    """

    def __init__(self, n_inputs: int, n_features: int, bandwidth: float) -> None:
        super().__init__()
        if shapes_alone():
            frequencies, magnitudes = torch.empty(n_inputs, n_features), torch.empty(n_features)
        else:
            directions = torch.randn(n_inputs, n_features)
            magnitudes = bandwidth * torch.randn(2, n_features).norm(dim=0)  # Rayleigh: a Gaussian kernel in the plane
            frequencies = directions / directions.norm(dim=0) * magnitudes
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("magnitudes", magnitudes)
        self.frequencies: Tensor
        self.magnitudes: Tensor
        self.n_outputs = 2 * n_features

    def forward(self, x: Tensor, damping: Tensor | None = None) -> Tensor:
        """(…, n_inputs) -> (…, 2 * n_features); ``damping`` (…, n_features) from :meth:`damping`."""
        angles = x @ self.frequencies
        if damping is None:
            return torch.cat([angles.sin(), angles.cos()], dim=-1)
        return torch.cat([angles.sin() * damping, angles.cos() * damping], dim=-1)

    def damping(self, noise_std: Tensor) -> Tensor:
        """Noise standard deviations (B,) -> factors (B, n_features)."""
        if self.magnitudes.is_meta:
            return torch.empty(len(noise_std), len(self.magnitudes), device="meta")
        damping = torch.exp(-0.5 * (noise_std.to(self.magnitudes.device)[:, None] * self.magnitudes) ** 2)
        return torch.where(damping > 1e-6, damping, 0.0)  # denormal numbers make matrix products slow


class LevelEmbedding(nn.Module):
    """Noise level and pinned entries -> (B, width): the only path of conditions into a network."""

    def __init__(self, process: DiffusionProcess, pinned: Tensor, width: int, bandwidth: float) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"the embedding is {width} wide, wanted an even width: make the network's a multiple of 4")
        self.register_buffer("_time_table", sinusoids(process.n_diffusion_steps, width), persistent=False)
        self.register_buffer("_pinned_index", pinned.flatten().nonzero().flatten(), persistent=False)
        self._time_table: Tensor
        self._pinned_index: Tensor
        n_pinned = int(pinned.sum())
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.features = FourierFeatures(n_pinned, width // 2, bandwidth) if n_pinned else None
        if n_pinned:
            self.condition = nn.Sequential(nn.Linear(width + n_pinned, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        embedding = self.time(self._time_table[t])
        if self.features is not None:
            # Detached: pinned entries have no gradient, and rewards would be differentiated twice through them
            clean = x_t.detach().flatten(1)[:, self._pinned_index]
            embedding = embedding + self.condition(torch.cat([self.features(clean), clean], dim=-1))
        return nn.functional.silu(embedding)


def shapes_alone() -> bool:
    """
    Whether a network is built on torch's meta device: what is computed there is not, since torch loads its compiler to
    tell the shape of a sine.
    """
    return torch.get_default_device().type == "meta"


def sinusoids(n_places: int, width: int) -> Tensor:
    """Sinusoidal table (n_places, width) over i / n_places in [0, 1)."""
    if shapes_alone():
        return torch.empty(n_places, width // 2 * 2)
    position = torch.arange(n_places)[:, None] / n_places
    frequencies = torch.exp(torch.linspace(0.0, math.log(100.0), width // 2))[None] * math.pi
    return torch.cat([(position * frequencies).sin(), (position * frequencies).cos()], dim=-1)
