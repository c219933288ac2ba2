"""Small classes with the attributes and call conventions of other people's libraries, around any network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.unets.unet_1d import UNet1DOutput
from torch import Tensor, nn

from helpers.mixtures import COSINE


class DenoisingDiffusion(nn.Module):
    """`GaussianDiffusion1D` of denoising-diffusion-pytorch."""

    def __init__(self, model: nn.Module, objective: str = "pred_noise", channel_first: bool = True) -> None:
        super().__init__()
        self.model, self.objective, self.channel_first = model, objective, channel_first
        self.channels, self.seq_length, self.self_condition = 3, 4, False
        self.register_buffer("alphas_cumprod", torch.tensor(COSINE))

    @staticmethod
    def normalize(data: Tensor) -> Tensor:
        return 2 * data - 1


class DenoisingDiffusion2D(nn.Module):
    """`GaussianDiffusion` of denoising-diffusion-pytorch."""

    def __init__(self, model: nn.Module, objective: str = "pred_v", size: Any = (2, 2)) -> None:
        super().__init__()
        self.model, self.objective, self.channels, self.image_size = model, objective, 1, size
        self.self_condition = False
        self.register_buffer("alphas_cumprod", torch.tensor(COSINE))

    @staticmethod
    def normalize(data: Tensor) -> Tensor:
        return data


class TemporalNetwork(nn.Module):
    """Diffuser's networks are called with x, the given states and the time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, cond: dict[int, Tensor], time: Tensor) -> Tensor:
        for row, state in cond.items():
            assert torch.equal(x[:, row, -state.shape[-1] :], state)
        return self.inner(x, time)


class JannerDiffusion(nn.Module):
    """`GaussianDiffusion` of Diffuser."""

    def __init__(self, model: nn.Module, predict_epsilon: bool = True, horizon: int = 4) -> None:
        super().__init__()
        self.model, self.predict_epsilon, self.horizon = TemporalNetwork(model), predict_epsilon, horizon
        self.observation_dim, self.action_dim, self.clip_denoised = 2, 1, False
        self.register_buffer("alphas_cumprod", torch.tensor(COSINE))


def dataset_normalizer(kind: str, **values: Any) -> Any:
    """`DatasetNormalizer` of Diffuser with the same kind for both fields."""
    return SimpleNamespace(normalizers={name: type(kind, (), values)() for name in ("observations", "actions")})


class Concatenated(nn.Module):
    """torchcfm's MLP takes the time as the last column."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, :-1], x[:, -1])


class TimeFirst(nn.Module):
    """torchcfm's U-Net."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.inner(x, t.expand(len(x)))


class CosineFlow:
    """`CosineScheduler` of flow_matching: noise at time 0."""

    def __call__(self, t: Tensor) -> Any:
        angle, rate = torch.pi / 2 * t, torch.pi / 2
        return SimpleNamespace(
            alpha_t=angle.sin(), sigma_t=angle.cos(), d_alpha_t=rate * angle.cos(), d_sigma_t=-rate * angle.sin()
        )

    def snr_inverse(self, snr: Tensor) -> Tensor:
        return 2 / torch.pi * torch.atan(snr)


class WithSample(nn.Module):
    """Networks of diffusers: the timestep may be one number, the answer has `.sample`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor | None = None) -> Any:
        shift = 0 if encoder_hidden_states is None else encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1)
        time = torch.as_tensor(timestep).expand(len(sample))
        return UNet1DOutput(sample=self.inner(sample - shift, time))


class PolicyNetwork(nn.Module):
    """The conditional U-Net of Diffusion Policy and LeRobot; exact for events around the mean of the features."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, sample: Tensor, timestep: Any, local_cond: None = None, global_cond: Any = None) -> Tensor:
        time = torch.as_tensor(timestep).expand(len(sample))
        alpha = self.inner.path.a[time.long()].float().view(-1, 1, 1)
        return self.inner(sample - alpha * global_cond.mean(dim=1).view(-1, 1, 1), time)
