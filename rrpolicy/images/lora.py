"""Low-rank changes of a network (LoRA, Hu et al. 2021) added to its weights: W + (alpha / r) B A.

Read from safetensors as diffusers, peft and kohya's scripts write them, without a package for it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import check_depth, from_json, read_small
from rrpolicy.images.model_folders import check_types
from rrpolicy.images.original_names import unet_module

METADATA = "lora_adapter_metadata"  # in the header of a file of diffusers
ADAPTER_CONFIG = "adapter_config.json"  # beside a file of peft
_NAME = re.compile(
    r"(?P<module>.+?)(\.lora_(?P<peft>[AB])(\.default)?\.weight|[._]lora[._](?P<old>down|up)\.weight|\.(?P<alpha>alpha))"
)
_DOWN = {"A": "down", "B": "up"}


def with_lora(network: Any, path: str | Path, part: str) -> Any:
    """
    A copy of a network with a low-rank change added.

    :param network: a diffusers network
    :param path: file of safetensors
    :param part: what the network is called in its pipeline, ``"unet"`` or ``"transformer"``
    :raises ValueError: for a file that is none, or changes something else than weights of the network
    """
    try:
        changes = _read(Path(path), part)
        changed = copy.deepcopy(network)
        modules = _modules(changed)
        for name, values in changes.items():
            module = modules.get(name)
            if not isinstance(module, nn.Linear | nn.Conv2d):
                raise ValueError(f"changes {printable(name, 100)}, which is no layer of this {type(network).__name__}")
            _add(module, name, values)
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(at(path, f"is no LoRA that can be added: {error}")) from error
    return changed


def _read(path: Path, part: str) -> dict[str, dict[str, Tensor]]:
    """For each module ``down`` (r, in), ``up`` (out, r) and ``scale``."""
    if path.suffix != ".safetensors":
        raise ValueError("wanted a file of safetensors; others may run code and are not opened")
    if not path.is_file():
        raise ValueError("no such file")
    check_types(path)
    changes: dict[str, dict[str, Tensor]] = {}
    for name, tensor in safetensors.torch.load_file(path).items():
        if name.startswith(("text_encoder", "lora_te")):
            raise ValueError(f"changes the text encoder as well, wanted one of the {part} alone")
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"holds {printable(name, 100)}, wanted pairs lora_A and lora_B or lora_down and lora_up")
        role = "alpha" if found["alpha"] else _DOWN[found["peft"]] if found["peft"] else found["old"]
        module = _module_of(found["module"], part)
        if role in changes.setdefault(module, {}):
            raise ValueError(f"changes {printable(module, 100)} twice")
        changes[module][role] = tensor.float()
    factor = _scale_of(path, part)
    for module, values in changes.items():
        if not {"down", "up"} <= set(values):
            raise ValueError(f"lacks one of the pair of {printable(module, 100)}")
        rank = len(values["down"])
        alpha = values.pop("alpha", None)
        values["scale"] = torch.tensor(factor(rank)) if alpha is None else alpha.reshape(()) / rank
    if not changes:
        raise ValueError("holds nothing")
    return changes


def _modules(network: Any) -> dict[str, nn.Module]:
    """The layers of a network by all names that they go by: its own, and for a U-Net those of the original code."""
    found = {}
    for name, module in network.named_modules():
        theirs = unet_module(name, network.config) if type(network).__name__ == "UNet2DConditionModel" else None
        for one in (name,) if theirs is None else (name, theirs):
            found[one] = found[one.replace(".", "_")] = module  # as kohya's scripts name them
    return found


def _module_of(name: str, part: str) -> str:
    """The network's own name of a module."""
    for prefix in ("base_model.model.", "diffusion_model.", f"{part}.", f"lora_{part}_"):
        name = name.removeprefix(prefix)
    name = name.replace(".processor.", ".")  # diffusers before 0.20: attn1.processor.to_q_lora
    return f"{name}.0" if name.endswith(".to_out") else name


def _scale_of(path: Path, part: str) -> Any:
    """The scale for a rank, as the configuration in the file or beside it has it; 1 without one."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get(METADATA)
    beside = path.with_name(ADAPTER_CONFIG)
    if metadata is not None:
        config = from_json(metadata)
        check_depth(config, METADATA)
        config = {key.removeprefix(f"{part}."): value for key, value in config.items()} if config else {}
    elif beside.is_file():
        config = from_json(read_small(beside))
        check_depth(config, ADAPTER_CONFIG)
    else:
        return lambda rank: 1.0
    return _scale(config)


def _scale(config: Any) -> Any:
    if not isinstance(config, Mapping) or config.get("use_dora") or config.get("alpha_pattern"):
        raise ValueError("its configuration has an alpha_pattern or use_dora, wanted neither")
    alpha, root = config.get("lora_alpha"), bool(config.get("use_rslora"))
    if alpha is None:
        return lambda rank: 1.0
    if not isinstance(alpha, int | float) or not 0 <= alpha <= 1e6:
        raise ValueError(f"lora_alpha is {printable(alpha, 40)}, wanted a number")
    return lambda rank: float(alpha) / (rank**0.5 if root else rank)


def _add(module: nn.Linear | nn.Conv2d, name: str, values: Mapping[str, Tensor]) -> None:
    weight, down, up = module.weight, values["down"].flatten(1), values["up"].flatten(1)
    if up.shape[1] != down.shape[0] or (len(up), down.shape[1]) != (len(weight), weight[0].numel()):
        raise ValueError(
            f"{printable(name, 80)} is changed by {tuple(up.shape)} times {tuple(down.shape)}, which does "
            f"not make weights {tuple(weight.shape)}"
        )
    change = values["scale"] * (up @ down)
    if not bool(torch.isfinite(change).all()):
        raise ValueError(f"{printable(name, 80)} is changed by NaN or infinite numbers")
    module.weight.data = (weight.float() + change.view_as(weight).to(weight.device)).to(weight.dtype)
