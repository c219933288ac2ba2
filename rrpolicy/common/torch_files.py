"""Named tensors that ``torch.save`` wrote, read from torch's zip format without unpickling anything.

The pickle inside is followed on paper (`common.pickles`); of what it describes only whole, contiguous tensors are
taken, each backed by as many bytes as it declares. A stride of 0 or a shared storage cannot make a small file large.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.messages import printable
from rrpolicy.common.pickles import Node, traced
from rrpolicy.common.zips import read_members

MAX_MEMBERS = 4096
_DTYPES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4"}


def read_weights(data: bytes, group: str | Sequence[str] = ()) -> dict[str, Tensor]:
    """
    Named tensors that ``torch.save`` wrote.

    :param data: the file's content, torch's zip format
    :param group: key of the tensors in a file that holds several groups and other values, or keys of groups in each
        other; the others are not read
    :return: CPU tensors in the order of the file
    :raises ValueError: for another format, anything but named tensors, or tensors that the file does not hold
    """
    members = read_members(io.BytesIO(data), MAX_MEMBERS)
    pickles = [name for name in members if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} members data.pkl, wanted one")
    folder = pickles[0].removesuffix("data.pkl")
    if members.get(f"{folder}byteorder", b"little") != b"little":
        raise ValueError("its numbers are not little-endian")
    root = traced(members[pickles[0]])
    entries = _entries(root)
    for key in (group,) if isinstance(group, str) else group:
        if key not in entries:
            raise ValueError(f"it has no {key!r}, its keys are {printable(sorted(entries))}")
        entries = _entries(entries[key])
    weights, room = {}, len(data)
    for name, node in entries.items():
        weights[name] = _tensor(name, node, members, folder)
        room -= weights[name].nbytes
        if room < 0:
            raise ValueError(f"its tensors hold more bytes than the file's {len(data)}")
    return weights


def _entries(value: Any) -> dict[str, Any]:
    if isinstance(value, Node) and value.name == "collections OrderedDict":
        return value.items
    if not isinstance(value, dict):
        kind = f"what {printable(value.name)} would build" if isinstance(value, Node) else f"a {type(value).__name__}"
        raise ValueError(f"it holds {kind}, wanted named tensors")
    return value


def _tensor(name: str, node: Any, members: dict[str, bytes], folder: str) -> Tensor:
    """A tensor whose storage is a member of the file."""
    try:
        if node.name == "torch._utils _rebuild_parameter":
            node = node.parts[0]
        if node.name != "torch._utils _rebuild_tensor_v2":
            raise ValueError(f"{printable(name)} would be built by {printable(node.name)}, wanted a tensor")
        storage, offset, size, stride = node.parts[:4]
        _, kind, key, _, n_stored = storage.parts
        dtype = np.dtype(_DTYPES[kind.name.removeprefix("torch ").removesuffix("Storage")])
        content = members[f"{folder}data/{key}"] if isinstance(key, str) else b""
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{printable(name)} is no tensor that can be read: {printable(error)}") from error
    if not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError(f"{printable(name)} has sizes that cannot be right")
    sizes = (offset, n_stored, *size, *stride)
    if not all(type(number) is int and 0 <= number < 2**40 for number in sizes) or len(size) != len(stride):
        raise ValueError(f"{printable(name)} has sizes that cannot be right")
    if 0 in size and max(size) > 0:
        raise ValueError(f"{printable(name)} has shape {size} and no numbers")
    count, wanted = math.prod(size), [math.prod(size[i + 1 :]) for i in range(len(size))]
    contiguous = all(mine == other for mine, other, n in zip(stride, wanted, size, strict=True) if n != 1)
    if not contiguous or len(content) != n_stored * dtype.itemsize or offset + count > n_stored:
        raise ValueError(f"{printable(name)} is no contiguous tensor that the file holds")
    values = np.frombuffer(content, dtype, count, offset * dtype.itemsize)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")).reshape(size))
