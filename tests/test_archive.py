"""The archive gives back what was written, and every damaged, foreign or hostile file gets one ``ValueError``.
Each attack is a file built by hand with correct checksums, so that only the fault under test can be what is refused."""

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rrpolicy.common import archive
from rrpolicy.common.archive import SCHEMA_VERSION, read_archive, write_archive
from rrpolicy.common.version import __version__

CONFIG = {"width": 3, "name": "ρ", "nested": {"list": [1, 2.5, None, True]}}
CARD = {"license": "MIT"}


def weights() -> dict[str, torch.Tensor]:
    return {"b": torch.tensor([1.5, -2.0]), "a": torch.arange(6.0).reshape(2, 3)}


def written(folder: Path) -> Path:
    return write_archive(folder / "agent.zip", "example", CONFIG, {"model": weights()}, CARD)


def forge(path: Path, members: dict[str, bytes] | None = None, compression: int = 0, **header: Any) -> Path:
    """An archive with correct checksums from any members, header fields and compression."""
    members = {"card.json": b"{}", "model.safetensors": safetensors.torch.save(weights()), **(members or {})}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    values = {"schema": SCHEMA_VERSION, "kind": "example", "version": "0", "sha256": sums, "config": {}, **header}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in {"config.json": json.dumps(values).encode(), **members}.items():
            file.writestr(name, data)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_archive(path, "example")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for word in words:
        assert word in message


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = write_archive(folder / "agent", "example", CONFIG, {"model": weights(), "ema": {}}, CARD)
    assert path == tmp_path / "new" / "folder" / "agent.zip"
    for name in (path, path.with_suffix("")):
        found = read_archive(name, ("reward", "example"))
        assert (found.kind, found.config, found.card, found.path) == ("example", CONFIG, CARD, path)
        assert found.tensors["ema"] == {}
        assert set(found.tensors["model"]) == {"a", "b"}
        for key, value in weights().items():
            assert torch.equal(found.tensors["model"][key], value)


def test_header_states_schema_and_library_version(tmp_path: Path) -> None:
    with zipfile.ZipFile(written(tmp_path)) as file:
        header = json.loads(file.read("config.json"))
        assert file.namelist() == ["config.json", "card.json", "model.safetensors"]
    assert (header["schema"], header["version"]) == (SCHEMA_VERSION, __version__)


def test_a_version_in_the_name_is_not_a_suffix(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "agent-v1.2", "example", {}, {})
    assert path.name == "agent-v1.2.zip"
    assert read_archive(tmp_path / "agent-v1.2").path == path


def test_a_folder_does_not_hide_the_archive_beside_it(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "agent").mkdir()
    assert read_archive(tmp_path / "agent").config == CONFIG


def test_bytes_are_deterministic(tmp_path: Path) -> None:
    one = written(tmp_path / "one")
    reordered = dict(reversed(list(CONFIG.items())))
    other_order = dict(reversed(list(weights().items())))
    two = write_archive(tmp_path / "two", "example", reordered, {"model": other_order}, CARD)
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_returns_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([1 / 3, -7.0]).to(dtype)
    found = read_archive(write_archive(tmp_path / "half", "example", {}, {"model": {"w": values}}))
    assert found.tensors["model"]["w"].dtype == torch.float32
    assert torch.equal(found.tensors["model"]["w"], values.float())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8, torch.bool])
def test_other_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0, 1, 1]).to(dtype)
    found = read_archive(write_archive(tmp_path / "typed", "example", {}, {"model": {"w": values}}))
    assert found.tensors["model"]["w"].dtype == dtype
    assert torch.equal(found.tensors["model"]["w"], values)


def test_views_parameters_and_shared_storage_can_be_written(tmp_path: Path) -> None:
    base = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    tensors = {"whole": base, "turned": base.T, "part": base[1:, ::2], "scalar": torch.tensor(2.0)}
    found = read_archive(write_archive(tmp_path / "views", "example", {}, {"model": tensors}))
    for key, value in tensors.items():
        assert torch.equal(found.tensors["model"][key], value)


