"""One file format for agents, rewards and checkpoints: a zip of JSON and safetensors, written atomically.
Reading trusts nothing: sizes, names, checksums, the fields of configuration and card, and finiteness are checked before
a weight is used, nothing in the file can run code, and every fault becomes a ``ValueError`` that names the file."""

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from rrpolicy.common.files import atomic_write
from rrpolicy.common.kinds import CardFields, check_config
from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import checked, from_json, plain
from rrpolicy.common.version import __version__
from rrpolicy.common.zips import read_members

SCHEMA_VERSION = 1
MAX_TOTAL_BYTES = 2**32
MAX_JSON_BYTES = 2**22
MAX_MEMBERS = 64
MAX_TENSORS = 4096  # of a member
MAX_DIMENSIONS = 8

_GROUP = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MEMBER = re.compile(r"(config|card)\.json|[A-Za-z][A-Za-z0-9_-]{0,63}\.safetensors")
_FOREIGN = re.compile(r"(^|.*/)(data|_stable_baselines3_version|.*\.(pkl|pickle|pth|pt|ckpt|joblib))", re.IGNORECASE)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold: equal content then gives equal bytes
# all that a constructor may raise at a configuration whose fields are within their bounds and do not go together
_REBUILDING = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError)
_HALF = frozenset({torch.float16, torch.bfloat16})
_DTYPES = _HALF | {
    torch.float32,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}


@dataclass(frozen=True)
class Archive:
    """What an archive held, checked.

    :param kind: what the file describes, such as ``"agent"``
    :param config: JSON values needed to rebuild the object
    :param tensors: group name -> tensor name -> CPU tensor (half precision widened to float32)
    :param card: JSON values for people: provenance, scores
    :param path: the file that was read
    """

    kind: str
    config: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]
    card: dict[str, Any]
    path: Path

    @contextmanager
    def rebuilding(self) -> Iterator[None]:
        """
        Name the file in whatever goes wrong while its object is rebuilt.

        :raises ValueError: naming the file and what it lacks or has wrong
        """
        try:
            yield
        except _REBUILDING as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(at(self.path, f"is not a valid {self.kind} archive: {lines[-1].strip()}")) from error
        except ValueError as error:
            raise ValueError(at(self.path, error)) from error


