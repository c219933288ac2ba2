"""Zarr folders come back as they were written: ``tests/zarr_v2`` was written by zarr 3.1 in format 2, with Blosc, zlib
in Fortran's order, chunks that overhang and chunks that are not there."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import read_or_refused, refused

from rrpolicy.data import from_zarr, load_dataset

MADE = Path(__file__).parent / "zarr_v2"
N = 12
ROWS = np.arange(N, dtype=np.float32)
STATE, KEYPOINT = np.stack([ROWS, ROWS**2, -ROWS], axis=1), np.arange(4 * N).reshape(N, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy whose chunks of Blosc are plain, so that numcodecs is not needed."""
    shutil.copytree(MADE, tmp_path / "set")
    for key, values in (("action", np.stack([ROWS / 10, -ROWS], axis=1)), ("state", STATE.astype(float))):
        write(tmp_path / "set" / "data" / key, values)
    return tmp_path / "set"


def write(path: Path, values: np.ndarray, **changes: Any) -> None:
    """An array in one chunk that is not packed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    about = {"shape": values.shape, "chunks": values.shape, "dtype": values.dtype.str, "fill_value": 0, "order": "C",
             "filters": None, "compressor": None, "zarr_format": 2}  # fmt: skip
    (path / ".zarray").write_text(json.dumps({**about, **changes}))
    (path / ".".join("0" * values.ndim)).write_bytes(values.tobytes())


def test_what_zarr_wrote() -> None:
    pytest.importorskip("numcodecs")
    with pytest.warns(UserWarning, match="pictures are left out of the observation: img"):
        data = load_dataset(MADE)
    np.testing.assert_array_equal(data.observations, np.concatenate([KEYPOINT, STATE], axis=1))
    np.testing.assert_array_equal(data.actions, np.stack([ROWS / 10, -ROWS], axis=1).astype(np.float32))
    assert data.episode_lengths.tolist() == [3, 5, 4] and data.rewards is None and data.terminated is None
    assert data.metadata == {"source": "zarr_v2", "format": "zarr", "observation_keys": ["keypoint", "state"]}
    np.testing.assert_array_equal(from_zarr(MADE, ["state"]).observations, STATE)


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_plain_and_zlib_chunks_need_nothing_more(folder: Path) -> None:
    data = load_dataset(folder)
    np.testing.assert_array_equal(data.observations, np.concatenate([KEYPOINT, STATE], axis=1))
    write(folder / "data" / "reward", ROWS[:, None])
    np.testing.assert_array_equal(load_dataset(folder).rewards, ROWS)
    shutil.rmtree(folder / "data" / "state")
    np.testing.assert_array_equal(load_dataset(folder).observations, KEYPOINT)
    (folder / "data" / "keypoint" / "1.0.0").unlink()  # rows 4 to 7 hold what missing chunks hold
    assert (load_dataset(folder).observations == np.where(np.arange(N)[:, None] // 4 == 1, 0, KEYPOINT)).all()


def test_without_numcodecs_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numcodecs", "numcodecs.blosc"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"pip install 'rrpolicy\[zarr\]'"):
        from_zarr(MADE, ["state"])


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
@pytest.mark.parametrize(("changes", "words"), [
    ({"filters": [{"id": "pickle"}]}, "wanted numbers of format 2 without filters"),
    ({"compressor": {"id": "pickle"}}, "is packed by pickle, wanted blosc"),
    ({"compressor": {"id": "bz2"}}, "is packed by bz2, wanted blosc"),
    ({"compressor": "x"}, "does not describe an array of Zarr"),
    ({"dtype": "|O"}, r"holds \|O, wanted numbers"),
    ({"dtype": [["a", "<f4"]]}, "does not describe an array|wanted numbers"),
    ({"dtype": "__import__('os')"}, "wanted numbers"),
    ({"dtype": "(1,2f4"}, "wanted numbers"),
    ({"dtype": None}, "does not describe an array of Zarr"),
    ({"fill_value": 10**400}, "does not describe an array of Zarr"),
    ({"shape": [10**9, 3]}, "declares .* chunks, and has no files"),
    ({"shape": [10**9, 3], "chunks": [10**9, 3]}, r"takes \d+ bytes, too many for"),
    ({"chunks": [10**12, 3]}, r"takes \d+ bytes, too many for"),
    ({"chunks": [0, 3]}, "has shape .* and chunks"),
    ({"shape": [True, 3]}, "has shape .* and chunks"),
    ({"shape": [-1, 3]}, "has shape .* and chunks"),
    ({"shape": [12]}, "has shape .* and chunks"),
    ({"chunks": [11, 3]}, "is a damaged chunk: it has not the 264 bytes"),
    ({"zarr_format": 3}, "wanted numbers of format 2"),
    ({"dimension_separator": "/../../"}, "is packed by|wanted"),
    ({"fill_value": "x"}, "does not describe an array of Zarr"),
    ({"compressor": {"id": "zlib"}}, "is a damaged chunk"),
    ({"compressor": {"id": "gzip"}}, "is a damaged chunk"),
])  # fmt: skip
def test_hostile_descriptions(folder: Path, changes: dict[str, Any], words: str) -> None:
    write(folder / "data" / "state", STATE.astype(float), **changes)
    refused(folder, words)


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_all_arrays_share_one_budget(folder: Path) -> None:
    for i in range(4):  # each of them alone is allowed
        path = folder / "data" / f"wide{i}"
        write(path, np.zeros((12, 1), np.float32), shape=[12, 10**6], chunks=[12, 10**6])
        (path / "0.0").unlink()
    refused(folder, "takes .* bytes, too many for")


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_broken_folders_are_named(folder: Path) -> None:
    for keys, words in ((["img"], "'img' is no array of numbers"), (["none"], "'none' is no array"), ([], "there is")):
        with pytest.raises(ValueError, match=words):
            from_zarr(folder, keys)
    with pytest.raises(ValueError, match="observation_keys is 'state', wanted a sequence"):
        from_zarr(folder, "state")
    for ends, words in ((np.array([3, 8, 11]), "add up to 12"), (np.array([8, 3, 12]), "episode_lengths holds -5"),
                        (np.array([3.0, 12.0]), "of dtype float64, wanted whole numbers")):  # fmt: skip
        write(folder / "meta" / "episode_ends", ends)
        refused(folder, words)
    shutil.rmtree(folder / "meta")
    refused(folder, "has no array 'meta/episode_ends'")
    shutil.rmtree(folder / "data" / "action")
    refused(folder, "has no array 'data/action', found")


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("numcodecs")
    folder = tmp_path / "set"
    shutil.copytree(MADE, folder)
    for name in ("data/state/.zarray", "data/state/0.0", "data/keypoint/0.0.0", "meta/episode_ends/0"):
        read = read_or_refused(folder, folder / name, 100)
        assert sum(read) < len(read)
