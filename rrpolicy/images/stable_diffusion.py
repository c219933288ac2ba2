"""Stable Diffusion as score models: one for each list of prompts, with classifier-free and with safety guidance.

A pipeline's parts are read one by one with classes named here, from safetensors only (see `images.unet`); text guidance
is Ho & Salimans 2022, equation 6, and safety guidance is that of `images.safety`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rrpolicy.common.device import device_of
from rrpolicy.common.messages import at
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.codec import LatentCodec, codec_parts
from rrpolicy.images.lora import with_lora
from rrpolicy.images.networks import check_score, import_transformers, load_networks
from rrpolicy.images.parts import (
    as_dtype,
    check_parts,
    digests_of,
    file_digest,
    has_part,
    is_single_file,
    load_part,
    reachable,
)
from rrpolicy.images.safety import N_PUBLISHED_STEPS, SAFETY_CONCEPT, SafetyConfig, safety_config, safety_guidance
from rrpolicy.images.schedulers import load_process
from rrpolicy.images.single_files import SingleFile, with_weights
from rrpolicy.images.unet import event_shape_of

GUIDANCE_SCALE = 7.5

Condition = tuple[Tensor, ...]
"""An embedded prompt, as a network takes it; the first axis of each tensor counts events."""


class TextToImage:
    """
    Base class of pipelines with prompts: latents, their noise levels, and a network that denoises them.

    :param network: what denoises, in the attribute that ``network_part`` names
    :param vae: ``AutoencoderKL``, in the precision in which its weights are stored, or a higher one
    :param event_shape: (C, H, W) of the latents
    :param process: noise levels it was trained with, and what it predicts
    :param batch_size: events per call of the network, each with up to three prompts, which bounds memory
    :raises ValueError: for an autoencoder of other latents
    """

    network_part: ClassVar[str] = "unet"
    """The network's folder in a pipeline."""
    guidance_scale: ClassVar[float] = GUIDANCE_SCALE
    """Usual strength of classifier-free guidance."""
    note: ClassVar[str | None] = None
    """What is to be known of the scores of this kind of pipeline."""
    n_tokens: ClassVar[int] = 77
    """Tokens that an encoder without a bound of its own is given."""
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]

    def __init__(
        self, network: Any, vae: Any, event_shape: tuple[int, int, int], process: DiffusionProcess, batch_size: int
    ) -> None:
        config, (channels, height, width) = vae.config, event_shape
        if config.latent_channels != channels:
            raise ValueError(f"the autoencoder has {config.latent_channels} channels, the UNet wants {channels}")
        factor, shift = 2 ** (len(config.block_out_channels) - 1), config.get("shift_factor") or 0.0
        self.codec = LatentCodec(vae, event_shape, (3, height * factor, width * factor), config.scaling_factor, shift)
        self.network = network
        self.process = process
        self.batch_size = batch_size
        self.digests: dict[str, str] = {}
        """SHA-256 of the files that the weights were read from."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.codec.event_shape

    def fingerprint(self) -> str:
        """Equal for two pipelines whose latents are of the same kind and noised alike."""
        return f"event_shape={self.event_shape};{codec_parts(self.codec)};process={self.process}"

    def prompted(self, prompts: Sequence[str] | str, guidance_scale: float | None = None) -> PromptedModel:
        """
        The score model of some prompts.

        :param prompts: one for each event that it will be called with, or a single one for them all
        :param guidance_scale: of classifier-free guidance; 1 is the prompt's own prediction; None: the usual one
        """
        return PromptedModel(self, prompts, self.guidance_scale if guidance_scale is None else guidance_scale)

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Prompts as inputs of the network, each tensor (n, ...); what exceeds an encoder's length is cut off."""
        raise NotImplementedError

    def nothing(self) -> Condition:
        """The network's input where there is no prompt, each tensor (1, ...)."""
        return self.embed([""])

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicted noise (B, *event_shape) under one condition for each event, by one call of the network."""
        raise NotImplementedError

    @torch.no_grad()
    def predictions(self, x_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> list[Tensor]:
        """
        Noise predicted under each of several conditions.

        :param x_t: (B, *event_shape)
        :param t: (B,)
        :param conditions: embedded prompts, each tensor (B, ...)
        :return: for each condition (B, *event_shape), on the device and in the precision of ``x_t``
        """
        n, outputs = len(conditions), []
        for i in range(0, len(x_t), self.batch_size):
            rows = slice(i, i + self.batch_size)
            joined = tuple(torch.cat([part[rows] for part in parts]) for parts in zip(*conditions, strict=True))
            output = self.noise(x_t[rows].repeat(n, 1, 1, 1), t[rows].repeat(n), joined)
            outputs.append(output.unflatten(0, (n, -1)))
        return list(torch.cat(outputs, dim=1))

    # ------------------------------------------------------------------ other networks in its place

    def with_network(self, name: str | Path) -> Self:
        """
        The same pipeline with another network in the place of its own, as fine-tuning often leaves it.

        :param name: folder of the network, or of a pipeline that has it, or one file of either
        :raises ValueError: for a folder that is none, or a network of another shape
        """
        kept = {key: value for key, value in self.digests.items() if not key.startswith(f"{self.network_part}/")}
        if is_single_file(name):
            changed = with_weights(self.network, name, self.network_part)
            return self._changed(changed, {**kept, Path(name).name: file_digest(Path(name))})
        name = reachable(name)
        part, mine = self.network_part if has_part(name, self.network_part) else None, self.network
        other = load_part(type(mine), name, part, mine.dtype).to(mine.device).eval().requires_grad_(False)
        shapes = [{key: tuple(value.shape) for key, value in network.state_dict().items()} for network in (mine, other)]
        if shapes[0] != shapes[1]:
            raise ValueError(at(name, f"its {type(mine).__name__} has weights of other shapes than the base's"))
        found = digests_of(name, [part or ""])
        mine = {f"{self.network_part}/{Path(path).name}": digest for path, digest in found.items()}
        return self._changed(other, {**kept, **mine})

    def with_lora(self, path: str | Path) -> Self:
        """
        The same pipeline with a low-rank change (LoRA) added to its network's weights.

        :param path: safetensors as diffusers, peft or kohya write them
        :raises ValueError: for a file that is none, or changes other weights than those of the network
        """
        changed = with_lora(self.network, path, self.network_part)
        return self._changed(changed, {**self.digests, Path(path).name: file_digest(Path(path))})

    def _read(
        self, name: str | Path, parts: Mapping[str, Any], dtype: torch.dtype | str, weights: str | Path | None = None
    ) -> Self:
        nn.Module.to(parts["vae"], as_dtype(dtype))  # its digest has been taken in single precision
        if weights is None:
            self.digests = digests_of(name, list(parts))
        else:
            SingleFile(weights).check_levels(self.process)
            self.digests = {Path(weights).name: file_digest(Path(weights))}
        return self

    def _changed(self, network: Any, digests: Mapping[str, str]) -> Self:
        changed = copy.copy(self)
        changed.network, changed.digests = network, dict(digests)
        return changed


class StableDiffusion(TextToImage):
    """
    A text-to-image pipeline with one text encoder (Stable Diffusion 1 and 2).

    :param unet: ``UNet2DConditionModel``
    :param vae: ``AutoencoderKL``, in the precision in which its weights are stored, or a higher one
    :param text_encoder: ``CLIPTextModel``
    :param tokenizer: ``CLIPTokenizer``
    :param process: noise levels it was trained with, and what it predicts
    :param batch_size: events per call of the UNet, each with up to three prompts, which bounds memory
    :raises ValueError: for parts that do not fit together
    """

    def __init__(
        self, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any, process: DiffusionProcess, batch_size: int = 4
    ) -> None:
        width, wanted = text_encoder.config.hidden_size, unet.config.cross_attention_dim
        if width != wanted:
            raise ValueError(f"the text encoder is {width} wide, the UNet wants {wanted}")
        if unet.config.get("addition_embed_type") is not None or unet.config.get("class_embed_type") is not None:
            raise ValueError("the UNet wants more than a prompt, as SDXL's does; wanted one of Stable Diffusion 1 or 2")
        check_score(unet)
        super().__init__(unet, vae, event_shape_of(unet), process, batch_size)
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.text_encoders, self.tokenizers = (text_encoder,), (tokenizer,)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = torch.float32,
        batch_size: int = 4,
        weights: str | Path | None = None,
    ) -> Self:
        """
        Read a pipeline folder, or a model of the hub (``owner/name``).

        :param name: the folder, or the hub's name
        :param device: where the networks compute
        :param dtype: their precision
        :param weights: one file of all weights, as the original code has it, in the place of those of the folder
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, transformers = import_diffusers(), import_transformers()
        name = reachable(name)
        check_parts(name, "Stable Diffusion", ("unet",))
        kinds = {
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": transformers.CLIPTextModel,
        }
        parts = load_networks(name, kinds, device, dtype, weights)
        tokenizer = load_part(transformers.CLIPTokenizer, name, "tokenizer")
        pipeline = cls(**parts, tokenizer=tokenizer, process=load_process(name, "scheduler"), batch_size=batch_size)
        return pipeline._read(name, parts, dtype, weights)

    unet = property(lambda self: self.network, doc="The network that denoises.")

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """The text encoder's last layer (n, tokens, width)."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.text_encoder.device) if masked else None
        return (self.text_encoder(tokens.input_ids.to(self.text_encoder.device), attention_mask=mask)[0],)

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicted noise (B, *event_shape) under one prompt for each event."""
        inputs = x_t.to(self.network.device, self.network.dtype)
        output = self.network(inputs, t.to(self.network.device), encoder_hidden_states=condition[0]).sample
        return self.process.eps_from_output(x_t, t, output.to(x_t))


