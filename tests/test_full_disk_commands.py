"""Disks that become full: one line that names the file, nothing half written, and what was there before is intact."""

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fuzz.full_disk import small_disk
from fuzz.programs import JOBS, MORE, Forked, content, leftovers, prepare
from helpers.agents import make_agent
from PIL import Image

from rrpolicy import __main__ as entry
from rrpolicy import zoo
from rrpolicy.common import folders
from rrpolicy.common.files import atomic_write, naming, write_text
from rrpolicy.common.progress import ProgressLog
from rrpolicy.evaluation.ffmpeg import encode
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.experiments.runs import begin_anew
from rrpolicy.images.folders import write_pictures
from rrpolicy.rl import on_reward

ALL = {job.name: job for job in (*JOBS, *MORE)}
FULL = ("File too large", "No space left on device", "bytes are free, wanted")
LIMITED = [
    "plot learning-curve",
    "images record",
    "images extract --resume",
    "images sample",
    "images audit",
    "images score",
    "collect --from-training",
]
IN_MAZES = [  # where the environment writes temporary files, too
    "train",
    "extract",
    "record-video",
    "plot heat-map",
    "enjoy --out",
    "demo",
    "train-on-reward",
]
REPLACE = ["extract", "record-video", "images sample"]
MORE_OF_A_KIND = {  # record-video: see also test_a_disk_that_is_full
    *("images extract --resume", "images score", "images audit"),
    *("extract", "enjoy --out", "demo", "record-video"),
}


def few(names: list[str]) -> list[Any]:
    """Commands that write archives, tables, pictures, videos and data; others write as one of them does."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in MORE_OF_A_KIND)) for name in names]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(zoo.FOLDER_VARIABLE, "")
        patch.setenv(RECIPES_VARIABLE, "")
        patch.setattr(on_reward, "SETTINGS", on_reward.SETTINGS)
        patch.setattr(folders, "MARGIN", folders.MARGIN)
        yield prepare(tmp_path_factory.mktemp("world"))


def said(world: Path) -> str:
    """The only line on stderr, or a table and then that line."""
    log = (world / "log").read_text()
    assert "Traceback" not in log and "Exception ignored" not in log, log
    line = log.splitlines()[-1]
    assert line.startswith("rrpolicy: error: ") and log.count("error: ") == 1, log
    assert len(line) <= 300 and line.isprintable()
    return line


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def check_refused(name: str, world: Path, out: Path, limit: int | None) -> None:
    assert Forked(ALL[name].arguments(world, out), world / "log", limit).wait() == 1
    line = said(world)
    assert str(out) in line and any(words in line for words in FULL)
    assert leftovers(out) == []


@pytest.mark.parametrize("name", few(LIMITED))
def test_a_command_that_can_write_nothing_says_so(name: str, world: Path, tmp_path: Path) -> None:
    check_refused(name, world, tmp_path / "new" / "out", limit=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", few(IN_MAZES))
def test_wherever_it_runs(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", full)
    check_refused(name, world, tmp_path / "new" / "out", limit=None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "tfevents" not in path.name]


def test_a_thread_that_cannot_write_leaves_it_to_others_to_say_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def program() -> None:
        for error in (OSError(errno.ENOSPC, "full"), ValueError("a bug")):
            threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))

    monkeypatch.setattr(entry, "import_module", lambda _: SimpleNamespace(main=program))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    entry.main()
    said = capsys.readouterr().err
    assert "ValueError: a bug" in said and "full" not in said


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path / "progress.csv")
    log.write({"time/total_timesteps": 1}, {})
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(OSError, match=r"progress\.csv"):
        log.write({"time/total_timesteps": 2}, {})


@pytest.mark.parametrize("name", few(REPLACE))
def test_what_was_there_is_intact(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert Forked(ALL[name].arguments(world, out), world / "log").wait() == 0
    before = content(out)
    monkeypatch.setattr("os.fsync", full)
    check_refused(name, world, out, limit=None if name in IN_MAZES else 0)
    assert content(out) == before


@pytest.mark.parametrize("name", ["train", "images record", "record-video"])
def test_a_disk_that_is_full(name: str, world: Path, tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path / "disk", 12 * 1024) as disk:
            assert Forked(ALL[name].arguments(world, disk / "out"), world / "log").wait() == 1
            assert leftovers(disk) == []
    except PermissionError as error:
        pytest.skip(str(error))
    assert any(words in said(world) for words in FULL)


# ---------------------------------------------------------------------- part by part


def test_the_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as unnamed, atomic_write(tmp_path / "new" / "agent.zip"):
        full()
    assert unnamed.value.filename == str(tmp_path / "new" / "agent.zip")
    with pytest.raises(FileNotFoundError) as hidden, naming(tmp_path / "a.png", tmp_path / "below"):
        (tmp_path / "below" / "b.png").write_bytes(b"")
    assert hidden.value.filename == str(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError) as other, naming(tmp_path / "a.png", tmp_path / "below"):
        (tmp_path / "other" / "b.png").read_bytes()
    assert other.value.filename == str(tmp_path / "other" / "b.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
def test_a_failure_at_the_last_moment(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "file.txt", "old")
    monkeypatch.setattr(broken, full)
    with pytest.raises(OSError, match="No space left on device"):
        write_text(tmp_path / "file.txt", "new")
    assert (tmp_path / "file.txt").read_text() == "old" and leftovers(tmp_path) == []


def test_pictures_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = np.zeros((3, 4, 4, 3), np.uint8), np.full((3, 4, 4, 3), 9, np.uint8)
    paths = write_pictures(old, tmp_path, "sample")
    save, saved = Image.Image.save, []

    def second_fails(image: Image.Image, path: Any, *more: Any) -> None:
        saved.append(path)
        full() if len(saved) == 2 else save(image, path, *more)

    monkeypatch.setattr(Image.Image, "save", second_fails)
    with pytest.raises(OSError, match=r"No space left on device: '.*sample-0001\.png'"):
        write_pictures(new, tmp_path, "sample")
    assert sorted(tmp_path.iterdir()) == paths
    assert all(np.asarray(Image.open(path)).max() == 0 for path in paths)


def test_room_is_looked_for_before_anything_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "agent.zip").write_bytes(bytes(1000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folders, "MARGIN", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500))
    folders.check_space(tmp_path, 1500, instead_of=("agent.zip", "gone.zip"))
    with pytest.raises(OSError, match="1500 bytes are free, wanted 1501") as fault:
        folders.check_space(tmp_path, 1501, instead_of=("agent.zip",))
    assert fault.value.errno == errno.ENOSPC and fault.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="1500 bytes are free"):
        begin_anew(tmp_path, ("agent.zip",), make_agent())
    assert (tmp_path / "agent.zip").exists()


@pytest.mark.parametrize("n_pictures", [1, 400], ids=["at its end", "in between"])
def test_an_encoder_that_fails_is_quoted(n_pictures: int, tmp_path: Path) -> None:
    picture: Callable[[], Any] = lambda: np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)  # noqa: E731
    with pytest.raises(OSError, match=r"the video cannot be written: .*No such file or directory"):
        encode((picture() for _ in range(n_pictures)), tmp_path / "gone" / "video.mp4", 30)
