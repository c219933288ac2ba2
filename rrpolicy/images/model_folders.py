"""Folders of ``diffusers`` and ``transformers`` models as data of strangers: looked at before they are loaded.

A configuration of a few lines can ask for gigabytes; here it is read first, the network is built on torch's meta
device, where it costs nothing, and its size is compared with that of the weights that lie beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from rrpolicy.common.messages import printable
from rrpolicy.common.schema import check_depth, from_json, read_small

MAX_NUMBER = 2**24  # of anything that a configuration counts
MAX_LAYERS = 256
MAX_LEVELS = 10_000
TYPES = ("F16", "BF16", "F32", "F64", "I32", "I64")
STORED_BYTES = 2  # of a number in half precision, the smallest that is read


def check_folder(kind: Any, folder: Path) -> None:
    """
    Refuse a model whose configuration asks for more than its weights hold.

    :param kind: the class that will read it, of diffusers or transformers
    :param folder: with ``config.json`` and weights in safetensors, or ``scheduler_config.json``
    :raises ValueError: naming the file in the folder and its fault
    """
    for path in (folder / "config.json", folder / "scheduler_config.json"):
        if not path.exists():
            continue
        try:
            config = from_json(read_small(path))
            check_depth(config, "it")
            if not isinstance(config, dict):
                raise ValueError(f"holds a {type(config).__name__}, wanted an object")
            _check_numbers("it", config)
            if issubclass(kind, nn.Module):
                weights = sorted(folder.glob("*.safetensors"))
                for file in weights:
                    _check_types(file)
                _check_size(kind, config, sum(file.stat().st_size for file in weights))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path.name}: {printable(error, 200)}") from error


def _check_numbers(name: str, value: Any) -> None:
    """Bounds for every whole number and every list, by the name that they stand under."""
    bound = MAX_LEVELS if "timesteps" in name else MAX_LAYERS if "layers" in name else MAX_NUMBER
    if isinstance(value, int) and abs(value) > bound:
        raise ValueError(f"{printable(name)} is {printable(value)}, at most {bound} is read")
    if isinstance(value, list):
        longest = MAX_LEVELS if "betas" in name or "timesteps" in name else MAX_LAYERS
        if len(value) > longest:
            raise ValueError(f"{printable(name)} has {len(value)} entries, at most {longest} are read")
        value = {f"{name}[{i}]": one for i, one in enumerate(value)}
    if isinstance(value, dict):
        for inner, one in value.items():
            _check_numbers(inner, one)


def _check_types(path: Path) -> None:
    """
    :raises ValueError: for weights of a type that no network computes in
    """
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  a mapping in name only
            kind = file.get_slice(name).get_dtype()
            if kind not in TYPES:
                raise ValueError(f"{path.name} holds {printable(name)} of type {kind}, wanted {' or '.join(TYPES)}")


def _check_size(kind: Any, config: dict[str, Any], n_bytes: int) -> None:
    try:
        with torch.device("meta"):
            known = getattr(kind, "config_class", None)  # transformers' classes are made from an object
            network = kind.from_config(config) if known is None else kind(known.from_dict(config))
            if kind.__name__ == "UNet2DModel":  # once through: what goes together is known only then
                side = 2 ** (len(network.config.block_out_channels) + 2)
                network(torch.zeros(1, network.config.in_channels, side, side), 0)
    except Exception as error:  # whatever the library raises, the configuration is at fault
        raise ValueError(f"is no configuration of a {kind.__name__}: {printable(error)}") from error
    needed = STORED_BYTES * sum(parameter.numel() for parameter in network.parameters())
    if needed > n_bytes:
        raise ValueError(f"describes {needed} bytes of weights or more, beside it lie {n_bytes}")