def test_forged_file_without_a_fault_is_read(tmp_path: Path) -> None:
    """The faults below are told apart only if the forger itself makes good files."""
    assert set(read_archive(forge(tmp_path / "good.zip"), "example").tensors) == {"model"}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such archive .*nowhere\.zip"):
        read_archive(tmp_path / "nowhere")


def test_folder_instead_of_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder")


def test_truncated_anywhere(tmp_path: Path) -> None:
    whole = written(tmp_path).read_bytes()
    path = tmp_path / "cut.zip"
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        refused(path, "truncated or damaged" if size >= 2 else "is not a zip file")


def test_any_single_damaged_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    """Flips every byte in turn: what is read must be refused, or be equal (dates and such mean nothing)."""
    whole = written(tmp_path).read_bytes()
    path, good, n_refused = tmp_path / "flipped.zip", read_archive(tmp_path / "agent"), 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = read_archive(path, "example")
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            n_refused += 1
        else:
            assert (found.config, found.card) == (good.config, good.card)
            assert all(torch.equal(found.tensors["model"][key], value) for key, value in weights().items())
    assert n_refused > 0.8 * len(whole)


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "noise.zip"
    path.write_bytes(bytes(range(1, 256)) * 8)
    refused(path, "is not a zip file")


@pytest.mark.parametrize(
    "member", ["data", "policy.pth", "pytorch_variables.pth", "archive/data.pkl", "weights.PKL", "model.pt"]
)
def test_stable_baselines_and_torch_files_are_foreign(tmp_path: Path, member: str) -> None:
    refused(forge(tmp_path / "foreign.zip", {member: b"cos\nsystem\n(S'false'\ntR."}), member, "pickle")


@pytest.mark.parametrize("member", ["../evil.json", "model/../../evil.safetensors", "..\\evil.safetensors"])
def test_zip_slip_names(tmp_path: Path, member: str) -> None:
    refused(forge(tmp_path / "slip.zip", {member: b"{}"}), "unsafe member name", "evil")


@pytest.mark.parametrize("member", ["/etc/evil.json", "\\evil.json", "C:evil.json"])
def test_absolute_names(tmp_path: Path, member: str) -> None:
    refused(forge(tmp_path / "absolute.zip", {member: b"{}"}), "unsafe member name", "evil")


def test_name_cut_by_a_zero_byte(tmp_path: Path) -> None:
    """Python's zipfile shows such a name without its tail; the whole name is what is checked."""
    path = forge(tmp_path / "zero.zip", {"card.json#evil": b"{}"})
    path.write_bytes(path.read_bytes().replace(b"card.json#evil", b"card.json\0evil"))
    refused(path, "unexpected member")


@pytest.mark.parametrize("member", ["notes.txt", "folder/model.safetensors", "other.json", "run.py"])
def test_unknown_extra_member(tmp_path: Path, member: str) -> None:
    refused(forge(tmp_path / "extra.zip", {member: b"{}"}), "unexpected member", member)


