"""Networks over events of H steps and D columns: one residual MLP for denoisers and rewards, and a temporal U-Net.

Every network reads the noise level and the pinned (conditioned) entries through one embedding that modulates each
block (FiLM, Perez et al. 2018), so denoiser and reward are conditioned in the same way.
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
        directions = torch.randn(n_inputs, n_features)
        magnitudes = bandwidth * torch.randn(2, n_features).norm(dim=0)  # Rayleigh: a Gaussian kernel in the plane
        self.register_buffer("frequencies", directions / directions.norm(dim=0) * magnitudes)
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
        damping = torch.exp(-0.5 * (noise_std[:, None] * self.magnitudes) ** 2)
        return torch.where(damping > 1e-6, damping, 0.0)  # denormal numbers make matrix products slow


class LevelEmbedding(nn.Module):
    """Noise level and pinned entries -> (B, width): the one way in which conditions reach a network."""

    def __init__(self, process: DiffusionProcess, pinned: Tensor, width: int, bandwidth: float) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"the embedding is {width} wide, wanted an even width: make the network's a multiple of 4")
        self.register_buffer("_time_table", _sinusoids(process.n_diffusion_steps, width), persistent=False)
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
            # Detached: nobody may ask for a gradient at pinned entries, and rewards differentiate twice otherwise
            clean = x_t.detach().flatten(1)[:, self._pinned_index]
            embedding = embedding + self.condition(torch.cat([self.features(clean), clean], dim=-1))
        return nn.functional.silu(embedding)


def _sinusoids(n_levels: int, width: int) -> Tensor:
    """Sinusoidal table (n_levels, width) over t / T in [0, 1)."""
    position = torch.arange(n_levels)[:, None] / n_levels
    frequencies = torch.exp(torch.linspace(0.0, math.log(100.0), width // 2))[None] * math.pi
    return torch.cat([(position * frequencies).sin(), (position * frequencies).cos()], dim=-1)


class ResidualMLP(nn.Module):
    """
    Residual MLP over the flattened event, between a shared encoder and (for denoisers) a shared decoder of its steps.

    Encoder and decoder see damped Fourier features of their step: what is near in space is learned once for all steps,
    and the trunk only has to say how the steps hang together.

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
        noise_std = torch.stack([process.sigma(t) / process.alpha(t) for t in range(process.n_diffusion_steps)])
        noise_std[:n_clean_levels] = 0.0
        self.features = FourierFeatures(step_dim, n_fourier_features, bandwidth) if n_fourier_features else None
        n_step = step_dim
        if self.features is not None:
            # a table of all levels, made anew when other frequencies are loaded
            self.register_buffer("_damping", self.features.damping(noise_std), persistent=False)
            self._damping: Tensor
            self.register_load_state_dict_post_hook(lambda module, _: module._tabulate(noise_std))
            n_step = step_dim + self.features.n_outputs
        step_width = max(self.step_width, 2 * step_dim)
        self.encode = nn.Linear(n_step, step_width)
        self.enter = nn.Linear(horizon * step_width, width)
        self.embed = LevelEmbedding(process, pinned, width // 2, bandwidth)
        self.film = nn.Linear(width // 2, n_blocks * 2 * width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(n_blocks))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(n_blocks)
        )
        self.n_outputs = n_outputs
        if n_outputs is None:
            self.leave = nn.Linear(width, horizon * step_width)
            self.decode = nn.Sequential(nn.Linear(step_width + n_step, 64), nn.SiLU(), nn.Linear(64, step_dim))
        else:
            self.leave = nn.Linear(width, n_outputs)
        for parameter in self.blocks.parameters():
            nn.init.zeros_(parameter)

    def _tabulate(self, noise_std: Tensor) -> None:
        if self.features is not None:
            self._damping.copy_(self.features.damping(noise_std))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, *event_shape), (B,) -> (B, *event_shape) or (B, n_outputs)."""
        steps = x_t.reshape(len(x_t), *self._step_shape)
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
        self.down = nn.ModuleList(
            _ConvBlock(channels[i], channels[i + 1], embedding) for i in range(len(multipliers))
        )
        self.shrink = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in channels[1:-1])
        self.middle = _ConvBlock(channels[-1], channels[-1], embedding)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(channels[i + 1], channels[i], 4, stride=2, padding=1)
                                  for i in range(len(multipliers) - 1, 0, -1))
        self.up = nn.ModuleList(_ConvBlock(2 * channels[i], channels[i], embedding)
                                for i in range(len(multipliers) - 1, 0, -1))
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


NETWORKS: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "unet": TemporalUnet}
