"""Stable Diffusion XL (Podell et al. 2023) as score models: two text encoders, pooled prompts and picture sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import import_diffusers
from rrpolicy.images.networks import check_score, import_transformers, load_networks
from rrpolicy.images.parts import as_dtype, check_parts, clip_tokens, load_part, reachable, read_index
from rrpolicy.images.schedulers import load_process
from rrpolicy.images.stable_diffusion import Condition, TextToImage
from rrpolicy.images.unet import event_shape_of

N_TIME_IDS = 6  # original size, crop, target size: height and width each


class StableDiffusionXL(TextToImage):
    """
    A text-to-image pipeline with the two text encoders of SDXL, for whole pictures of the UNet's own size.

    :param unet: ``UNet2DConditionModel`` with the added conditions ``text_time``
    :param vae: ``AutoencoderKL``, in the precision in which its weights are stored, or a higher one
    :param text_encoders: ``CLIPTextModel`` and ``CLIPTextModelWithProjection``
    :param tokenizers: one for each
    :param process: noise levels it was trained with, and what it predicts
    :param zeros_for_nothing: whether no prompt is zeros, the pipeline's ``force_zeros_for_empty_prompt``
    :param batch_size: events per call of the UNet, each with up to three prompts, which bounds memory
    :raises ValueError: for parts that do not fit together
    """

    guidance_scale: ClassVar[float] = 5.0

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoders: Sequence[Any],
        tokenizers: Sequence[Any],
        process: DiffusionProcess,
        zeros_for_nothing: bool = True,
        batch_size: int = 4,
    ) -> None:
        config = unet.config
        width, wanted = sum(encoder.config.hidden_size for encoder in text_encoders), config.cross_attention_dim
        if width != wanted:
            raise ValueError(f"the text encoders are {width} wide together, the UNet wants {wanted}")
        if config.get("addition_embed_type") != "text_time":
            raise ValueError("the UNet does not take the picture's size beside the prompt, wanted SDXL's")
        added = N_TIME_IDS * config.addition_time_embed_dim + text_encoders[1].config.projection_dim
        if (wanted := config.projection_class_embeddings_input_dim) != added:
            raise ValueError(
                f"the UNet takes added conditions of {wanted} numbers, SDXL's base has {added}: a refiner "
                "is no model of pictures alone"
            )
        check_score(unet)
        super().__init__(unet, vae, event_shape_of(unet), process, batch_size)
        self.text_encoders, self.tokenizers = tuple(text_encoders), tuple(tokenizers)
        self.zeros_for_nothing = zeros_for_nothing

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
        :param dtype: their precision; the autoencoder stays in float32 where its configuration has ``force_upcast``
        :param weights: one file of all weights, as the original code has it, in the place of those of the folder
        :raises ValueError: without the extra, or for a folder that is none, naming it and what it lacks
        """
        diffusers, transformers = import_diffusers(), import_transformers()
        name = reachable(name)
        check_parts(name, "Stable Diffusion XL", ("unet", "text_encoder", "text_encoder_2"))
        kinds = {
            "unet": diffusers.UNet2DConditionModel,
            "vae": diffusers.AutoencoderKL,
            "text_encoder": transformers.CLIPTextModel,
            "text_encoder_2": transformers.CLIPTextModelWithProjection,
        }
        parts = load_networks(name, kinds, device, dtype, weights)
        zeros = read_index(name).get("force_zeros_for_empty_prompt", True) is True
        pipeline = cls(
            parts["unet"],
            parts["vae"],
            [parts["text_encoder"], parts["text_encoder_2"]],
            [load_part(transformers.CLIPTokenizer, name, part) for part in ("tokenizer", "tokenizer_2")],
            load_process(name, "scheduler"),
            zeros,
            batch_size,
        )
        upcast = as_dtype(dtype) is torch.float16 and parts["vae"].config.get("force_upcast")
        return pipeline._read(name, parts, torch.float32 if upcast else dtype, weights)

    unet = property(lambda self: self.network, doc="The network that denoises.")

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """The last layers but one of both text encoders (n, tokens, width), and the second one's pooled prompt."""
        hidden, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            output = encoder(clip_tokens(tokenizer, prompts, encoder), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled = output[0]
        assert pooled is not None
        return torch.cat(hidden, dim=-1), pooled

    def nothing(self) -> Condition:
        """The UNet's input where there is no prompt: zeros, or the empty prompt."""
        empty = self.embed([""])
        return tuple(torch.zeros_like(part) for part in empty) if self.zeros_for_nothing else empty

    def noise(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Predicted noise (B, *event_shape) of pictures that are neither cropped nor scaled."""
        unet, size = self.network, self.codec.image_shape[1:]
        hidden, pooled = condition
        added = {"text_embeds": pooled, "time_ids": pooled.new_tensor([(*size, 0, 0, *size)]).expand(len(x_t), -1)}
        inputs = x_t.to(unet.device, unet.dtype)
        output = unet(inputs, t.to(unet.device), encoder_hidden_states=hidden, added_cond_kwargs=added).sample
        return self.process.eps_from_output(x_t, t, output.to(x_t))
