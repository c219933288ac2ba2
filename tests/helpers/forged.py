"""Archives that the library would not write: any configuration, card and tensors behind correct checksums."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rrpolicy.common.archive import SCHEMA_VERSION


def forge(
    path: Path,
    kind: str,
    config: Any,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    card: Any = None,
    **header: Any,
) -> Path:
    """
    Write an archive without a check.

    :param header: entries of config.json over those that a good archive has
    """
    members = {"card.json": json.dumps({} if card is None else card).encode()}
    for group, named in tensors.items():
        flat = {name: tensor.detach().contiguous().clone() for name, tensor in named.items()}
        members[f"{group}.safetensors"] = safetensors.torch.save(flat)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    values = {"schema": SCHEMA_VERSION, "kind": kind, "version": "0", "sha256": sums, "config": config, **header}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {"config.json": json.dumps(values).encode(), **members}.items():
            archive.writestr(name, data)
    return path
