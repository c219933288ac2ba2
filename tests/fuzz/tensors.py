"""Surgery on safetensors and on the archives of this library, with checksums that are right again afterwards.

What lies behind the checksum is reached only this way: a stranger can compute SHA-256 as well as we can.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fuzz.hostile import Rng, pick
from fuzz.mutate import Mutation, Mutator, anything, several
from fuzz.texts import json_file, json_value
from fuzz.zips import members_of, packed, zip_file

Tensors = dict[str, Tensor]
VALUES = (math.nan, math.inf, -math.inf, 1e38, -1e38, 1e20, 1e-45, 0.0, -1.0, 2.0**62, 255.0)
DTYPES = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.complex64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_DTYPE_NAMES = ("F8_E4M3", "F8_E5M2", "F4", "F16", "BF16", "F32", "F64", "I8", "U8", "BOOL", "I64", "U64", "C64", "X")
_SHAPES: tuple[Any, ...] = ([], [0], [-1], [1], [2**62], [2**32, 2**32], [2**31, 2], [1] * 70, [1.5], "1", None)


def safetensors_file(content: bytes, rng: Rng) -> Mutation:
    """A tensor, or the header that describes it, changed."""
    if rng.random() < 0.7:
        tensors = safetensors.torch.load(content)
        words = change(tensors, rng)
        return safetensors.torch.save(tensors), words
    return header(content, rng)


def header(content: bytes, rng: Rng) -> Mutation:
    """The JSON header of a safetensors file changed, or its length."""
    (size,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + size], content[8 + size :]
    if rng.random() < 0.15:
        other = pick(rng, (0, 1, size - 1, size + 1, 2**31, 2**62, 2**64 - 1, len(content)))
        return struct.pack("<Q", other) + text + data, f"a header of {other} bytes"
    values = json.loads(text)
    name = pick(rng, [key for key in values if key != "__metadata__"] or [""])
    kind = rng.random()
    if kind < 0.3:
        values[name]["dtype"] = pick(rng, _DTYPE_NAMES)
        words = f"{name} is said to be {values[name]['dtype']}"
    elif kind < 0.6:
        values[name]["shape"] = pick(rng, _SHAPES)
        words = f"{name} is said to have shape {values[name]['shape']!r:.40}"
    elif kind < 0.75:
        values[name]["data_offsets"] = pick(rng, ([0, 4], [0, 2**62], [-1, 4], [8, 4], [0, 0], [0], [0, len(data)]))
        words = f"{name} is said to lie at {values[name]['data_offsets']}"
    else:
        changed, words = json_file(text, rng)
        return struct.pack("<Q", len(changed)) + changed + data, f"header: {words}"
    changed = json.dumps(values).encode()
    return struct.pack("<Q", len(changed)) + changed + data, words


def change(tensors: Tensors, rng: Rng) -> str:
    """Change one tensor of a group in place, and say how."""
    if not tensors:
        tensors["new"] = torch.zeros(2)
        return "a new tensor"
    name = pick(rng, list(tensors))
    return pick(rng, _CHANGES)(tensors, name, rng)


def _value(tensors: Tensors, name: str, rng: Rng) -> str:
    value, tensor = pick(rng, VALUES), tensors[name].clone()
    if not tensor.is_floating_point():
        value = float(pick(rng, (0, 1, -1, 3, 100, 2**31 - 1)))
        limits = torch.iinfo(tensor.dtype) if tensor.dtype != torch.bool else None
        value = value if limits is None else min(max(value, limits.min), limits.max)
    flat = tensor.view(-1)
    if rng.random() < 0.5 or not len(flat):
        flat[:] = value
    else:
        flat[int(rng.integers(len(flat)))] = value
    tensors[name] = tensor
    return f"{name} holds {value:g}"


def _shape(tensors: Tensors, name: str, rng: Rng) -> str:
    tensor = tensors[name]
    ways: tuple[Callable[[], Tensor], ...] = (
        lambda: tensor.reshape(-1),
        lambda: tensor[None],
        lambda: tensor[:-1],
        lambda: tensor[:0],
        lambda: tensor.reshape(-1)[0],
        lambda: tensor.T if tensor.ndim == 2 else tensor[..., None],
        lambda: torch.cat([tensor, tensor]),
        lambda: tensor.repeat(1000, *(1,) * max(tensor.ndim - 1, 0))[:5000],
    )
    tensors[name] = pick(rng, ways)().contiguous().clone()
    return f"{name} has shape {tuple(tensors[name].shape)}"


def _dtype(tensors: Tensors, name: str, rng: Rng) -> str:
    dtype = pick(rng, DTYPES)
    tensors[name] = tensors[name].to(dtype)
    return f"{name} is {dtype}"


def _missing(tensors: Tensors, name: str, rng: Rng) -> str:
    del tensors[name]
    return f"without {name}"


def _renamed(tensors: Tensors, name: str, rng: Rng) -> str:
    new = pick(rng, (f"{name}x", f"9{name}", "x.y", "", "\x1b[31m", name.rpartition(".")[2], f"module.{name}"))
    tensors[new] = tensors.pop(name)
    return f"{name} is called {new!r}"


def _more(tensors: Tensors, name: str, rng: Rng) -> str:
    tensors[f"{name}.more"] = tensors[name].clone()
    return f"{name} also as {name}.more"


def _swapped(tensors: Tensors, name: str, rng: Rng) -> str:
    other = pick(rng, list(tensors))
    tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
    return f"{name} and {other} swapped"


_CHANGES: tuple[Callable[[Tensors, str, Rng], str], ...] = (
    _value,
    _value,
    _value,
    _shape,
    _shape,
    _dtype,
    _missing,
    _renamed,
    _more,
    _swapped,
)


# ---------------------------------------------------------------------- archives


def archive_file(content: bytes, rng: Rng) -> Mutation:
    """A value of config or card, a tensor, or a group of tensors changed; all checksums are right."""
    members = members_of(content)
    head = json.loads(members.pop("config.json"))
    kind, text = rng.random(), None
    if kind < 0.6:
        text, words = json_value(head, rng, ("config",))
        words = words.removeprefix("config.")
    elif kind < 0.65:
        text, words = json_value({**head, "sha256": {}}, rng)
    elif kind < 0.7:
        members["card.json"], words = json_file(members["card.json"], rng)
    else:
        groups = [name for name in members if name.endswith(".safetensors")]
        words = _group(members, pick(rng, groups), rng)
    return _sealed(members, head, text), words


def card_file(content: bytes, rng: Rng) -> Mutation:
    """The card of an archive changed; all checksums are right."""
    members = members_of(content)
    head = json.loads(members.pop("config.json"))
    members["card.json"], words = json_file(members["card.json"], rng)
    return _sealed(members, head, None), f"card: {words}"


class Raw(str):
    """JSON text that stands as it is, such as ``1e999``."""


def edited(content: bytes, change: Callable[[dict[str, Any], dict[str, Tensors]], Any], **parts: Any) -> bytes:
    """
    An archive with other values and right checksums.

    :param change: changes config and tensors in place; a `Raw` text is written as it is
    :param parts: of ``config.json`` beside the config, such as ``version``, or ``card``
    """
    members = members_of(content)
    head = {**json.loads(members.pop("config.json")), **parts}
    members["card.json"] = _text(head.pop("card")) if "card" in head else members["card.json"]
    groups = {
        name.removesuffix(".safetensors"): dict(safetensors.torch.load(data))
        for name, data in members.items()
        if name.endswith(".safetensors")
    }
    change(head["config"], groups)
    stored = {f"{name}.safetensors": safetensors.torch.save(tensors) for name, tensors in groups.items()}
    members = {"card.json": members["card.json"], **stored}
    head["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    return packed({"config.json": _text(head), **members})


def _text(value: Any) -> bytes:
    """JSON in which every `Raw` text stands as it is."""
    raw: list[str] = []

    def marked(inner: Any) -> Any:
        if isinstance(inner, Raw):
            raw.append(inner)
            return f"@@{len(raw) - 1}@@"
        if isinstance(inner, dict):
            return {key: marked(one) for key, one in inner.items()}
        return [marked(one) for one in inner] if isinstance(inner, list) else inner

    text = json.dumps(marked(value))
    for i, one in enumerate(raw):
        text = text.replace(f'"@@{i}@@"', one)
    return text.encode()


def _sealed(members: dict[str, bytes], head: dict[str, object], text: str | None) -> bytes:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    if text is None:
        text = json.dumps({**head, "sha256": sums})
    elif '"sha256": {}' in text:
        text = text.replace('"sha256": {}', f'"sha256": {json.dumps(sums)}')
    return packed({"config.json": text.encode(errors="surrogatepass"), **members})


def _group(members: dict[str, bytes], name: str, rng: Rng) -> str:
    kind = rng.random()
    if kind < 0.8:
        tensors = safetensors.torch.load(members[name])
        words = change(tensors, rng)
        members[name] = safetensors.torch.save(tensors)
    elif kind < 0.9:
        members[name], words = header(members[name], rng)
    elif kind < 0.95:
        del members[name]
        return f"without {name}"
    else:
        new = pick(rng, ("more", "optimizer", "weights", "random", "starts", "normalizer", "agent-averaged"))
        members[f"{new}.safetensors"] = members[name]
        return f"{name} also as {new}"
    return f"{name.removesuffix('.safetensors')}: {words}"


def archives(extra: tuple[tuple[float, Mutator], ...] = ()) -> Mutator:
    """All that is done to an archive: inside it most of the time, else to the zip file and to its bytes."""
    ways: tuple[tuple[float, Mutator], ...] = ((8.0, archive_file), (1.5, zip_file), (0.5, anything), *extra)
    return lambda content, rng: several(ways, content, rng)
