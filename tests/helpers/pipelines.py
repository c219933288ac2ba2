"""The smallest image models that go through the real loading code: folders of diffusers pipelines, written offline."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

Write = Callable[..., Path]


def made_once(write: Write) -> Write:
    """Writes a folder, which is made once in each process for the same arguments: its files are kept in memory."""
    kept: dict[Any, tuple[dict[Path, bytes], torch.Tensor]] = {}

    @functools.wraps(write)
    def written(folder: Path, *args: Any, **kwargs: Any) -> Path:
        key = args, tuple(sorted(kwargs.items()))
        if key not in kept:
            with tempfile.TemporaryDirectory() as made:
                write(Path(made), *args, **kwargs)
                files = [path for path in Path(made).rglob("*") if path.is_file()]
                contents = {path.relative_to(made): path.read_bytes() for path in files}
            kept[key] = contents, torch.get_rng_state()  # which is seeded anew by what makes the weights
        contents, state = kept[key]
        for name, content in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        torch.set_rng_state(state)
        return folder

    return written


WORDS = ("a", "cat", "dog", "photo", "of", "blood", "weapons", "hate")
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's levels


def unet(seed: int = 0, channels: int = 1, size: Any = 8, **kwargs: Any) -> UNet2DModel:
    """A random UNet2DModel of some 10 000 parameters."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
        **kwargs,
    ).eval()


@made_once
def write_ddpm(folder: Path, seed: int = 0, n_steps: int = 20, **kwargs: Any) -> Path:
    """A DDPMPipeline folder."""
    scheduler = DDPMScheduler(num_train_timesteps=n_steps, beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(unet(seed, **kwargs), scheduler).save_pretrained(folder, safe_serialization=True)
    return folder


def write_codec(folder: Path, **values: Any) -> None:
    (folder / "rrpolicy.json").write_text(json.dumps({"codec": values}))


def stable_diffusion_parts(folder: Path, seed: int = 0, size: int = 8, vae_seed: int = 0) -> dict[str, Any]:
    """Random parts of a Stable Diffusion pipeline whose images are (3, 2 * size, 2 * size)."""
    torch.manual_seed(seed)
    network = UNet2DConditionModel(
        sample_size=size,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    torch.manual_seed(vae_seed)
    vae = AutoencoderKL(
        block_out_channels=(32, 64),
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=2 * size,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    torch.manual_seed(seed + 1000)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=1000,
        max_position_embeddings=24,
        bos_token_id=0,
        eos_token_id=1,
    )
    return {
        "unet": network.eval(),
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(config).eval(),
        "tokenizer": tokenizer(folder),
        "scheduler": DDIMScheduler(num_train_timesteps=1000, clip_sample=False, steps_offset=1, **SCALED),
    }


@made_once
def write_stable_diffusion(folder: Path, seed: int = 0, **kwargs: Any) -> Path:
    """A pipeline folder as ``StableDiffusionPipeline.save_pretrained`` leaves it, without its safety checker."""
    parts = stable_diffusion_parts(folder, seed, **kwargs)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    names = {
        name: ["transformers" if "t" in name[:1] else "diffusers", type(part).__name__] for name, part in parts.items()
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **names}))
    return folder


@made_once
def write_stable_diffusion_xl(folder: Path, seed: int = 0, **index: Any) -> Path:
    """A pipeline folder as ``StableDiffusionXLPipeline.save_pretrained`` leaves it; pictures of 16 × 16."""
    parts = stable_diffusion_parts(folder, seed)
    torch.manual_seed(seed)
    config = {
        **parts["unet"].config,
        "cross_attention_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 24,
    }
    config.pop("_use_default_values", None)  # names entries whose values would be left out again
    parts["unet"] = UNet2DConditionModel.from_config(config).eval()
    second = CLIPTextConfig(**{**parts["text_encoder"].config.to_dict(), "projection_dim": 24})
    parts["text_encoder_2"] = CLIPTextModelWithProjection(second).eval()
    parts["tokenizer_2"] = tokenizer(folder, "tokenizer_2")
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", **index}))
    return folder


def tokenizer(folder: Path, name: str = "tokenizer") -> CLIPTokenizer:
    """Byte pairs learned from nothing: letters, and a few whole words."""
    files = folder / name
    files.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = f"{pieces[0]} {pieces[1]}"
            if pair not in merges:
                merges.append(pair)
                tokens.append(pieces[0] + pieces[1])
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    (files / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (files / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(files / "vocab.json", files / "merges.txt", model_max_length=24)
