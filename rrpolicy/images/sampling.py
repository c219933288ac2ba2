"""Images from a model: its own, the expert's, or the base's steered with a reward, all from the same noise.

Pixels and latents use the same code (`rewards.guidance`): the sampler calls a noise predictor and the codec decodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from rrpolicy.common.device import CPU, device_of
from rrpolicy.common.noise import generator
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import Solver, SolverName, sample_model
from rrpolicy.diffusion.score_model import Denoiser
from rrpolicy.images.codec import Codec, check_codec
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.stable_diffusion import SafeModel
from rrpolicy.rewards.guidance import guided

GRADIENT_VALUES = 2**19  # of events whose gradient is taken at once: 32 latents of Stable Diffusion


class ImageModel(Protocol):
    """A score model of images: any of `UNetScoreModel`, `PromptedModel`, `SafeModel`."""

    @property
    def process(self) -> DiffusionProcess: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def clip(self) -> float | None: ...

    @property
    def event_shape(self) -> tuple[int, ...]: ...

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor: ...

    def fingerprint(self) -> str: ...


@torch.no_grad()
def sample_events(
    model: ImageModel,
    n: int,
    n_sampling_steps: int = 25,
    reward: ImageReward | None = None,
    scale: float = 1.0,
    max_shift: float | None = None,
    solver: SolverName | Solver = "ddim",
    seed: int = 0,
    fast_noise: bool = False,
    visit: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """
    Clean events (n, *event_shape) of a model, steered when a reward is given.

    :param model: the base, or an expert; with several prompts, ``n`` must be their number
    :param n: events
    :param n_sampling_steps: denoising steps
    :param reward: ρ to steer with
    :param scale: strength of the steering; 1 makes the base the expert, as far as ρ explains it
    :param max_shift: largest change of an entry of the clean estimate in one step; None for no bound
    :param solver: ``"ddim"``, ``"ddpm"`` or ``"dpm++"``
    :param seed: of all noise; equal seeds start from equal noise, whatever steers
    :param fast_noise: draw it where the model computes: a seed then gives other noise on another kind of device
    :param visit: called with every (x_t, t) of the trajectory
    :raises ValueError: when the reward was made for events of another kind
    """
    drawing = generator(seed, device_of(model) if fast_noise else CPU)
    denoiser: Denoiser = model.path() if isinstance(model, SafeModel) else model.eps
    if reward is not None:
        _check_fits(reward, model)
        denoiser = _steered(denoiser, reward, scale, max_shift)
    return sample_model(
        model,
        n,
        generator=drawing,
        n_sampling_steps=n_sampling_steps,
        solver=solver,
        denoiser=denoiser,
        visit=visit,
    )


def sample_images(model: ImageModel, n: int, **options: Any) -> Array:
    """
    Images uint8 (n, H, W, C) of a model.

    :param options: those of :func:`sample_events`
    """
    return model.codec.decode(sample_events(model, n, **options))


def _steered(denoiser: Denoiser, reward: ImageReward, scale: float, max_shift: float | None) -> Denoiser:
    """
    As `rewards.guidance.guided`, with the gradient of a few events at a time, which bounds its memory; the denoiser may
    have a prompt for each event and is called with all of them.
    """
    change = guided(lambda x_t, t: torch.zeros_like(x_t), reward.reward, reward.reward.process, scale, max_shift)
    size = max(1, GRADIENT_VALUES // math.prod(reward.reward.event_shape))

    def steered(x_t: Tensor, t: Tensor) -> Tensor:
        parts = [change(x, level) for x, level in zip(x_t.split(size), t.split(size), strict=True)]
        return denoiser(x_t, t) + torch.cat(parts)

    return steered


def _check_fits(reward: ImageReward, model: ImageModel) -> None:
    shape, process = tuple(model.event_shape), reward.reward.process
    if shape != reward.reward.event_shape:
        raise ValueError(f"the reward was made for events of shape {reward.reward.event_shape}, the model has {shape}")
    if reward.device != device_of(model):
        raise ValueError(
            f"the model is on {device_of(model)}, the reward on {reward.device}: move one, such as reward.to(device)"
        )
    if not model.process.same_levels(process):
        raise ValueError(f"the reward was made for noise levels {process}, the model has {model.process}")
    check_codec(model.codec, reward.codec, "the reward")
