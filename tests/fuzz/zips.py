"""Surgery on zip files: members renamed, doubled, packed in other ways, counted in thousands, headers that lie."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import cache

from fuzz.hostile import Rng, outside, pick
from fuzz.mutate import INTERESTING, Mutation, Mutator, anything

LARGEST = 10**7
METHODS = {"deflate": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}
NAMES = (
    "../evil.json",
    "/etc/passwd",
    "C:\\x",
    "config.json/",
    "",
    "a" * 60_000,
    "data.pkl",
    "extra.safetensors",
    "card.json\0.json",
    "\x1b[31m.json",
    "é.safetensors",
    "policy.pth",
    "weights.safetensors",
    "CONFIG.JSON",
)
# offsets of fields in a central directory's entry: version, flags, method, time, crc, sizes, lengths, offset
_FIELDS = {
    "flags": (8, "<H"),
    "method": (10, "<H"),
    "crc": (16, "<I"),
    "packed size": (20, "<I"),
    "size": (24, "<I"),
    "name's length": (28, "<H"),
    "extra's length": (30, "<H"),
    "comment's length": (32, "<H"),
    "attributes": (38, "<I"),
    "offset": (42, "<I"),
}
_END = {
    "entries": (8, "<H"),
    "entries in all": (10, "<H"),
    "directory's size": (12, "<I"),
    "directory's place": (16, "<I"),
    "comment's length": (20, "<H"),
}


def members_of(content: bytes) -> dict[str, bytes]:
    """:raises ValueError: for what was made large by an earlier mutation"""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > LARGEST:
            raise ValueError("too large to be mutated once more")
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: Mapping[str, bytes], methods: Mapping[str, int] | None = None, comment: bytes = b"") -> bytes:
    """
    A zip file.

    :param methods: how single members are compressed, stored if not named
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, (methods or {}).get(name, zipfile.ZIP_STORED))
        archive.comment = comment
    return buffer.getvalue()


@cache
def zeros(n_bytes: int) -> bytes:
    """A zip file whose only member is that large, and packed small."""
    return packed({"zeros": bytes(n_bytes)}, {"zeros": zipfile.ZIP_DEFLATED})


def zip_file(content: bytes, rng: Rng) -> Mutation:
    """One thing changed in a zip file."""
    members = members_of(content)
    return pick(rng, _OPERATIONS)(content, members, rng)


def inside(mutator: Mutator, name: str) -> Mutator:
    """A mutator of one member, whose checksum in the zip file is right afterwards."""

    def mutate(content: bytes, rng: Rng) -> Mutation:
        members = members_of(content)
        changed, words = mutator(members[name], rng)
        return packed({**members, name: changed}), f"{name}: {words}"

    return mutate


def _compress(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    method = pick(rng, list(METHODS))
    chosen = list(members) if rng.random() < 0.4 else [pick(rng, list(members))]
    return packed(members, dict.fromkeys(chosen, METHODS[method])), f"{method} of {', '.join(chosen)}"


def _bomb(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    name = pick(rng, list(members))
    inner = members[name]
    kind = int(rng.integers(3))
    if kind == 0:
        inner = bytes(10 ** int(rng.integers(5, 8)))
    elif kind == 1:
        inner = inner + b" " * 10**7
    else:
        inner = zeros(10**8)
    methods = {name: METHODS["deflate"]} if rng.random() < 0.7 else {}
    members = {**members, name: inner if methods else inner[: 10**6]}
    return packed(members, methods), f"{name} has {len(members[name])} bytes, packed: {bool(methods)}"


def _names(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    old, new = pick(rng, list(members)), pick(rng, (*NAMES, *members, str(outside() / "x.json")))
    if rng.random() < 0.3:
        return packed({**members, new: members[old]}), f"{old} also as {new!r:.60}"
    return packed({new if name == old else name: data for name, data in members.items()}), f"{old} is {new!r:.60}"


def _double(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    name, buffer = pick(rng, list(members)), io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo(name)
        archive.writestr(info, members[name] if rng.random() < 0.5 else anything(members[name], rng)[0])
    return buffer.getvalue(), f"{name} twice"


def _without(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    name = pick(rng, list(members))
    return packed({other: data for other, data in members.items() if other != name}), f"without {name}"


def _many(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    n = pick(rng, (60, 70, 1000, 8000))
    return packed({**members, **{f"m{i}.safetensors": b"" for i in range(n)}}), f"{n} members more"


def _around(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    more = pick(rng, (b"#!/bin/sh\n", bytes(1000), b"PK\x03\x04", b"PK\x05\x06" + bytes(18), content, rng.bytes(50)))
    kind = int(rng.integers(3))
    if kind == 0:
        return more + content, f"{len(more)} bytes before"
    if kind == 1:
        return content + more, f"{len(more)} bytes behind"
    return packed(members, comment=(more * 70_000)[: int(rng.integers(65_536))]), "a comment"


def _lie(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    """A field of an entry of the directory, or of the end of the directory."""
    entries = [i for i in range(len(content)) if content.startswith(b"PK\x01\x02", i)]
    if rng.random() < 0.7 and entries:
        at, (name, (offset, form)) = pick(rng, entries), pick(rng, list(_FIELDS.items()))
    else:
        at, (name, (offset, form)) = content.rindex(b"PK\x05\x06"), pick(rng, list(_END.items()))
    value = pick(rng, (*INTERESTING, 8, 12, 14, 9, 99, len(content))) % 256 ** struct.calcsize(form)
    changed = bytearray(content)
    struct.pack_into(form, changed, at + offset, value)
    return bytes(changed), f"directory at {at}: {name} = {value}"


def _member(content: bytes, members: dict[str, bytes], rng: Rng) -> Mutation:
    name = pick(rng, list(members))
    changed, words = anything(members[name], rng)
    return packed({**members, name: changed}), f"{name}: {words}"


_OPERATIONS: tuple[Callable[[bytes, dict[str, bytes], Rng], Mutation], ...] = (
    _compress,
    _bomb,
    _names,
    _double,
    _without,
    _many,
    _around,
    _lie,
    _lie,
    _member,
    _member,
)
