"""Recordings whose files others have changed: made again, or refused at once in one line that names the file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from test_cli import fault
from test_images_recording import CODEC, record_mixtures

from rrpolicy.images.recording import codec_of
from rrpolicy.rewards import recorded
from rrpolicy.rewards.recorded import RecordedPairs

EVENTS = torch.zeros(6, 1, 4, 4)
ROWS = {"x_t": EVENTS, "t": torch.zeros(6, dtype=torch.int64), "eps_difference": EVENTS.clone()}


def test_a_recording_tells_its_codec(tmp_path: Path) -> None:
    assert codec_of(record_mixtures(tmp_path)).to_dict() == CODEC.to_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.pop("codec"), "lacks codec"),
        (lambda about: about.update(codec=None), "lacks codec"),
        (lambda about: about.pop("n_value_draws"), "lacks n_value_draws"),
        (lambda about: about["codec"].update(shape=[1, 16, 16]), "events of shape"),
        (lambda about: about["codec"].update(unshuffle=3), "codec"),
    ],
)
def test_recordings_that_lack_what_images_need(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    record_mixtures(tmp_path / "pairs", n_samples=1)
    path = tmp_path / "pairs" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest["about"])
    path.write_text(json.dumps(manifest))
    line = fault("images", "extract", "--recording", path.parent, "--out", tmp_path / "out", "--no-progress")
    assert str(path) in line and words in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["scalar", "one", "rows", "events", "empty", "folder"])
def test_shards_that_are_not_whole_are_made_again(name: str, tmp_path: Path) -> None:
    whole = record_mixtures(tmp_path / "whole", n_samples=1).shard(0)
    record_mixtures(tmp_path / "damaged", n_samples=1)
    (tmp_path / "damaged" / "manifest.json").unlink()
    damaged: dict[str, dict[str, torch.Tensor]] = {
        "scalar": {**ROWS, "t": torch.tensor(3)},
        "one": {"t": ROWS["t"]},
        "rows": {**ROWS, "t": ROWS["t"][:2]},
        "events": {**ROWS, "x_t": torch.zeros(6, 1, 4, 5)},
        "empty": {name: tensor[:0] for name, tensor in ROWS.items()},
    }
    path = tmp_path / "damaged" / "shard-00000.safetensors"
    if name != "folder":
        safetensors.torch.save_file(damaged[name], path)
        again = record_mixtures(tmp_path / "damaged", n_samples=1).shard(0)
        assert len(again) == len(whole) and torch.equal(again.x_t, whole.x_t)
        return
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="shard-00000"):
        record_mixtures(tmp_path / "damaged", n_samples=1)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"format":' + b"9" * 5000 + b"}",
        b"{",
        b"\xff",
        b"[1]",
        b"null",
        b'{"format": 1, "format": 1}',
        b'{"seed": NaN}',
    ],
)
def test_settings_are_read_strictly(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"settings\.json is ") as caught:
        record_mixtures(tmp_path, n_samples=1)
    assert len(str(caught.value)) <= 400 and str(caught.value).isprintable()


def test_settings_of_others_are_shown_briefly(tmp_path: Path) -> None:
    record_mixtures(tmp_path, n_samples=1)
    settings = json.loads((tmp_path / "settings.json").read_text())
    settings["about"]["seed"] = "\x1b[31m" + "x" * 10**6
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="other settings") as caught:
        record_mixtures(tmp_path, n_samples=1)
    assert len(str(caught.value)) <= 400 and str(caught.value).isprintable()


def test_what_could_not_be_opened_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"a manifest of .* bytes, wanted at most {recorded.MAX_MANIFEST_BYTES}"):
        record_mixtures(tmp_path, about={"base": "x" * recorded.MAX_MANIFEST_BYTES})
    assert not list(tmp_path.iterdir())
    assert isinstance(record_mixtures(tmp_path), RecordedPairs)