class PromptedModel:
    """
    A pipeline for given prompts, by classifier-free guidance: a score model.

    :param pipeline: the pipeline
    :param prompts: one for each event, or a single one for them all
    :param guidance_scale: 1 is the prompt's own prediction
    :raises ValueError: without prompts
    """

    clip: float | None = None

    def __init__(
        self, pipeline: TextToImage, prompts: Sequence[str] | str, guidance_scale: float = GUIDANCE_SCALE
    ) -> None:
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts:
            raise ValueError("prompts is empty, wanted at least one")
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.process = pipeline.process
        self.codec = pipeline.codec
        self._nothing, self._text = pipeline.nothing(), pipeline.embed(self.prompts)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.pipeline.event_shape

    @property
    def device(self) -> torch.device:
        """Where the pipeline's network computes."""
        return device_of(self.pipeline.network)

    def fingerprint(self) -> str:
        return self.pipeline.fingerprint()

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, *event_shape), guided towards the prompts."""
        conditions = self.conditions(len(x_t))
        if self.guidance_scale == 1:
            return self.pipeline.predictions(x_t, t, conditions[1:])[0]
        unconditional, text = self.pipeline.predictions(x_t, t, conditions)
        return self.guided(unconditional, text - unconditional)

    def guided(self, unconditional: Tensor, guidance: Tensor) -> Tensor:
        """The unconditional prediction moved along ``guidance``."""
        return unconditional + self.guidance_scale * guidance

    def conditions(self, n: int) -> list[Condition]:
        """
        No prompt and the prompts, embedded, for ``n`` events.

        :raises ValueError: when there are several prompts, but not ``n``
        """
        if len(self.prompts) not in (1, n):
            raise ValueError(f"x_t has {n} events for {len(self.prompts)} prompts, wanted one for each or one for all")
        return [expanded(self._nothing, n), expanded(self._text, n)]


class SafeModel:
    """
    The same prompts, pushed away from an unsafe concept.

    :param base: the model without safety guidance
    :param safety: ``"weak"``, ``"medium"``, ``"strong"``, ``"max"`` or a configuration
    :param concept: what to stay away from
    """

    clip: float | None = None

    def __init__(
        self, base: PromptedModel, safety: str | SafetyConfig = "medium", concept: str = SAFETY_CONCEPT
    ) -> None:
        self.base = base
        self.config = safety_config(safety)
        self.process = base.process
        self.codec = base.codec
        self._concept = base.pipeline.embed([concept])

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    @property
    def device(self) -> torch.device:
        """Where the base computes."""
        return self.base.device

    def fingerprint(self) -> str:
        return self.base.fingerprint()

    def path(self) -> SafePath:
        """One denoising run, with momentum."""
        return SafePath(self)

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """
        Predicted noise (B, *event_shape) as a function of event and level: no momentum, and the warm-up is the same
        part of the levels that it is of the published 50 steps.
        """
        unconditional, text, concept = self.predictions(x_t, t)
        push, _ = safety_guidance(self.config, unconditional, text, concept, torch.zeros_like(text))
        warm = t < self.process.n_diffusion_steps * (1 - self.config.warmup_steps / N_PUBLISHED_STEPS)
        push = push * warm.view(-1, 1, 1, 1)
        return self.base.guided(unconditional, text - unconditional - push)

    def predictions(self, x_t: Tensor, t: Tensor) -> list[Tensor]:
        """Predictions without a prompt, with the prompts, and with the unsafe concept."""
        n = len(x_t)
        return self.base.pipeline.predictions(x_t, t, [*self.base.conditions(n), expanded(self._concept, n)])


class SafePath:
    """One denoising run with safety guidance; counts its steps and carries the momentum."""

    def __init__(self, model: SafeModel) -> None:
        self._model = model
        self._momentum: Tensor | None = None
        self._step = 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Safe noise prediction (B, *event_shape) of the next step."""
        return self.both(x_t, t)[1]

    def both(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions of base and safe model at the next step, at the cost of three passes."""
        base, config = self._model.base, self._model.config
        unconditional, text, concept = self._model.predictions(x_t, t)
        momentum = torch.zeros_like(text) if self._momentum is None else self._momentum
        push, self._momentum = safety_guidance(config, unconditional, text, concept, momentum)
        guidance = text - unconditional
        safe = guidance if self._step < config.warmup_steps else guidance - push
        self._step += 1
        return base.guided(unconditional, guidance), base.guided(unconditional, safe)


def expanded(condition: Condition, n: int) -> Condition:
    """A condition of one event, or of ``n``, for ``n`` events."""
    return tuple(part.expand(n, *part.shape[1:]) for part in condition)
