"""Stable Diffusion as score models: one for each list of prompts, with classifier-free and with safety guidance.

A pipeline's parts are read one by one with classes named here, from safetensors only (see `images.unet`); text guidance
is Ho & Salimans 2022, equation 6, and safety guidance is that of `images.safety`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.codec import LatentCodec, codec_parts
from rrpolicy.images.parts import DISTILLED, as_device, as_dtype, check_pipeline, digests_of, has_part, load_part
from rrpolicy.images.safety import N_PUBLISHED_STEPS, SAFETY_CONCEPT, SafetyConfig, safety_config, safety_guidance
from rrpolicy.images.schedulers import load_process
from rrpolicy.images.unet import event_shape_of

GUIDANCE_SCALE = 7.5


class StableDiffusion:
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
        if unet.config.get("time_cond_proj_dim") is not None:
            raise ValueError(f"the UNet takes the guidance as a number, as LCM's does: it {DISTILLED}")
        shape = event_shape_of(unet)
        if vae.config.latent_channels != shape[0]:
            raise ValueError(f"the autoencoder has {vae.config.latent_channels} channels, the UNet wants {shape[0]}")
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.codec = LatentCodec(vae, shape, (3, shape[1] * factor, shape[2] * factor), vae.config.scaling_factor)
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.process = process
        self.batch_size = batch_size
        self.digests: dict[str, str] = {}
        """SHA-256 of the files that the weights were read from."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        batch_size: int = 4,
    ) -> Self:
        """
        Read a pipeline folder, or a model of the hub (``owner/name``).

        :param name: the folder, or the hub's name
        :param device: where the networks compute
        :param dtype: their precision
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, transformers, device = import_diffusers(), _import_transformers(), as_device(device)
        if not has_part(name, "unet"):
            raise ValueError(f"{name} is no Stable Diffusion folder: it lacks unet/")
        check_pipeline(name)
        unet, vae, text_encoder = (
            load_part(kind, name, part, precision).to(device).eval().requires_grad_(False)
            for kind, part, precision in (
                (diffusers.UNet2DConditionModel, "unet", dtype), (diffusers.AutoencoderKL, "vae", torch.float32),
                (transformers.CLIPTextModel, "text_encoder", dtype)
            )
        )  # fmt: skip
        tokenizer = load_part(transformers.CLIPTokenizer, name, "tokenizer")
        process = load_process(name, "scheduler")
        pipeline = cls(unet, vae, text_encoder, tokenizer, process, batch_size)
        nn.Module.to(vae, as_dtype(dtype))  # its digest is that of single precision, whatever it computes in
        pipeline.digests = digests_of(name, ("unet", "vae", "text_encoder"))
        return pipeline

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.codec.event_shape

    def fingerprint(self) -> str:
        """Equal for two pipelines whose latents are of the same kind and noised alike."""
        return f"event_shape={self.event_shape};{codec_parts(self.codec)};process={self.process}"

    def prompted(self, prompts: Sequence[str] | str, guidance_scale: float = GUIDANCE_SCALE) -> PromptedModel:
        """
        The score model of some prompts.

        :param prompts: one for each event that it will be asked about, or a single one for them all
        :param guidance_scale: of classifier-free guidance; 1 is the prompt's own prediction
        """
        return PromptedModel(self, prompts, guidance_scale)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Prompts as the UNet reads them (n, tokens, width); what exceeds the encoder's length is cut off."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.text_encoder.device) if masked else None
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device), attention_mask=mask)[0]

    @torch.no_grad()
    def predictions(self, x_t: Tensor, t: Tensor, conditions: Sequence[Tensor]) -> list[Tensor]:
        """
        Noise predicted under each of several conditions.

        :param x_t: (B, *event_shape)
        :param t: (B,)
        :param conditions: embedded prompts, each (B, tokens, width)
        :return: for each condition (B, *event_shape), on the device and in the precision of ``x_t``
        """
        n, outputs = len(conditions), []
        for i in range(0, len(x_t), self.batch_size):
            rows = slice(i, i + self.batch_size)
            inputs = x_t[rows].to(self.unet.device, self.unet.dtype).repeat(n, 1, 1, 1)
            levels = t[rows].to(self.unet.device).repeat(n)
            hidden = torch.cat([condition[rows] for condition in conditions])
            output = self.unet(inputs, levels, encoder_hidden_states=hidden).sample.to(x_t)
            outputs.append(output.unflatten(0, (n, -1)))
        return [self.process.eps_from_output(x_t, t, output) for output in torch.cat(outputs, dim=1)]


class PromptedModel:
    """
    Stable Diffusion for given prompts, by classifier-free guidance: a score model.

    :param pipeline: the pipeline
    :param prompts: one for each event, or a single one for them all
    :param guidance_scale: 1 is the prompt's own prediction
    :raises ValueError: without prompts
    """

    clip: float | None = None

    def __init__(
        self, pipeline: StableDiffusion, prompts: Sequence[str] | str, guidance_scale: float = GUIDANCE_SCALE
    ) -> None:
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts:
            raise ValueError("prompts is empty, wanted at least one")
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.process = pipeline.process
        self.codec = pipeline.codec
        self._nothing, self._text = pipeline.embed([""]), pipeline.embed(self.prompts)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.pipeline.event_shape

    def fingerprint(self) -> str:
        return self.pipeline.fingerprint()

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, *event_shape), guided towards the prompts."""
        unconditional, text = self.pipeline.predictions(x_t, t, self.conditions(len(x_t)))
        return self.guided(unconditional, text - unconditional)

    def guided(self, unconditional: Tensor, guidance: Tensor) -> Tensor:
        """The unconditional prediction moved along ``guidance``."""
        return unconditional + self.guidance_scale * guidance

    def conditions(self, n: int) -> list[Tensor]:
        """
        No prompt and the prompts, embedded, for ``n`` events.

        :raises ValueError: when there are several prompts, but not ``n``
        """
        if len(self.prompts) not in (1, n):
            raise ValueError(f"x_t has {n} events for {len(self.prompts)} prompts, wanted one for each or one for all")
        return [self._nothing.expand(n, -1, -1), self._text.expand(n, -1, -1)]


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
        return self.base.pipeline.predictions(x_t, t, [*self.base.conditions(n), self._concept.expand(n, -1, -1)])


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
        """Predictions of base and safe model at the next step, for the price of three passes."""
        base, config = self._model.base, self._model.config
        unconditional, text, concept = self._model.predictions(x_t, t)
        momentum = torch.zeros_like(text) if self._momentum is None else self._momentum
        push, self._momentum = safety_guidance(config, unconditional, text, concept, momentum)
        guidance = text - unconditional
        safe = guidance if self._step < config.warmup_steps else guidance - push
        self._step += 1
        return base.guided(unconditional, guidance), base.guided(unconditional, safe)


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"prompts need the images extra: pip install 'rrpolicy[images]' ({error})") from error
    return transformers
