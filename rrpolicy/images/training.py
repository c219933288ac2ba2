"""Small image diffusion models, trained by the library's one training loop and saved as ``diffusers`` folders.

They are what the bridges read: ``save_pretrained`` writes a DDPMPipeline folder, and a model in training is already a
score model. An expert is a base fine-tuned on fewer classes, or trained on them from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.files import write_json
from rrpolicy.common.learner import Learner, LearningRate, MaybeCallback
from rrpolicy.common.noise import randint, randn
from rrpolicy.common.options import LoopOptions, TrainingOptions, check_options
from rrpolicy.common.persistence import training_arguments
from rrpolicy.common.schema import native
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.codec import Codec, PixelCodec, codec_from_dict
from rrpolicy.images.unet import CODEC_FILE, UNetScoreModel

UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": 16,
}
"""The fastest on a CPU of the blocks tried: attention in the middle only, 0.65 M parameters for events (4, 8, 8)."""


class ImageDiffusion(Learner[nn.Module]):
    """
    A noise-predicting UNet2DModel that learns from images; cosine schedule (Nichol & Dhariwal 2021).

    Further keywords are those of `TrainingOptions`.

    :param codec: images to events
    :param n_diffusion_steps: noise levels T
    :param learning_rate: peak learning rate or SB3 schedule
    :param batch_size: images per gradient step
    :param unet_kwargs: arguments of ``diffusers.UNet2DModel`` that differ from `UNET`
    :raises ValueError: for options out of range, or without the extra ``images``
    """

    kind: ClassVar[str] = "image-diffusion"

    def __init__(
        self,
        codec: PixelCodec,
        n_diffusion_steps: int = 200,
        learning_rate: LearningRate = 2e-3,
        batch_size: int = 64,
        unet_kwargs: Mapping[str, Any] | None = None,
        **training: Unpack[TrainingOptions],
    ) -> None:
        check_options("ImageDiffusion", training, TrainingOptions)
        super().__init__(learning_rate, batch_size, **training)
        self.codec = codec
        self.process = DiffusionProcess(n_diffusion_steps, "cosine", "eps")
        self.unet_kwargs: dict[str, Any] = native(unet_kwargs or {})
        self._setup_model()

    def _setup_model(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            network = _unet(self.codec, self.unet_kwargs)
        self._start_from(network.to(memory_format=torch.channels_last))

    # ------------------------------------------------------------------ learning

    def learn(
        self,
        images: Any,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        **options: Unpack[LoopOptions],
    ) -> Self:
        """
        Learn to denoise ``images``; one timestep is one gradient step. Further keywords are those of `LoopOptions`.

        :param images: as the codec takes them, uint8 (N, H, W, C) for one
        :param total_timesteps: gradient steps to take
        :param callback: SB3 callback(s)
        :return: self
        :raises TypeError: when called without ``total_timesteps``
        :raises ValueError: when the images do not fit the codec
        :raises FloatingPointError: when the loss is not finite, naming the step
        """
        check_options("learn", options, LoopOptions)
        if total_timesteps is None:
            raise TypeError("learn() lacks total_timesteps; call it as model.learn(images, total_timesteps=2_000)")
        self._events = self.codec.encode(images).to(self.device)
        self._learn(total_timesteps, callback, options)
        return self

    def _draw(self) -> Batch:
        index = randint(len(self._events), (self.batch_size,), self.generator, self.device)
        t = randint(self.process.n_diffusion_steps, (self.batch_size,), self.generator, self.device)
        x0 = self._events[index]
        noise = randn(x0.shape, self.generator, self.device)
        return self.process.q_sample(x0, t, noise), t, noise

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        x_t, t, noise = batch
        return nn.functional.mse_loss(self.module(x_t, t).sample.float(), noise), {}

    def fine_tuned(self, **changes: Any) -> Self:
        """
        A copy that starts from this model's averaged weights and learns on with a new optimiser.

        :param changes: arguments of the constructor that differ, such as ``learning_rate`` or ``seed``
        """
        arguments = {**self._arguments(), "device": self.device, **changes}
        copy = type(self)(self.codec, **arguments)
        weights = self.averaged.state_dict()
        copy.set_parameters({"policy": weights, "averaged": weights}, exact_match=False)
        return copy

    # ------------------------------------------------------------------ score model

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.codec.event_shape

    @property
    def clip(self) -> float | None:
        """Largest magnitude of a clean entry, to which samplers clip."""
        return self.codec.clip

    @property
    def unet(self) -> nn.Module:
        """The averaged network."""
        return self.averaged

    def score_model(self) -> UNetScoreModel:
        """The averaged network with its noise levels and codec, as one that was read from a folder."""
        return UNetScoreModel(self.averaged, self.process, self.codec)

    @torch.no_grad()
    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, *event_shape) for ``x_t`` (B, *event_shape) at levels ``t`` (B,)."""
        return self.score_model().eps(x_t, t)

    def fingerprint(self) -> str:
        """Equal for models that share shape, codec and noise levels."""
        return self.score_model().fingerprint()

    # ------------------------------------------------------------------ persistence

    def save_pretrained(self, folder: str | Path) -> Path:
        """
        Write the averaged weights as a DDPMPipeline folder, which `UNetScoreModel.from_pretrained` reads.

        :param folder: made when missing; what is in it under the same names is replaced
        :return: the folder
        """
        diffusers, target = import_diffusers(), Path(folder)
        scheduler = diffusers.DDPMScheduler(
            num_train_timesteps=self.process.n_diffusion_steps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon",
        )
        diffusers.DDPMPipeline(self.averaged, scheduler).save_pretrained(target, safe_serialization=True)
        write_json(target / CODEC_FILE, {"codec": self.codec.to_dict()})
        return target

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments but the codec; a schedule is not kept."""
        training = {name: value for name, value in self._training_config().items() if value is not None}
        return {"n_diffusion_steps": self.process.n_diffusion_steps, "unet_kwargs": self.unet_kwargs, **training}

    def _config(self) -> dict[str, Any]:
        return {
            "codec": self.codec.to_dict(),
            "n_diffusion_steps": self.process.n_diffusion_steps,
            "unet_kwargs": self.unet_kwargs,
            "training": self._training_config(),
        }

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> nn.Module:
        return _unet(codec_from_dict(config["codec"]), config["unet_kwargs"])

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Self:
        codec = codec_from_dict(config["codec"])
        if not isinstance(codec, PixelCodec):
            raise ValueError(f"codec is {config['codec']}, wanted one of pixels")
        return cls(codec, config["n_diffusion_steps"], unet_kwargs=config["unet_kwargs"], **training_arguments(config))


def _unet(codec: Codec, unet_kwargs: Mapping[str, Any]) -> Any:
    """:raises ValueError: without the extra ``images``"""
    channels, height, width = codec.event_shape
    n_levels = len(unet_kwargs.get("block_out_channels", UNET["block_out_channels"]))
    if height % 2 ** (n_levels - 1) or width % 2 ** (n_levels - 1):
        raise ValueError(
            f"events are {height} × {width}, a U-Net of {n_levels} levels wants multiples of {2 ** (n_levels - 1)}"
        )
    size = height if height == width else (height, width)
    arguments = {**UNET, **unet_kwargs}
    return import_diffusers().UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **arguments)
