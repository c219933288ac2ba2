"""Prompts come from files of strangers: read as a whole, or refused in one line that names the file."""

import os
from pathlib import Path

import pytest
from helpers.pipelines import write_stable_diffusion

from rrpolicy.cli.prompt_files import echo_cut, read_prompts
from rrpolicy.images.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "a cat\n\n  a dog \r\nlast", ["a cat", "a dog", "last"]),
        ("a.csv", 'id,prompt\n1,a cat\n2,\n3," a dog\nasleep"\n4\n', ["a cat", "a dog\nasleep"]),
        ("a.CSV", "prompt\r\nä ß\r\n", ["ä ß"]),
        ("a.txt", "\ufeffa cat\na dog", ["a cat", "a dog"]),
        ("a.csv", "\ufeffprompt,id\na cat,1\n", ["a cat"]),
        ("a.csv", 'id;Prompt\n1;a cat, asleep\n2;"a; dog"\n', ["a cat, asleep", "a; dog"]),
        ("a.csv", "id, PROMPT \n1,a cat\n", ["a cat"]),
        ("a.csv", "prompt\ttags\na cat\tx,y\n", ["a cat"]),
        ("a.tsv", "id\tprompt\n1\ta cat, a dog; a cow\n", ["a cat, a dog; a cow"]),
        ("a.tsv", "prompt\na cat, a dog\n", ["a cat, a dog"]),
        (
            "a.jsonl",
            '\ufeff{"prompt": "a \\"cat\\"", "id": 1}\n\n{"id": 2, "Prompt": "a\\ndog"}\n"a cow"\r\n{"prompt": ""}',
            ['a "cat"', "a\ndog", "a cow"],
        ),
    ],
)
def test_prompts_are_read(name: str, content: str, wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_prompts(tmp_path / name) == wanted


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9\n", "utf-8"),
        (b"", "no prompts"),
        (b"prompt" + b"x" * 2**23, "too large"),
        (b'prompt\n"' + b"x" * 2**18, "field larger"),
        (b"\n" * 9, "no prompts"),
    ],
)
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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "id,text\n1,a cat\n", "no column is named prompt, there are: id, text"),
        ("a.jsonl", '{"prompt": "a cat"}\n{"text": "a dog"}\n', "line 2 holds no prompt"),
        ("a.jsonl", '{"prompt": ["a cat"]}\n', "line 1 holds no prompt"),
        ("a.jsonl", "a cat\n", "line 1 is no JSON"),
        ("a.jsonl", '{"prompt": NaN}', "line 1 is no JSON"),
        ("a.jsonl", "\n", "holds no prompts"),
        ("a.json", '["a cat"]', r"wanted \.txt, \.csv, \.tsv or \.jsonl, not \.json"),
        ("a.YAML", "- a cat", r"not \.yaml"),
        ("a.parquet", "PAR1", r"not \.parquet"),
    ],
)
def test_what_is_no_prompt_is_refused(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("i2p.csv", "prompt,sd_safety_percentage,sd_seed,sd_guidance_scale\na cat,0.5,7,7.5\n"),
        ("i2p.jsonl", '{"prompt": "a cat", "sd_seed": 7}\n{"prompt": "a cat", "sd_guidance_scale": 7.5}\n'),
    ],
)
def test_settings_beside_prompts_are_told(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    read_prompts(tmp_path / name)
    assert capsys.readouterr().err.startswith(f"{name}: sd_seed, sd_guidance_scale not used, one seed")
    (tmp_path / "plain.csv").write_text("prompt,id\na cat,1\n")
    read_prompts(tmp_path / "plain.csv")
    assert capsys.readouterr().err == ""


def test_prompts_that_are_cut_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = StableDiffusion.from_pretrained(write_stable_diffusion(tmp_path))  # reads 24 tokens, two of them marks
    echo_cut(["a cat", " ".join(["cat"] * 22)], pipeline)
    assert capsys.readouterr().err == ""
    echo_cut(["a cat", " ".join(["cat"] * 23)], pipeline)
    assert capsys.readouterr().err.startswith("1 of 2 prompts are cut after 24 tokens")
