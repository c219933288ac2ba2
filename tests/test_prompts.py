"""Prompts come from files of strangers: read as a whole, or refused in one line that names the file."""

import os
from pathlib import Path

import pytest

from rrpolicy.cli.prompt_files import read_prompts


@pytest.mark.parametrize(("name", "content", "wanted"), [
    ("a.txt", "a cat\n\n  a dog \r\nlast", ["a cat", "a dog", "last"]),
    ("a.csv", "id,prompt\n1,a cat\n2,\n3,\" a dog\nasleep\"\n4\n", ["a cat", "a dog\nasleep"]),
    ("a.CSV", "prompt\r\nä ß\r\n", ["ä ß"]),
])  # fmt: skip
def test_prompts_are_read(name: str, content: str, wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == wanted


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv"])
@pytest.mark.parametrize(("content", "words"), [
    (b"caf\xe9\n", "utf-8"), (b"", "no prompts"), (b"prompt" + b"x" * 2**23, "too large"),
    (b'prompt\n"' + b"x" * 2**18, "field larger"), (b"\n" * 9, "no prompts"),
])  # fmt: skip
def test_other_files_are_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if words == "field larger" and name.endswith("txt"):
        assert read_prompts(path) == ["prompt", '"' + "x" * 2**18]
        return
    with pytest.raises(ValueError, match=words) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) <= 400


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv"])
def test_what_never_ends_is_not_read(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / name).symlink_to("/dev/zero")
    for path in (tmp_path / name, tmp_path / "zero" / name):
        with pytest.raises(ValueError, match=f"{name}: .* is no regular file"):
            read_prompts(path)
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none" / name)
