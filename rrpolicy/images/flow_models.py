"""Flow-matching transformers as score models: Stable Diffusion 3 (Esser et al. 2024) and Flux.

Along x_s = (1 - s) x0 + s ε a network gives the velocity v = ε - x0. Divided by √((1 - s)² + s²) the path is variance
preserving with the same ε, which is x_s + (1 - s) v, so the rest of the library needs no code for flows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rrpolicy.common.messages import at, printable
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.schedulers import DISTILLED, FLOW_SCHEDULERS, REFUSED
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.networks import import_transformers, load_networks
from rrpolicy.images.parts import (
    check_parts,
    clip_tokens,
    has_part,
    load_part,
    reachable,
    token_ids,
)
from rrpolicy.images.schedulers import CONFIG_FILE, load_config
from rrpolicy.images.stable_diffusion import Condition, PromptedModel, TextToImage
from rrpolicy.images.unet import event_shape_of

MAX_LEVEL = 0.999  # of s: at 1 nothing of x0 is left


def flow_process(config: Mapping[str, Any], n_tokens: int) -> DiffusionProcess:
    """
    The noise levels of a flow, spread as its scheduler shifts them.

    :param config: of a scheduler of diffusers
    :param n_tokens: patches of a picture, on which a dynamic shift depends
    :raises ValueError: for another scheduler
    """
    kind, shift = config.get("_class_name"), config.get("shift", 1.0)
    if kind not in FLOW_SCHEDULERS:
        reason = REFUSED.get(kind, "") if isinstance(kind, str) else ""
        raise ValueError(
            f"_class_name is {printable(kind, 60)}, wanted one of {', '.join(FLOW_SCHEDULERS)}"
            + (f": it {reason}" if reason else "")
        )
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas is true: its time runs from noise to pictures, which no model here does")
    try:
        n_levels = int(config.get("num_train_timesteps", 1000))
        if config.get("use_dynamic_shifting"):
            lengths = (config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096))
            low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
            mu = low + (high - low) * (n_tokens - lengths[0]) / (lengths[1] - lengths[0])
            shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        if not 0 < shift < math.inf:
            raise ValueError(f"a shift of {shift}, wanted a positive one")
        last = MAX_LEVEL / (shift - (shift - 1) * MAX_LEVEL)  # is shifted to MAX_LEVEL
        levels = last * torch.arange(1, n_levels + 1, dtype=torch.float64, device="cpu") / n_levels
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"names no levels of a flow: {printable(error)}") from error
    levels = shift * levels / (1 + (shift - 1) * levels)
    return DiffusionProcess.from_alphas_cumprod(((1 - levels) ** 2 / ((1 - levels) ** 2 + levels**2)).tolist(), "eps")


class FlowTransformer(TextToImage):
    """Base class of the pipelines of this file: a transformer that gives velocities, and its levels."""

    network_part: ClassVar[str] = "transformer"

    def velocity(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """v (B, *event_shape) at x = (1 - level) x0 + level ε, with ``level`` (B,) in (0, 1)."""
        raise NotImplementedError

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicted noise (B, *event_shape) under one condition for each event."""
        alpha, sigma = self.process.levels(x_t, t)
        x, level = x_t / (alpha + sigma), sigma / (alpha + sigma)
        inputs = x.to(self.network.device, self.network.dtype)
        v = self.velocity(inputs, level.flatten().to(self.network.device), condition).to(x_t)
        return x + (1 - level) * v


