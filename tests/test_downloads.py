"""Downloads of D4RL's files: by https, with room, of the size and digest that were published; whatever else arrives is
refused before it takes the file's name. Servers are fakes."""

import hashlib
import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_readers import LENGTHS, N, d4rl_file, fake_d4rl, same

from rrpolicy.data import TrajectoryDataset, load_dataset
from rrpolicy.data.d4rl_digests import PUBLISHED, Published, published

DATASET = TrajectoryDataset.from_arrays(np.ones((N, 4)), np.ones((N, 2)), np.arange(N), episode_lengths=LENGTHS)


class Remote(io.BytesIO):
    """A server's answer."""

    def __init__(self, content: bytes, url: str = "https://somewhere/a/file.hdf5", **headers: str) -> None:
        super().__init__(content)
        self.url, self.headers = url, {key.replace("_", "-"): value for key, value in headers.items()}


def test_downloads_are_checked_before_they_take_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, asked = d4rl_file(tmp_path / "file.hdf5", DATASET).read_bytes(), []
    size, digest = str(len(content)), hashlib.sha256(content).hexdigest()
    fake_d4rl(monkeypatch, {"hopper-medium-v2": "http://somewhere/a/file.hdf5"}, tmp_path / "own")
    for answer, known, words in (
        (Remote(content, Content_Length="12"), None, "more than 12 bytes arrived"),
        (Remote(content, Content_Length=str(2**40)), None, "wanted at most 8589934592"),
        (Remote(content, Content_Length="many"), None, "announces 'many' bytes"),
        (Remote(content, url="http://somewhere/a/file.hdf5"), None, "leads to http://.* wanted an address of https"),
        (Remote(b"<html>"), None, "what arrived is not a readable HDF5 file"),
        (Remote(content), Published(len(content) - 1, digest), f"more than {len(content) - 1} bytes arrived"),
        (Remote(content), Published(len(content) + 1, digest), f"{size} of {len(content) + 1} bytes arrived"),
        (Remote(content), Published(len(content), "0" * 64), f"has the SHA-256 digest {digest}, wanted 0000"),
        (Remote(content, Content_Length=size), Published(len(content), digest), None),
    ):
        monkeypatch.setattr("urllib.request.urlopen", lambda url, answer=answer, **_: asked.append(url) or answer)
        monkeypatch.setattr("rrpolicy.data.d4rl_digests.PUBLISHED", {"a/file.hdf5": known} if known else {})
        if words is None:
            same(load_dataset("d4rl:hopper-medium-v2"), DATASET)
            break
        with pytest.raises(ValueError, match=words):
            load_dataset("d4rl:hopper-medium-v2")
        assert not (tmp_path / "own").exists()
    assert set(asked) == {"https://somewhere/a/file.hdf5"}


def test_downloads_have_room_and_a_safe_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"ftp-v0": "ftp://somewhere/file.hdf5", "full-v0": "https://somewhere/a/file.hdf5"}
    fake_d4rl(monkeypatch, addresses, tmp_path / "own")
    with pytest.raises(ValueError, match=r"d4rl:ftp-v0: its address is ftp.* wanted one of https"):
        load_dataset("d4rl:ftp-v0")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Remote(b"", Content_Length=str(2**20)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(ValueError, match=r"d4rl:full-v0: could not be downloaded.*4096 bytes are free"):
        load_dataset("d4rl:full-v0")
    assert not (tmp_path / "own").exists()


def test_published_digests() -> None:
    assert published("http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5") == (
        152756557,
        "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0",
    )
    assert all(re.fullmatch("[0-9a-f]{64}", known.sha256) and known.size > 2e6 for known in PUBLISHED.values())
    assert len({known.sha256 for known in PUBLISHED.values()}) == len(PUBLISHED) == 33
    assert published("https://elsewhere/maze2d/maze2d-open-sparse.hdf5") is None
