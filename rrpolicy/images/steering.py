"""Steering of a user's own ``diffusers`` pipeline: its call stays, and its network's output is moved by σ∇ρ.

The network is evaluated at noised latents and predicts noise, x0, v or velocity; each is linear in the noise, so the
change of the noise, -scale · σ∇ρ, is added in its own units. Classifier-free guidance passes it on as it is, since it
is the same under every prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rrpolicy.common.arguments import number
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.schedulers import FLOW_SCHEDULERS, process_of
from rrpolicy.images.codec import LatentCodec, check_codec
from rrpolicy.images.parts import weights_digest
from rrpolicy.images.reward import ImageReward


def steer(pipeline: Any, reward: ImageReward, scale: float = 1.0) -> RemovableHandle:
    """
    Steer a pipeline object of diffusers with a reward, until the handle is removed.

    ::

        with steer(pipeline, reward, scale=2.0):
            images = pipeline("a cat", num_inference_steps=30).images

    :param pipeline: of Stable Diffusion 1, 2, XL or 3, Flux, or a DDPMPipeline; any sampler of the same noise levels
    :param reward: that a base with the same latents was compared for
    :param scale: strength; 0 is the pipeline itself
    :return: a handle with ``remove()``, also a context manager
    :raises ValueError: for a pipeline whose network, noise levels or autoencoder are not those of the reward, and from
        the pipeline's call when it draws pictures of another size
    """
    if not math.isfinite(number("scale", scale)):
        raise ValueError(f"scale is {scale}, it must be finite")
    flow = getattr(pipeline, "transformer", None)
    network = flow if flow is not None else getattr(pipeline, "unet", None)
    if not isinstance(network, nn.Module):
        kind = type(pipeline).__name__
        raise ValueError(f"pipeline is a {kind}, wanted one of diffusers with a unet or a transformer")
    _check_vae(getattr(pipeline, "vae", None), reward)
    move = _flow(pipeline, reward, scale) if flow is not None else _variance_preserving(pipeline, reward, scale)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if isinstance(output, tuple):
            return (move(args, kwargs, output[0]), *output[1:])
        output.sample = move(args, kwargs, output.sample)
        return output

    return network.register_forward_hook(hook, with_kwargs=True)


def _variance_preserving(pipeline: Any, reward: ImageReward, scale: float) -> Any:
    """The function that moves a U-Net's output; its input lies on the variance-preserving path whatever the sampler."""
    process, own = reward.reward.process, process_of(pipeline.scheduler)
    if not own.same_levels(process):
        raise ValueError(f"the reward was made for noise levels {process}, the pipeline's scheduler has {own}")

    def move(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        x_t, t = _argument(args, kwargs, 0, "sample"), _argument(args, kwargs, 1, "timestep")
        # samplers may stand between two levels
        level = torch.as_tensor(t).round().long().clamp(0, process.n_diffusion_steps - 1)
        change = _change(reward, x_t, level, scale)
        alpha, sigma = process.levels(change, level.to(change.device).expand(len(change)))
        factor = {"eps": torch.ones_like(alpha), "x0": -sigma / alpha, "v": 1 / alpha}[own.prediction]
        return output + (factor * change).to(output)

    return move


def _flow(pipeline: Any, reward: ImageReward, scale: float) -> Any:
    """The function that moves the output of a transformer for velocities; Flux's input is a row of patches."""
    process, kind = reward.reward.process, type(pipeline.scheduler).__name__
    if kind not in FLOW_SCHEDULERS:
        raise ValueError(f"the pipeline's scheduler is a {kind}, wanted one of {', '.join(FLOW_SCHEDULERS)}")
    levels = _flow_levels(process)
    channels, height, width = reward.reward.event_shape
    packed = hasattr(pipeline.transformer.config, "guidance_embeds")

    def move(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        x, s = _argument(args, kwargs, 0, "hidden_states"), torch.as_tensor(kwargs["timestep"]).float().cpu()
        if packed:
            if x.shape[1:] != (height * width // 4, channels * 4):
                raise ValueError(
                    f"the pipeline draws patches {tuple(x.shape[1:])}, the reward was made for latents "
                    f"{reward.reward.event_shape}: set height and width"
                )
            x = nn.functional.pixel_shuffle(x.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
        else:
            s = s / 1000
        s = s.expand(len(x))
        level = (levels[None] - s[:, None].to(levels)).abs().argmin(dim=1)
        alpha, sigma = process.levels(x, level)
        change = _change(reward, x.float().cpu() * (alpha + sigma), level, scale)
        change = change.cpu() / (1 - s.view(-1, 1, 1, 1)).clamp(min=1e-3)
        if packed:
            change = nn.functional.pixel_unshuffle(change, 2).flatten(2).transpose(1, 2)
        return output + change.to(output)

    return move


def _flow_levels(process: DiffusionProcess) -> Tensor:
    """s of x = (1 - s) x0 + s ε at each level, float64."""
    t = torch.arange(process.n_diffusion_steps)
    alpha, sigma = process.alpha(t).double(), process.sigma(t).double()
    return sigma / (alpha + sigma)


def _change(reward: ImageReward, x_t: Tensor, level: Tensor, scale: float) -> Tensor:
    """-scale · σ∇ρ, float32, where the reward computes."""
    wanted = tuple(reward.reward.event_shape)
    if tuple(x_t.shape[1:]) != wanted:
        raise ValueError(
            f"the pipeline has events of shape {tuple(x_t.shape[1:])}, the reward was made for {wanted}; "
            "set height and width"
        )
    x, t = x_t.detach().float().to(reward.device), level.to(reward.device).expand(len(x_t))
    return -scale * reward.reward.process.levels(x, t)[1] * reward.reward.gradient(x, t)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs[name]


def _check_vae(vae: Any, reward: ImageReward) -> None:
    """An autoencoder in half precision is compared by its configuration alone: its weights have been rounded."""
    codec = reward.codec
    if (vae is not None) != isinstance(codec, LatentCodec):
        raise ValueError(
            f"the reward was made for {codec.to_dict()['kind']}, the pipeline has "
            f"{'an' if vae is not None else 'no'} autoencoder"
        )
    if isinstance(codec, LatentCodec):
        digest = weights_digest(vae) if vae.dtype is torch.float32 else codec.digest
        shift = vae.config.get("shift_factor") or 0.0
        own = LatentCodec(None, codec.event_shape, codec.image_shape, vae.config.scaling_factor, shift, digest)
        check_codec(own, codec, "the reward")
