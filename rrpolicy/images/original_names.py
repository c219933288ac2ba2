"""Names in files of the original code of Stable Diffusion and XL, for those of diffusers and transformers.

There, the layers of a U-Net's down path are numbered through, as those of its up path are; an attention of OpenCLIP has
its three inputs in one matrix. Everything else has another name and the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ENCODERS = {
    "text_encoder": (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.model.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
"""Where a text encoder may lie; below ``model.`` as OpenCLIP, else as transformers has it."""
PREFIXES = (UNET, VAE, "cond_stage_model.", "conditioner.")

_STEMS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_BLOCK = re.compile(
    r"(?P<way>down|mid|up)_blocks?(\.(?P<block>\d+))?\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<i>\d+)"
    r"\.(?P<rest>.+)"
)
_LAYER = re.compile(r"text_model\.encoder\.layers\.(?P<i>\d+)\.(?P<rest>.+)\.(?P<end>weight|bias)")
_INPUTS = {f"self_attn.{one}_proj": i for i, one in enumerate("qkv")}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Source(NamedTuple):
    """Where in a file a tensor of a network lies: its name there, and what is done with it."""

    name: str
    change: Callable[[Tensor], Tensor] = _same


def unet_module(name: str, config: Mapping[str, Any]) -> str | None:
    """
    The original name of a layer of a ``UNet2DConditionModel``; None for one that the original code has not.

    :param name: of a module, such as ``"down_blocks.0.resnets.1.conv1"``
    :param config: the network's
    """
    n_layers, found = config["layers_per_block"], _BLOCK.fullmatch(name)
    if found is None or not isinstance(n_layers, int):
        return _STEMS.get(name) if isinstance(n_layers, int) else None
    way, kind, rest = found["way"], found["kind"], found["rest"]
    block, i, attentive = int(found["block"] or 0), int(found["i"]), kind == "attentions"
    if kind == "resnets":
        if rest not in _RESNET:
            return None
        rest = _RESNET[rest]
    if way == "mid":
        return f"middle_block.{2 * i + attentive}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (n_layers + 1)}.0.op"
    if kind == "upsamplers":
        behind = 1 + ("CrossAttn" in config["up_block_types"][block])
        return f"output_blocks.{block * (n_layers + 1) + n_layers}.{behind}.{rest}"
    place = block * (n_layers + 1) + i
    return f"{f'input_blocks.{place + 1}' if way == 'down' else f'output_blocks.{place}'}.{int(attentive)}.{rest}"


def unet_source(key: str, config: Mapping[str, Any]) -> Source | None:
    """Where a tensor of a ``UNet2DConditionModel`` lies; None for one that the original code has not."""
    module, _, end = key.rpartition(".")
    name = unet_module(module, config)
    return None if name is None else Source(f"{name}.{end}")


def vae_source(key: str, config: Mapping[str, Any]) -> Source:
    """Where a tensor of an ``AutoencoderKL`` lies."""
    module, _, end = key.rpartition(".")
    half, _, inner = module.partition(".")
    found = _BLOCK.fullmatch(inner)
    if found is None:
        return Source(f"{module.replace('conv_norm_out', 'norm_out')}.{end}")
    way, kind, rest, i = found["way"], found["kind"], found["rest"], int(found["i"])
    if kind == "attentions":
        change = (lambda tensor: tensor.flatten(1)) if end == "weight" and rest != "group_norm" else _same
        return Source(f"{half}.mid.attn_{i + 1}.{_ATTENTION.get(rest, rest)}.{end}", change)
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if way == "mid":
        return Source(f"{half}.mid.block_{i + 1}.{rest}.{end}")
    block = int(found["block"])
    block = block if way == "down" else len(config["block_out_channels"]) - 1 - block
    place = f"block.{i}" if kind == "resnets" else f"{way}sample"
    return Source(f"{half}.{way}.{block}.{place}.{rest}.{end}")


def open_clip_source(key: str) -> Source:
    """Where a tensor of transformers' CLIP lies in an OpenCLIP."""
    if key == "text_projection.weight":
        return Source("text_projection", lambda tensor: tensor.T.contiguous())
    found = _LAYER.fullmatch(key)
    if found is None:
        return Source(_CLIP.get(key, key))
    layer, rest, end = f"transformer.resblocks.{found['i']}", found["rest"], found["end"]
    if (third := _INPUTS.get(rest)) is not None:
        return Source(f"{layer}.attn.in_proj_{end}", lambda tensor: tensor.tensor_split(3)[third].contiguous())
    return Source(f"{layer}.{_CLIP_LAYER.get(rest, rest)}.{end}")