class StableDiffusion3(FlowTransformer):
    """
    A text-to-image pipeline with CLIP's two text encoders and, where it has one, T5 (Stable Diffusion 3 and 3.5).

    :param transformer: ``SD3Transformer2DModel``
    :param vae: ``AutoencoderKL``, in the precision in which its weights are stored, or a higher one
    :param text_encoders: two ``CLIPTextModelWithProjection`` and, or not, a ``T5EncoderModel``
    :param tokenizers: one for each
    :param process: levels of the flow, see :func:`flow_process`
    :param batch_size: events per call of the transformer, each with up to three prompts, which bounds memory
    :raises ValueError: for parts that do not fit together
    """

    guidance_scale: ClassVar[float] = 7.0
    n_tokens: ClassVar[int] = 256  # of T5, as the pipeline has them

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoders: Sequence[Any],
        tokenizers: Sequence[Any],
        process: DiffusionProcess,
        batch_size: int = 4,
    ) -> None:
        config, encoders = transformer.config, [encoder.config for encoder in text_encoders]
        pooled = encoders[0].projection_dim + encoders[1].projection_dim
        if pooled != (wanted := config.pooled_projection_dim):
            raise ValueError(f"pooled prompts have {pooled} numbers, the transformer wants {wanted}")
        width = encoders[2].d_model if len(encoders) > 2 else config.joint_attention_dim
        if width != config.joint_attention_dim or encoders[0].hidden_size + encoders[1].hidden_size > width:
            raise ValueError(
                f"the text encoders are too wide, or not the {config.joint_attention_dim} that the transformer wants"
            )
        super().__init__(transformer, vae, event_shape_of(transformer), process, batch_size)
        self.text_encoders, self.tokenizers = tuple(text_encoders), tuple(tokenizers)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = torch.float32,
        batch_size: int = 4,
    ) -> Self:
        """
        Read a pipeline folder, or a model of the hub (``owner/name``); without ``text_encoder_3`` T5 is left out.

        :param name: the folder, or the hub's name
        :param device: where the networks compute
        :param dtype: their precision
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, transformers = import_diffusers(), import_transformers()
        name = reachable(name)
        check_parts(name, "Stable Diffusion 3", ("transformer", "vae", "text_encoder", "text_encoder_2"))
        clip = transformers.CLIPTextModelWithProjection
        kinds = {
            "transformer": diffusers.SD3Transformer2DModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": clip,
            "text_encoder_2": clip,
        }
        tokenizers = {"tokenizer": transformers.CLIPTokenizer, "tokenizer_2": transformers.CLIPTokenizer}
        if has_part(name, "text_encoder_3"):
            kinds["text_encoder_3"] = transformers.T5EncoderModel
            tokenizers["tokenizer_3"] = transformers.T5TokenizerFast
        parts = load_networks(name, kinds, device, dtype)
        encoders = [part for key, part in parts.items() if key.startswith("text_encoder")]
        config = parts["transformer"].config
        process = _load_flow(name, load_config(name, "scheduler"), (config.sample_size // config.patch_size) ** 2)
        words = [load_part(kind, name, part) for part, kind in tokenizers.items()]
        return cls(parts["transformer"], parts["vae"], encoders, words, process, batch_size)._read(name, parts, dtype)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """CLIP's last layers but one, T5 behind them (n, tokens, width), and CLIP's pooled prompts."""
        hidden, pooled = [], []
        for tokenizer, encoder in zip(self.tokenizers[:2], self.text_encoders[:2], strict=True):
            output = encoder(clip_tokens(tokenizer, prompts, encoder), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip, width = torch.cat(hidden, dim=-1), self.network.config.joint_attention_dim
        if len(self.text_encoders) > 2:
            t5 = self.text_encoders[2]
            behind = t5(token_ids(self.tokenizers[2], prompts, self.n_tokens).to(t5.device))[0].to(clip)
        else:
            behind = clip.new_zeros(len(prompts), self.n_tokens, width)
        padded = nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return torch.cat([padded, behind], dim=1), torch.cat(pooled, dim=-1)

    def velocity(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """v (B, *event_shape), which the transformer gives as it is."""
        output = self.network(
            hidden_states=x, timestep=1000 * level, encoder_hidden_states=condition[0], pooled_projections=condition[1]
        )
        return output.sample


class Flux(FlowTransformer):
    """
    Flux, whose guidance is distilled into the transformer, which takes its scale, ``guidance_scale``, as a number.

    Its output is the velocity of the guided model, so ρ compares two guided models and not their plain distributions.

    :param transformer: ``FluxTransformer2DModel``
    :param vae: ``AutoencoderKL``, in the precision in which its weights are stored, or a higher one
    :param text_encoders: ``CLIPTextModel`` and ``T5EncoderModel``
    :param tokenizers: one for each
    :param process: levels of the flow, see :func:`flow_process`
    :param batch_size: events per call of the transformer, each with up to three prompts, which bounds memory
    :raises ValueError: for parts that do not fit together
    """

    guidance_scale: ClassVar[float] = 3.5
    n_tokens: ClassVar[int] = 512
    note: ClassVar[str | None] = (
        "Flux has its guidance distilled into it: the reward compares two guided models, not their plain distributions"
    )

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoders: Sequence[Any],
        tokenizers: Sequence[Any],
        process: DiffusionProcess,
        batch_size: int = 4,
    ) -> None:
        config, encoders = transformer.config, [encoder.config for encoder in text_encoders]
        if not config.guidance_embeds:
            raise ValueError(f"a Flux transformer without guidance_embeds, as schnell's, {DISTILLED}")
        got = (encoders[0].hidden_size, encoders[1].d_model)
        if got != (wanted := (config.pooled_projection_dim, config.joint_attention_dim)):
            raise ValueError(f"the text encoders are {got} wide, the transformer wants {wanted}")
        if (config.out_channels or config.in_channels) != config.in_channels or config.in_channels % 4:
            raise ValueError("the transformer takes more than a picture's latents, wanted one for prompts alone")
        shape = _packed_shape(config, vae.config)
        super().__init__(transformer, vae, shape, process, batch_size)
        self.text_encoders, self.tokenizers = tuple(text_encoders), tuple(tokenizers)
        self._embedded_guidance = self.guidance_scale

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | str = "auto",
        dtype: torch.dtype | str = torch.float32,
        batch_size: int = 4,
    ) -> Self:
        """
        Read a pipeline folder, or a model of the hub (``owner/name``); pictures have the autoencoder's sample size.

        :param name: the folder, or the hub's name
        :param device: where the networks compute
        :param dtype: their precision
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, transformers = import_diffusers(), import_transformers()
        name = reachable(name)
        check_parts(name, "Flux", ("transformer", "vae", "text_encoder", "text_encoder_2"))
        kinds = {
            "transformer": diffusers.FluxTransformer2DModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": transformers.CLIPTextModel,
            "text_encoder_2": transformers.T5EncoderModel,
        }
        parts = load_networks(name, kinds, device, dtype)
        tokenizers = [
            load_part(transformers.CLIPTokenizer, name, "tokenizer"),
            load_part(transformers.T5TokenizerFast, name, "tokenizer_2"),
        ]
        _, height, width = _packed_shape(parts["transformer"].config, parts["vae"].config)
        process = _load_flow(name, load_config(name, "scheduler"), height * width // 4)
        encoders = [parts["text_encoder"], parts["text_encoder_2"]]
        pipeline = cls(parts["transformer"], parts["vae"], encoders, tokenizers, process, batch_size)
        return pipeline._read(name, parts, dtype)

    def prompted(self, prompts: Sequence[str] | str, guidance_scale: float | None = None) -> PromptedModel:
        """
        The score model of some prompts.

        :param prompts: one for each event that it will be called with, or a single one for them all
        :param guidance_scale: the number that the transformer takes
        """
        model = self._changed(self.network, self.digests)
        model._embedded_guidance = self.guidance_scale if guidance_scale is None else guidance_scale
        return PromptedModel(model, prompts, 1.0)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """T5's last layer (n, tokens, width) and CLIP's pooled prompt."""
        (words, more), (clip, t5) = self.tokenizers, self.text_encoders
        pooled = clip(clip_tokens(words, prompts, clip)).pooler_output
        return t5(token_ids(more, prompts, self.n_tokens).to(t5.device))[0].to(pooled), pooled

    def velocity(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """v (B, *event_shape); the input of the transformer is patches of 2 × 2."""
        n, _, height, width = x.shape
        rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(x)
        output = self.network(
            hidden_states=nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
            timestep=level,
            guidance=torch.full((n,), self._embedded_guidance, device=x.device),
            encoder_hidden_states=condition[0],
            pooled_projections=condition[1],
            txt_ids=x.new_zeros(condition[0].shape[1], 3),
            img_ids=places,
        ).sample
        patches = output.transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return nn.functional.pixel_shuffle(patches, 2)


def _packed_shape(config: Any, vae: Any) -> tuple[int, int, int]:
    """Latents that make pictures of the autoencoder's sample size, four channels of the transformer for each."""
    side = vae.sample_size if isinstance(vae.sample_size, int) else 0
    side //= 2 ** (len(vae.block_out_channels) - 1)
    if side < 2 or side % 2:
        size = printable(vae.sample_size, 40)
        raise ValueError(f"the autoencoder's sample_size is {size}, wanted pixels that make whole patches")
    return config.in_channels // 4, side, side


def _load_flow(name: str | Path, config: Mapping[str, Any], n_tokens: int) -> DiffusionProcess:
    try:
        return flow_process(config, n_tokens)
    except ValueError as error:
        raise ValueError(at(Path(name) / "scheduler" / CONFIG_FILE, error)) from error
