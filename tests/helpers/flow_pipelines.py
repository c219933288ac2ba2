"""The smallest flow-matching pipelines of Stable Diffusion 3 and Flux, in folders as diffusers leaves them."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel, SD3Transformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from helpers.pipelines import made_once, stable_diffusion_parts, tokenizer

T5 = {"d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 40}


def t5_tokenizer() -> T5TokenizerFast:
    letters = [(letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    pieces = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(tokenizer_object=pieces, extra_ids=0, model_max_length=512)


def _vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64),
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=1.5,
        sample_size=16,
        shift_factor=0.25,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _text(folder: Path, seed: int) -> tuple[Any, Any, Any]:
    """CLIP with a projection, T5, and CLIP's configuration."""
    config = stable_diffusion_parts(folder, seed)["text_encoder"].config.to_dict()
    torch.manual_seed(seed)
    return (
        CLIPTextModelWithProjection(CLIPTextConfig(**{**config, "projection_dim": 24})).eval(),
        T5EncoderModel(T5Config(**T5)).eval(),
        config,
    )


def _write(folder: Path, parts: dict[str, Any], kind: str) -> Path:
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    return folder


@made_once
def write_sd3(folder: Path, seed: int = 0, with_t5: bool = True, **scheduler: Any) -> Path:
    """A folder of a StableDiffusion3Pipeline; pictures of 16 × 16."""
    clip, t5, _ = _text(folder, seed)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        pos_embed_max_size=8,
    ).eval()
    parts = {
        "transformer": transformer,
        "vae": _vae(),
        "text_encoder": clip,
        "text_encoder_2": clip,
        "tokenizer": tokenizer(folder),
        "tokenizer_2": tokenizer(folder, "tokenizer_2"),
        "scheduler": FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
    }
    if with_t5:
        parts |= {"text_encoder_3": t5, "tokenizer_3": t5_tokenizer()}
    return _write(folder, parts, "StableDiffusion3Pipeline")


@made_once
def write_flux(folder: Path, seed: int = 0, guidance_embeds: bool = True, **scheduler: Any) -> Path:
    """A folder of a FluxPipeline; pictures of 16 × 16."""
    _, t5, _ = _text(folder, seed)
    text_encoder = stable_diffusion_parts(folder, seed)["text_encoder"]
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    parts = {
        "transformer": transformer,
        "vae": _vae(),
        "text_encoder": text_encoder,
        "text_encoder_2": t5,
        "tokenizer": tokenizer(folder),
        "tokenizer_2": t5_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **scheduler}),
    }
    return _write(folder, parts, "FluxPipeline")
