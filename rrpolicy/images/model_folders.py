"""Folders of ``diffusers`` and ``transformers`` models as untrusted data: checked before they are loaded.

A configuration of a few lines can allocate gigabytes; here it is read first, the network is built on torch's meta
device, where it costs nothing, and its size is compared with that of the weights that lie beside it.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import lru_cache
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
MAX_BYTES = {"vocab.json": 2**23, "merges.txt": 2**23, "tokenizer.json": 2**24}  # of other files: as of any JSON
TYPES = ("F16", "BF16", "F32", "F64", "I32", "I64")
STORED_BYTES = 2  # of a number in half precision, the smallest that is read
_ABOUT = {
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "dropout",
    "dtype",
    "model_type",
    "output_past",
    "torch_dtype",
    "transformers_version",
}
_PLAIN_NAME = re.compile(r"(\./)?[\w-][\w.-]{0,199}")


def check_folder(kind: Any, folder: Path, n_bytes: int | None = None) -> None:
    """
    Refuse a model whose configuration is larger than its weights, or whose files lead out of their folder.

    :param kind: the class that will read it, of diffusers or transformers
    :param folder: with ``config.json`` and weights in safetensors, ``scheduler_config.json``, or a tokenizer
    :param n_bytes: of the weights that its configuration is for; None: of those in the folder
    :raises ValueError: naming the file in the folder and its fault
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if not path.is_file() and not path.is_dir():
                raise ValueError("is no regular file")
            if path.suffix == ".safetensors":
                check_types(path)
            elif path.suffix in (".json", ".txt") and path.is_file():
                _check_text(kind, path, n_bytes)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path.name}: {printable(error, 200)}") from error


def _check_text(kind: Any, path: Path, n_bytes: int | None) -> None:
    """A configuration, an index of weights or a part of a tokenizer."""
    content = read_small(path, MAX_BYTES.get(path.name, 2**22))
    if path.suffix != ".json" or path.name in MAX_BYTES:
        return
    config = from_json(content)
    check_depth(config, "it")
    if not isinstance(config, dict):
        raise ValueError(f"holds a {type(config).__name__}, wanted an object")
    if ".safetensors.index." in path.name:
        _check_index(path, config)
        return
    _check_names(config)
    _check_numbers("it", config)
    if path.name == "config.json" and issubclass(kind, nn.Module):
        _check_fields(kind, config)
        beside = sum(file.stat().st_size for file in path.parent.glob("*.safetensors"))
        _check_size(kind, config, beside if n_bytes is None else n_bytes)


def _check_index(path: Path, index: dict[str, Any]) -> None:
    """The files of weights in several parts: safetensors in the same folder and nothing else."""
    files = index.get("weight_map")
    names = set(map(str, files.values())) if isinstance(files, dict) else {"none"}
    for name in sorted(names):
        if not (_PLAIN_NAME.fullmatch(name) and name.endswith(".safetensors") and (path.parent / name).is_file()):
            raise ValueError(f"weights are said to be in {printable(name)}, wanted safetensors files of this folder")


def _check_names(config: Any) -> None:
    """Entries by which the libraries would open a path, download a repository or run its code."""
    for name, value in config.items() if isinstance(config, dict) else ():
        runs = any(word in name for word in ("attn_implementation", "quantization", "auto_map", "trust_remote_code"))
        leads = name.endswith("_file") and not (isinstance(value, str) and _PLAIN_NAME.fullmatch(value))
        if (runs and value is not None) or (leads and value is not None) or name in ("vocab_file", "merges_file"):
            raise ValueError(f"the entry {printable(name)} is not followed, since it could open or run other files")
        _check_names(value)


def _check_fields(kind: Any, config: dict[str, Any]) -> None:
    """Check that there are only fields of the class: its constructor's arguments, or what its own configuration has."""
    known = getattr(kind, "config_class", None)
    fields = set(inspect.signature(kind.__init__).parameters) if known is None else set(known().to_dict())
    if unknown := sorted(set(config) - fields - _ABOUT):
        raise ValueError(f"has the entry {printable(unknown[0])}, which a {kind.__name__} does not know")


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


def check_types(path: Path) -> None:
    """
    Check that a file holds only weights of types that networks compute in.

    :raises ValueError: for weights of a type that no network computes in
    """
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  a mapping in name only
            kind = file.get_slice(name).get_dtype()
            if kind not in TYPES:
                raise ValueError(f"{path.name} holds {printable(name)} of type {kind}, wanted {' or '.join(TYPES)}")


def _check_size(kind: Any, config: dict[str, Any], n_bytes: int) -> None:
    needed = _needed_bytes(kind, json.dumps(config))
    if needed > n_bytes:
        raise ValueError(f"describes {needed} bytes of weights or more, there are {n_bytes}")


@lru_cache(maxsize=32)  # base and expert have the same
def _needed_bytes(kind: Any, text: str) -> int:
    """Bytes that the weights of a configuration have at least."""
    config = json.loads(text)
    try:
        with torch.device("meta"):
            known = getattr(kind, "config_class", None)  # transformers' classes are made from an object
            network = kind.from_config(config) if known is None else kind(known.from_dict(config))
            if kind.__name__ == "UNet2DModel":  # once through: what goes together is known only then
                side = 2 ** (len(network.config.block_out_channels) + 2)
                label = None if network.class_embedding is None else torch.zeros(1, dtype=torch.int64)
                network(torch.zeros(1, network.config.in_channels, side, side), 0, label)
    except Exception as error:  # whatever the library raises, the configuration is at fault
        raise ValueError(f"is no configuration of a {kind.__name__}: {printable(error)}") from error
    return STORED_BYTES * sum(parameter.numel() for parameter in network.parameters())
