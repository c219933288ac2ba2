"""Archives are published and loaded again through the real client library, against a double of the hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.exported import FOLDER
from helpers.hub_server import serving
from helpers.old_archives import ARCHIVES

from rrpolicy import zoo
from rrpolicy.common.archive import read_archive, write_archive

SCRIPT = """
import sys
from pathlib import Path
from rrpolicy import zoo
archive, onnx, picture, out = sys.argv[1:]
where = zoo.push(archive, "me/tiny-reward", onnx=onnx, pictures=[picture])
print(where)
print(type(zoo.load(where)).__name__, zoo.hub.with_revision("hub:me/tiny-reward/reward.zip") == where)
second = zoo.push(archive, "me/tiny-reward")
print(second != where, zoo.pull(where.rpartition("/")[0], out).name, sorted(file.name for file in Path(out).iterdir()))
for fault in (lambda: zoo.pull("hub:me/nothing", out), lambda: zoo.load("hub:me/tiny-reward/absent.zip")):
    try:
        fault()
    except ValueError as error:
        print("refused", str(error).splitlines()[0][:60])
reward = type(zoo.load(where)).from_pretrained(where, device="cpu")
again = reward.push_to_hub("me/again", {"seed": 4}, license="apache-2.0")
print("again", type(reward).from_pretrained(again).source == reward.source, zoo.card(again)["seed"])
import huggingface_hub.constants
huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
try:
    zoo.push(archive, "me/tiny-reward")
except ValueError as error:
    print("unreachable", len(str(error).splitlines()), str(error).startswith("hub:me/tiny-reward: "))
"""
ROWS = [{"agent": "steered", "metric": "return", "mean": 12.5, "ci_low": 10.0, "ci_high": 15.0, "n": 4}]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A reward whose card has facts and numbers."""
    kept = read_archive(ARCHIVES / "reward.zip")
    card = {"environment": "Hopper-v5", "seed": 3, "about": "a | b <script>", "results": ROWS}
    return write_archive(tmp_path / "reward", kept.kind, kept.config, kept.tensors, card)


def environment(url: str, home: Path) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}


def test_what_is_published_is_loaded_again_by_its_commit(archive: Path, tmp_path: Path) -> None:
    picture, out = tmp_path / "map.png", tmp_path / "out"
    picture.write_bytes(b"\x89PNG")
    arguments = [str(archive), str(FOLDER / "reward.onnx"), str(picture), str(out)]
    with serving() as hub:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(hub.url, tmp_path / "home"),
        )
        assert done.returncode == 0, done.stderr
        (first, files), (_, later) = hub.repositories["me/tiny-reward"]
        assert b"license: apache-2.0" in hub.repositories["me/again"][0][1]["README.md"]
    lines = done.stdout.splitlines()
    assert lines[0] == f"hub:me/tiny-reward@{first}/reward.zip"
    assert lines[1] == "RelativeReward True"
    assert lines[2] == "True reward.zip ['README.md', 'map.png', 'reward.onnx', 'reward.zip']"
    assert [line.split(":")[0] for line in lines[3:5]] == ["refused hub", "refused hub"]
    assert lines[5:] == ["again True 4", "unreachable 1 True"]
    assert set(files) == set(later) == {"reward.zip", "reward.onnx", "map.png", "README.md"}
    assert files["reward.zip"] == archive.read_bytes()


def test_the_card_tells_what_the_archive_tells(archive: Path) -> None:
    text = zoo.model_card(read_archive(archive), "me/tiny-reward", ["map.png", "reward.onnx", "reward.zip"])
    for part in ("library_name: rrpolicy", "license: mit", "- reward", "type: mean_reward", "value: 12.5", "Hopper-v5"):
        assert part in text
    assert 'zoo.load("hub:me/tiny-reward/reward.zip")' in text and "![map.png](map.png)" in text
    assert "| steered | return | 12.5 | [10, 15] | 4 |" in text
    assert "a \\| b \\<script\\>" in text


def test_faults_are_named_before_anything_is_sent(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="repository is 'me', wanted owner/name"):
        zoo.push(archive, "me")
    with pytest.raises(FileNotFoundError, match=r"absent\.zip: no such archive"):
        zoo.push(tmp_path / "absent.zip", "me/reward")
    with pytest.raises(ValueError, match=r"x\.txt: wanted PNG and MP4 files"):
        zoo.push(archive, "me/reward", pictures=[tmp_path / "x.txt"])
    with pytest.raises(ValueError, match="no ONNX file that can be run"):
        zoo.push(archive, "me/reward", onnx=archive)
    with pytest.raises(ValueError, match=r"must have the form hub:owner/name\[@revision\]"):
        zoo.pull("hub:me", tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"hub:me/reward: needs the hub extra"):
        zoo.push(archive, "me/reward")
