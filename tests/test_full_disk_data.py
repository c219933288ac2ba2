"""Data sets and pictures on full disks, and after killed processes: one line, what was there stays, nothing is left.
The room that is left is faked; where a small file system can be mounted, a real one is filled as well."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import h5py
import minari
import numpy as np
import pytest
from minari.data_collector.episode_buffer import EpisodeBuffer

from rrpolicy.common.folders import scratch_folder
from rrpolicy.data import TrajectoryDataset, load_dataset, save_minari
from rrpolicy.experiments import Task
from rrpolicy.experiments.runs import write_dataset
from rrpolicy.images.folders import write_pictures

TASK = Task("PointMaze_UMaze-v3")


def dataset(n_episodes: int = 2, length: int = 5) -> TrajectoryDataset:
    n = n_episodes * length
    return TrajectoryDataset.from_arrays(
        np.arange(4.0 * n).reshape(n, 4), np.zeros((n, 2)), np.ones(n), episode_lengths=[length] * n_episodes
    )


def without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=4096))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB that believes itself to have room."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_without_room_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_room(monkeypatch)
    with pytest.raises(OSError, match=r"4096 bytes are free, wanted [1-9].*set'") as caught:
        save_minari(dataset(), tmp_path / "set")
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()
    with pytest.raises(OSError, match="data could not be written: 4096 bytes are free"):
        write_dataset(dataset(), tmp_path / "data", TASK)
    assert not (tmp_path / "data").exists()
    with pytest.raises(OSError, match="4096 bytes are free"):
        write_pictures(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "pictures", "sample")
    assert not (tmp_path / "pictures").exists()


def test_without_room_the_old_dataset_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(dataset(), tmp_path / "data", TASK)
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    assert sorted(before) == ["main_data.hdf5", "metadata.json", "results.json"]
    without_room(monkeypatch)
    with pytest.raises(OSError, match="could not be written"):
        write_dataset(dataset(3), tmp_path / "data", TASK)
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    monkeypatch.undo()
    write_dataset(dataset(3), tmp_path / "data", TASK)
    assert load_dataset(tmp_path / "data").n_episodes == 3


@pytest.mark.parametrize("taken", [0, 2_000_000, 2_900_000, 3_100_000])
def test_a_disk_that_fills_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """h5py crashes the process here when the file is its own."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=10**9, used=0, free=10**9))
    with open(small_disk / "other", "wb") as file:
        file.truncate(0)
        file.write(bytes(taken) if taken < 3 * 2**20 else bytes(3 * 2**20))
    large = dataset(20, 5000)  # about 3 MB
    with pytest.raises(OSError, match="could not be written: No space left") as caught:
        write_dataset(large, small_disk / "data", TASK)
    assert str(small_disk / "data") in str(caught.value)
    with pytest.raises(OSError, match="No space left"):
        write_pictures(np.random.default_rng(0).integers(0, 255, (1, 2000, 1000, 3), np.uint8), small_disk / "p", "x")
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["other"]


def test_files_are_made_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the disk, HDF5 never has a file on it open for writing."""
    opened = []
    make = h5py.File

    def watched(name: object, *given: object, **options: object) -> h5py.File:
        opened.append((options.get("driver"), options.get("backing_store")))
        return make(name, *given, **options)

    monkeypatch.setattr("h5py.File", watched)
    save_minari(dataset(), tmp_path / "set")
    assert opened == [("core", False)]


def test_minari_can_append_to_what_was_written(tmp_path: Path) -> None:
    found = minari.MinariDataset(save_minari(dataset(), tmp_path / "set"))
    more = {"rewards": np.ones(3), "terminations": np.zeros(3, bool), "truncations": np.arange(3) == 2}
    found.update_dataset_from_buffer([EpisodeBuffer(observations=np.ones((4, 4)), actions=np.zeros((3, 2)), **more)])
    assert load_dataset(tmp_path / "set").episode_lengths.tolist() == [5, 5, 3]
    with h5py.File(tmp_path / "set" / "main_data.hdf5") as file:
        assert list(file) == ["episode_0", "episode_1", "episode_2"]
        assert dict(file["episode_1"].attrs) == {"id": 1, "total_steps": 5}


# ---------------------------------------------------------------------- killed processes


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    out = tmp_path / "data"
    kept = [".scratch-mine", ".other.unfinished", ".git"]
    for name in (*kept, ".scratch.unfinished-1-0", ".scratch.unfinished-999999-7"):
        (out / name).mkdir(parents=True)
        (out / name / "main_data.hdf5").write_bytes(b"half")
    with scratch_folder(out) as alive:
        write_dataset(dataset(), out, TASK)
        hidden = sorted(path.name for path in out.iterdir() if path.name.startswith("."))
        assert hidden == sorted([*kept, alive.name])


def test_scratch_folders_carry_their_process_and_vanish(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path) as scratch:
        assert scratch.parent == tmp_path and f"unfinished-{os.getpid()}-" in scratch.name
        with scratch_folder(tmp_path):
            assert scratch.exists()  # of a living process
        (scratch / "file").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
