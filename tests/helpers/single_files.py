"""One-file checkpoints in the original layout, written from tiny pipelines by a table of names, layer by layer."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
}
VAE = {
    "encoder.conv_norm_out": "encoder.norm_out",
    "decoder.conv_norm_out": "decoder.norm_out",
    **{f"encoder.down_blocks.{i}.resnets.{j}": f"encoder.down.{i}.block.{j}" for i in range(2) for j in range(1)},
    "encoder.down_blocks.0.downsamplers.0.conv": "encoder.down.0.downsample.conv",
    **{f"decoder.up_blocks.{i}.resnets.{j}": f"decoder.up.{1 - i}.block.{j}" for i in range(2) for j in range(2)},
    "decoder.up_blocks.0.upsamplers.0.conv": "decoder.up.1.upsample.conv",
    **{
        f"{half}.mid_block.resnets.{j}": f"{half}.mid.block_{j + 1}"
        for half in ("encoder", "decoder")
        for j in range(2)
    },
    **{
        f"{half}.mid_block.attentions.0.{name}": f"{half}.mid.attn_1.{other}"
        for half in ("encoder", "decoder")
        for name, other in (
            ("group_norm", "norm"),
            ("to_q", "q"),
            ("to_k", "k"),
            ("to_v", "v"),
            ("to_out.0", "proj_out"),
        )
    },
}
CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def renamed(key: str, table: dict[str, str], ends: dict[str, str] | None = None) -> str:
    """A key below the longest beginning that the table has; what is not in it keeps its name."""
    for begin in sorted(table, key=len, reverse=True):
        if key.startswith(f"{begin}."):
            rest = key.removeprefix(f"{begin}.")
            for name, other in (ends or {}).items() if ".resnets." in key else ():
                rest = rest.replace(name, other)
            return f"{table[begin]}.{rest}"
    return key


def unet_tensors(unet: Any) -> dict[str, torch.Tensor]:
    """Without the prefix that a whole pipeline has before them."""
    names = {key: renamed(key, UNET, RESNET) for key in unet.state_dict()}
    assert not [key for key, name in names.items() if key == name], "a layer without an original name"
    return {names[key]: value.contiguous() for key, value in unet.state_dict().items()}


def vae_tensors(vae: Any) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in vae.state_dict().items():
        name = renamed(key, VAE, {"conv_shortcut": "nin_shortcut"})
        conv = ".attn_1." in name and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[:, :, None, None].contiguous() if conv else value
    return found


def clip_tensors(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in encoder.state_dict().items()}


def open_clip_tensors(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    state, found = encoder.state_dict(), {}
    found["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    found["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    for end in ("weight", "bias"):
        found[f"ln_final.{end}"] = state[f"text_model.final_layer_norm.{end}"]
        for i in range(encoder.config.num_hidden_layers):
            layer, other = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
            found[f"{other}.attn.in_proj_{end}"] = torch.cat(
                [state[f"{layer}.self_attn.{one}_proj.{end}"] for one in "qkv"]
            )
            for name, theirs in CLIP.items():
                found[f"{other}.{theirs}.{end}"] = state[f"{layer}.{name}.{end}"]
    if "text_projection.weight" in state:
        found["text_projection"] = state["text_projection.weight"].T.contiguous()
    return {f"{prefix}{name}": value for name, value in found.items()}


def pipeline_tensors(parts: dict[str, Any], encoder: str = "clip") -> dict[str, torch.Tensor]:
    """All tensors of a pipeline: of one with a CLIP (1) or an OpenCLIP (2), or with two encoders (XL)."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in unet_tensors(parts["unet"]).items()}
    tensors |= vae_tensors(parts["vae"])
    if "text_encoder_2" in parts:
        tensors |= clip_tensors(parts["text_encoder"], "conditioner.embedders.0.transformer.")
        tensors |= open_clip_tensors(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    elif encoder == "clip":
        tensors |= clip_tensors(parts["text_encoder"], "cond_stage_model.transformer.")
    else:
        tensors |= open_clip_tensors(parts["text_encoder"], "cond_stage_model.model.")
    return tensors


def write_file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path)
    return path