def write_archive(
    path: str | os.PathLike[str],
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write an archive; a reader sees the old file or the whole new one, never a part. Equal content, equal bytes.

    :param path: target; ``.zip`` is appended when the name does not end with it, parent folders are created
    :param kind: what the file describes, checked again by :func:`read_archive`
    :param config: JSON-serialisable mapping (finite numbers only) with the fields that `kinds.KINDS` has for it
    :param tensors: group name -> tensor name -> finite tensor; one safetensors member per group
    :param card: JSON-serialisable mapping for people, stored as ``card.json``
    :return: the path written
    :raises ValueError: for a name, a value or a tensor that an archive cannot hold
    """
    target = _with_suffix(path)
    card, config = _plain(target, "card", card or {}), _plain(target, "config", config)
    try:
        checked(CardFields, card, "card")
        check_config(kind, config, "config")
    except ValueError as error:
        raise ValueError(at(target, error)) from None
    members = {"card.json": _to_json(target, "card", card)}
    for group, named in tensors.items():
        if not _GROUP.fullmatch(group):
            raise ValueError(f"tensors: group name {group!r} must match {_GROUP.pattern}")
        if len(named) > MAX_TENSORS:
            raise ValueError(f"tensors: group {group!r} has {len(named)} tensors, at most {MAX_TENSORS} are written")
        for name, tensor in named.items():
            _check_tensor(target, f"{group}/{name}", tensor)
        flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
        members[f"{group}.safetensors"] = safetensors.torch.save(flat)
    if len(members) >= MAX_MEMBERS:
        raise ValueError(f"tensors has {len(tensors)} groups, wanted at most {MAX_MEMBERS - 2}")
    header = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "version": __version__,
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in members.items()},
        "config": config,
    }
    about = _to_json(target, "config", header)
    with atomic_write(target) as unfinished:
        _write_zip(unfinished, {"config.json": about, **members})
    return target


def read_archive(path: str | os.PathLike[str], kind: str | tuple[str, ...] | None = None) -> Archive:
    """Read an archive after checking all of it.

    :param path: the file, with or without ``.zip``
    :param kind: the kind or kinds wanted, ``None`` for any
    :return: the checked content
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: naming file and fault, for anything that :func:`write_archive` would not have written
    """
    source = _find(path)
    members = _read_members(source)
    header = _header(source, members, kind)
    _check_members(source, members, header["sha256"])
    card = _from_json(source, "card.json", members.pop("card.json"))
    try:
        checked(CardFields, card, "card.json")
        check_config(header["kind"], header["config"])
    except ValueError as error:
        raise ValueError(at(source, f"is not a valid {printable(header['kind'], 40)} archive: {error}")) from None
    tensors = {name.removesuffix(".safetensors"): _tensors(source, name, members.pop(name)) for name in list(members)}
    return Archive(header["kind"], header["config"], tensors, card, source)


def _fault(path: Path, fault: str) -> NoReturn:
    raise ValueError(at(path, fault))


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    given = Path(path)
    return given if given.name.endswith(".zip") else given.with_name(given.name + ".zip")


def _find(path: str | os.PathLike[str]) -> Path:
    given = Path(path)
    for candidate in (given, _with_suffix(given)):
        if candidate.is_file():
            return candidate
    if given.exists():
        kind = "a folder" if stat.S_ISDIR(given.stat().st_mode) else "a device or pipe"
        _fault(given, f"is {kind}, wanted an archive file (.zip)")
    raise FileNotFoundError(f"{given}: no such archive (looked for {given} and {_with_suffix(given)})")


def _plain(path: Path, what: str, value: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values: dict[str, Any] = plain(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(at(path, f"{what} cannot be written as JSON: {error}")) from error
    return values


def _to_json(path: Path, what: str, value: Mapping[str, Any]) -> bytes:
    data = json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode()
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(at(path, f"{what} has {len(data)} bytes as JSON, at most {MAX_JSON_BYTES} are written"))
    return data


def _from_json(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = from_json(data)
    except ValueError as error:
        raise ValueError(at(path, f"{name} is not valid JSON: {error}")) from error
    if not isinstance(value, dict):
        _fault(path, f"{name} holds a JSON {type(value).__name__}, wanted an object")
    return value


def _write_zip(path: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix, whatever the system: part of the bytes
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def _read_members(path: Path) -> dict[str, bytes]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TOTAL_BYTES:
            _fault(path, f"has {size} bytes, too large: at most {MAX_TOTAL_BYTES} are read")
        try:
            return read_members(file, MAX_MEMBERS, refused=_name_fault)
        except ValueError as error:
            raise ValueError(at(path, error)) from error


def _name_fault(infos: Sequence[zipfile.ZipInfo]) -> str | None:
    names = [info.orig_filename for info in infos]
    for name in names:
        if _FOREIGN.fullmatch(name):
            return f"member {printable(name)!r} may hold a pickle, as in a Stable-Baselines3 or torch file: not opened"
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name or re.match(r"[A-Za-z]:", name):
            return f"unsafe member name {printable(name)!r} points outside the archive"
        if not _MEMBER.fullmatch(name):
            return f"unexpected member {printable(name)!r}, wanted config.json, card.json and *.safetensors"
    for info in infos:
        if info.filename.endswith(".json") and info.file_size > MAX_JSON_BYTES:
            return f"{info.filename} has {info.file_size} bytes, too large: at most {MAX_JSON_BYTES} are read"
    return None


def _header(path: Path, members: dict[str, bytes], kind: str | tuple[str, ...] | None) -> dict[str, Any]:
    if "config.json" not in members:
        _fault(path, "member config.json is missing: not an archive of this library")
    header = _from_json(path, "config.json", members.pop("config.json"))
    schema = header.get("schema")
    if schema != SCHEMA_VERSION or isinstance(schema, bool):
        written = header.get("version", "an unknown version")
        _fault(
            path,
            f"schema {printable(repr(schema), 40)} (written by rrpolicy {printable(written, 40)}), "
            f"wanted {SCHEMA_VERSION}",
        )
    for key, wanted in (("kind", str), ("sha256", dict), ("config", dict)):
        if not isinstance(header.get(key), wanted):
            _fault(path, f"config.json: {key!r} is {printable(header.get(key), 60)}, wanted a {wanted.__name__}")
    kinds = (kind,) if isinstance(kind, str) else kind
    if kinds is not None and header["kind"] not in kinds:
        _fault(path, f"holds a {printable(header['kind'], 40)!r}, wanted {' or '.join(map(repr, kinds))}")
    return header


def _check_members(path: Path, members: dict[str, bytes], checksums: dict[str, Any]) -> None:
    missing = sorted((set(checksums) | {"card.json"}) - set(members))
    if missing:
        _fault(path, f"member {printable(missing[0])} is missing")
    extra = sorted(set(members) - set(checksums))
    if extra:
        _fault(path, f"unexpected member {extra[0]!r} has no checksum in config.json")
    for name, data in members.items():
        if hashlib.sha256(data).hexdigest() != checksums[name]:
            _fault(path, f"checksum mismatch in {name}: damaged or tampered with")


def _tensors(path: Path, name: str, data: bytes) -> dict[str, torch.Tensor]:
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(at(path, f"{name} is not a safetensors file: {error}")) from error
    if len(tensors) > MAX_TENSORS:
        _fault(path, f"{name} holds {len(tensors)} tensors, at most {MAX_TENSORS} are read")
    group = name.removesuffix(".safetensors")
    for key, tensor in tensors.items():
        _check_tensor(path, f"{group}/{key}", tensor)
    return {key: tensor.float() if tensor.dtype in _HALF else tensor for key, tensor in sorted(tensors.items())}


def _check_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    if tensor.ndim > MAX_DIMENSIONS:
        _fault(path, f"tensor {printable(name)} has {tensor.ndim} dimensions, wanted up to {MAX_DIMENSIONS}")
    if tensor.dtype not in _DTYPES:
        _fault(path, f"tensor {printable(name)} is of type {tensor.dtype}, which no archive holds")
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
        _fault(path, f"tensor {printable(name)} holds NaN or infinite values, wanted finite ones")