def test_extra_member_without_checksum(tmp_path: Path) -> None:
    path = written(tmp_path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("extra.safetensors", safetensors.torch.save(weights()))
    refused(path, "unexpected member", "extra.safetensors", "no checksum")


def test_duplicate_member(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("model.safetensors", b"other")
    refused(path, "duplicate members", "model.safetensors")


def test_too_many_members(tmp_path: Path) -> None:
    refused(forge(tmp_path / "many.zip", {f"g{i}.safetensors": b"" for i in range(70)}), "73 members", "at most 64")


@pytest.mark.parametrize("member", ["model.safetensors", "card.json", "config.json"])
def test_missing_member(tmp_path: Path, member: str) -> None:
    path = written(tmp_path)
    with zipfile.ZipFile(path) as file:
        kept = {name: file.read(name) for name in file.namelist() if name != member}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in kept.items():
            file.writestr(name, data)
    refused(path, member, "is missing")


def test_tampered_tensor_bytes(tmp_path: Path) -> None:
    path = written(tmp_path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members["model.safetensors"] = members["model.safetensors"][:-1] + b"\x41"
    with zipfile.ZipFile(path, "w") as file:  # writes a correct CRC for the changed bytes
        for name, data in members.items():
            file.writestr(name, data)
    refused(path, "checksum mismatch in model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    bad = {"ok": torch.zeros(2), "layer.weight": torch.tensor([0.0, value], dtype=dtype)}
    path = forge(tmp_path / "nan.zip", {"model.safetensors": safetensors.torch.save(bad)})
    refused(path, "model/layer.weight", "NaN or infinite")


def test_broken_safetensors(tmp_path: Path) -> None:
    path = forge(tmp_path / "broken.zip", {"model.safetensors": b"\xff" * 64})
    refused(path, "model.safetensors is not a safetensors")


def test_wrong_kind(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(ValueError, match=r"agent\.zip: holds a 'example', wanted 'reward' or 'checkpoint'"):
        read_archive(tmp_path / "agent", ("reward", "checkpoint"))


@pytest.mark.parametrize("schema", [SCHEMA_VERSION + 1, 0, "1", None, True, [1]])
def test_unknown_schema_version(tmp_path: Path, schema: Any) -> None:
    refused(forge(tmp_path / "newer.zip", schema=schema, version="9.9"), f"schema {schema!r}", "9.9", "wanted 1")


@pytest.mark.parametrize("header", [{"kind": 3}, {"sha256": ["card.json"]}, {"config": "text"}])
def test_header_of_wrong_types(tmp_path: Path, header: dict[str, Any]) -> None:
    refused(forge(tmp_path / "types.zip", **header), f"config.json: {next(iter(header))!r} is", "wanted a")


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[1]", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000])
def test_invalid_json(tmp_path: Path, text: bytes) -> None:
    refused(forge(tmp_path / "card.zip", {"card.json": text}), "card.json", "JSON")
    path = tmp_path / "config.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", text)
    refused(path, "config.json", "JSON")


def test_zip_bomb(tmp_path: Path) -> None:
    bomb = forge(tmp_path / "bomb.zip", {"model.safetensors": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20_000
    refused(bomb, "too large", "zip bomb")


def test_file_over_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path)
    with path.open("r+b") as file:
        file.truncate(archive.MAX_TOTAL_BYTES + 1)  # a hole, which takes no room on the disk
    refused(path, "too large", f"at most {archive.MAX_TOTAL_BYTES}")


def test_json_over_the_limit(tmp_path: Path) -> None:
    path = forge(tmp_path / "long.zip", {"card.json": b'{"a": "' + b"x" * archive.MAX_JSON_BYTES + b'"}'})
    refused(path, "card.json", "too large", f"at most {archive.MAX_JSON_BYTES}")


def test_encrypted_member(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(bytes(content))
    refused(path, "truncated or damaged", "encrypted")


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"a": float("nan")}, {}, "config cannot be written as JSON"),
        ({"a": object()}, {}, "config cannot be written as JSON"),
        ({}, {"model": {"w": torch.tensor([float("inf")])}}, "model/w holds NaN"),
        ({}, {"../model": {}}, "group name '../model'"),
        ({}, {f"g{i}": {} for i in range(63)}, "63 groups, wanted at most 62"),
    ],
)
def test_what_cannot_be_read_is_not_written(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]], words: str
) -> None:
    before = written(tmp_path).read_bytes()
    with pytest.raises(ValueError, match=words):
        write_archive(tmp_path / "agent", "example", config, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]
    assert (tmp_path / "agent.zip").read_bytes() == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    before = written(tmp_path).read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        write_archive(tmp_path / "agent", "example", {"other": 1}, {})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]
    assert (tmp_path / "agent.zip").read_bytes() == before
    assert read_archive(tmp_path / "agent").config == CONFIG


def test_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    written(tmp_path)
    write_archive(tmp_path / "agent", "example", {"other": 1}, {})
    assert read_archive(tmp_path / "agent").config == {"other": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["agent.zip"]


def test_empty_zip(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    path = tmp_path / "empty.zip"
    path.write_bytes(buffer.getvalue())
    refused(path, "config.json is missing")
