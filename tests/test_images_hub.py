"""Models by a name of the hub where it cannot be reached: its local copy, or one line, after one attempt."""

import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import requests
import torch
from helpers.pipelines import write_ddpm, write_stable_diffusion
from huggingface_hub.errors import RepositoryNotFoundError
from test_images_cli import fault

from rrpolicy.images import StableDiffusion, UNetScoreModel, load_pipeline


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No network, an empty cache, and the hosts that were looked up all the same."""
    hosts: list[str] = []

    def unknown(host: str, *_: Any, **__: Any) -> None:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hosts


def cached(model: Path, cache: Path, name: str) -> None:
    """Lay a model where a download from the hub leaves it."""
    place = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)


@pytest.mark.parametrize("kind", ["--prompts", "without"])
def test_a_hub_out_of_reach_is_told_in_one_line_after_one_attempt(
    kind: str, lookups: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    prompts = ["--prompts", tmp_path / "prompts.txt", "--safety", "max"]
    more = prompts if kind == "--prompts" else ["--expert", "owner/b"]
    said = fault("record", "--base", "owner/gone", *more, "--out", tmp_path / "x")  # one line on stderr
    assert "cannot reach the hub (ConnectionError) and owner/gone is not in the local cache" in said
    assert len(lookups) == 1 and capfd.readouterr() == ("", "")


def test_an_expert_is_looked_for_before_the_base_is_read(lookups: list[str], tmp_path: Path) -> None:
    write_stable_diffusion(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    shutil.rmtree(tmp_path / "sd" / "vae")  # would be told by whoever reads it
    for option in ("--expert", "--expert-unet"):
        said = fault(
            "record",
            "--base",
            tmp_path / "sd",
            option,
            "owner/gone",
            "--prompts",
            tmp_path / "prompts.txt",
            "--out",
            tmp_path / "x",
        )
        assert "owner/gone is not in the local cache" in said


def test_no_attempt_is_made_where_the_hub_is_switched_off(lookups: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for read in (load_pipeline, StableDiffusion.from_pretrained, UNetScoreModel.from_pretrained):
        with pytest.raises(ValueError, match=r"cannot reach the hub \(HF_HUB_OFFLINE is set\) and owner/gone"):
            read("owner/gone")
    assert lookups == []


def test_local_copies_are_read_without_the_hub(lookups: list[str], tmp_path: Path) -> None:
    write_ddpm(tmp_path / "base")
    write_stable_diffusion(tmp_path / "sd")
    for name in ("base", "sd"):
        cached(tmp_path / name, tmp_path / "cache", f"owner/{name}")
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([3])
    mine, theirs = (UNetScoreModel.from_pretrained(name) for name in (tmp_path / "base", "owner/base"))
    assert torch.equal(mine.eps(x, t), theirs.eps(x, t)) and mine.digests == theirs.digests
    assert load_pipeline("owner/sd").digests == load_pipeline(tmp_path / "sd").digests
    assert set(lookups) == {"huggingface.co"} and len(lookups) <= 3


def test_what_the_hub_does_not_have_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise RepositoryNotFoundError("404", response=requests.Response())

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", none)
    with pytest.raises(ValueError, match="the hub has no model of this name open to you"):
        load_pipeline("owner/gone")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"a/b\.\.c is no folder, and no name of the hub"):
        load_pipeline("a/b..c")
