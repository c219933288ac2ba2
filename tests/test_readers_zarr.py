"""Zarr groups come back as they were written: ``tests/data/zarr_v2`` was written by zarr 3.1 in format 2, with Blosc,
zlib in Fortran's order, chunks that overhang and chunks that are not there, ``tests/data/zarr_v3`` in format 3, with
Zstandard, Blosc, transposed big-endian numbers packed by gzip, and chunks named as in format 2 or not there.
"""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.damage import read_or_refused, refused

from rrpolicy.data import from_zarr, load_dataset

MADE, MADE_3 = (Path(__file__).parent / "data" / name for name in ("zarr_v2", "zarr_v3"))
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
    about = {
        "shape": values.shape,
        "chunks": values.shape,
        "dtype": values.dtype.str,
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "compressor": None,
        "zarr_format": 2,
    }
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


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_STORED, above: str = "") -> Path:
    """The group as a zip file, in a folder of it or not."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, above + file.relative_to(folder).as_posix())
    return path


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_what_zarr_wrote_in_format_3() -> None:
    pytest.importorskip("numcodecs")
    data = load_dataset(MADE_3)
    np.testing.assert_array_equal(data.observations, np.concatenate([KEYPOINT, STATE], axis=1))
    np.testing.assert_array_equal(data.actions, np.stack([ROWS / 10, -ROWS], axis=1).astype(np.float32))
    assert data.episode_lengths.tolist() == [3, 5, 4]
    np.testing.assert_array_equal(data.rewards, np.where((ROWS >= 4) & (ROWS < 8), ROWS, 2.5))  # a fill value
    assert data.metadata == {"source": "zarr_v3", "format": "zarr", "observation_keys": ["keypoint", "state"]}


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
@pytest.mark.parametrize("above", ["", "replay_buffer.zarr/"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("made", [MADE, MADE_3], ids=["format 2", "format 3"])
def test_zip_files_are_as_good_as_folders(made: Path, method: int, above: str, tmp_path: Path) -> None:
    pytest.importorskip("numcodecs")
    path = zipped(made, tmp_path / "set.zarr.zip", method, above)
    data, wanted = load_dataset(path), load_dataset(made)
    np.testing.assert_array_equal(data.observations, wanted.observations)
    np.testing.assert_array_equal(data.actions, wanted.actions)
    assert data.episode_lengths.tolist() == wanted.episode_lengths.tolist()
    assert data.metadata["source"] == "set.zarr.zip"


def test_zip_files_of_something_else_are_named(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    path.write_bytes(b"PK" + bytes(100))
    refused(path, "is not a readable zip file")
    zipped(tmp_path, path)
    refused(path, r"has no array 'data/action', found \[\]")
    zipped(MADE, path, zipfile.ZIP_BZIP2)
    refused(path, "is compressed by method 12, wanted none or deflate")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/action/.zarray", "[" + " " * 10**6 + "]")
    refused(path, "is longer than 65536 bytes")
    content = bytearray(zipped(MADE, path).read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # the directory's last; bytes 20 to 23 are the packed size
    content[entry + 20 : entry + 24] = (2**31).to_bytes(4, "little")
    path.write_bytes(content)
    refused(path, "its members are larger than itself")
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_zarr(tmp_path / "none.zip")


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_a_chunk_that_unpacks_to_more_than_it_may_is_refused(folder: Path, tmp_path: Path) -> None:
    write(folder / "data" / "state", np.zeros((N, 3)))
    (folder / "data" / "state" / "0.0").write_bytes(bytes(10**7))
    refused(zipped(folder, tmp_path / "set.zip", zipfile.ZIP_DEFLATED), "state/0.0: is longer than")


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_files_that_are_no_files_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "data" / "state" / "9.9")
    refused(folder, "is not a regular file")


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
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"filters": [{"id": "pickle"}]}, "wanted numbers of format 2 without filters"),
        ({"compressor": {"id": "pickle"}}, "is packed by pickle, wanted one of blosc"),
        ({"compressor": {"id": "bz2"}}, "is packed by bz2, wanted one of blosc"),
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
    ],
)
def test_hostile_descriptions(folder: Path, changes: dict[str, Any], words: str) -> None:
    write(folder / "data" / "state", STATE.astype(float), **changes)
    refused(folder, words)


def described(changes: dict[str, Any]) -> dict[str, Any]:
    """A description in format 3 of the array ``state``."""
    about = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [N, 3],
        "data_type": "float64",
        "fill_value": 0.0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [N, 3]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    return {**about, **changes}


@pytest.fixture
def folder_3(tmp_path: Path) -> Path:
    """A group of format 3 whose state is one chunk that is not packed."""
    pytest.importorskip("numcodecs")
    shutil.copytree(MADE_3, tmp_path / "set")
    state = tmp_path / "set" / "data" / "state"
    shutil.rmtree(state)
    (state / "c" / "0").mkdir(parents=True)
    (state / "c" / "0" / "0").write_bytes(STATE.astype(float).tobytes())
    (state / "zarr.json").write_text(json.dumps(described({})))
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_type": "string"}, "holds string, wanted numbers"),
        ({"data_type": "complex64"}, "holds complex64, wanted numbers"),
        ({"data_type": {"name": "numpy.datetime64"}}, "holds .* wanted numbers"),
        ({"data_type": "float64; import os"}, "wanted numbers"),
        ({"node_type": "group"}, "is no array of format 3"),
        ({"zarr_format": 2}, "is no array of format 3"),
        (
            {"codecs": [{"name": "sharding_indexed", "configuration": {}}]},
            "is packed by sharding_indexed, wanted one of",
        ),
        ({"codecs": [{"name": "bytes"}, {"name": "crc32c"}]}, "is packed by crc32c"),
        ({"codecs": [{"name": "bytes"}, {"name": "gzip"}, {"name": "gzip"}]}, "is packed by gzip"),
        ({"codecs": [{"name": "gzip"}, {"name": "bytes"}]}, "is packed by gzip"),
        ({"codecs": [{"name": "bytes"}, {"name": "pickle"}]}, "is packed by pickle"),
        ({"codecs": [{"name": "bytes", "configuration": {"endian": "middle"}}]}, "in which order the bytes"),
        ({"codecs": []}, "in which order the bytes"),
        ({"codecs": [{"name": "transpose", "configuration": {"order": [0, 0]}}, {"name": "bytes"}]}, "has shape"),
        (
            {"codecs": [{"name": "transpose", "configuration": {"order": [0, 5]}}, {"name": "bytes"}]},
            "does not describe",
        ),
        ({"codecs": "bytes"}, "does not describe an array"),
        ({"codecs": [{"name": "bytes"}, {"name": "zstd"}]}, "is a damaged chunk: it is no frame of Zstandard"),
        ({"codecs": [{"name": "bytes"}, {"name": "blosc"}]}, "is a damaged chunk: it declares"),
        ({"codecs": [{"name": "bytes"}, {"name": "gzip"}]}, "is a damaged chunk"),
        ({"chunk_grid": {"name": "rectangular"}}, "not of one shape"),
        ({"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "/../"}}}, "in their names, wanted"),
        ({"chunk_key_encoding": {"name": "other"}}, "oddly named"),
        ({"storage_transformers": [{"name": "x"}]}, "has storage transformers"),
        ({"shape": [10**9, 3]}, "declares .* chunks, and has no files"),
        ({"shape": [N, -3]}, "has shape"),
        ({"shape": [N, 3.0]}, "has shape"),
        ({"fill_value": "x"}, "does not describe an array"),
        ({"fill_value": None}, "does not describe an array"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [11, 3]}}}, "has not the 264 bytes"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**12, 3]}}}, "bytes, too many for"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_hostile_descriptions_of_format_3(folder_3: Path, changes: dict[str, Any], words: str) -> None:
    np.testing.assert_array_equal(from_zarr(folder_3, ["state"]).observations, STATE)
    (folder_3 / "data" / "state" / "zarr.json").write_text(json.dumps(described(changes)))
    refused(folder_3, words)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x28\xb5\x2f\xfd\xe4" + b"\xff" * 12,
        b"\x28\xb5\x2f\xfd\x04\x00" + bytes(20),
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd\x60\x20\x00" + b"\xff" * 9,
        b"",
    ],
    ids=["huge", "of no size", "cut", "of the right size, damaged", "empty"],
)
@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_damaged_frames_of_zstandard(folder_3: Path, frame: bytes) -> None:
    changes = {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}]}
    (folder_3 / "data" / "state" / "zarr.json").write_text(json.dumps(described(changes)))
    (folder_3 / "data" / "state" / "c" / "0" / "0").write_bytes(frame)
    refused(folder_3, "is a damaged chunk")


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
    for ends, words in (
        (np.array([3, 8, 11]), "add up to 12"),
        (np.array([8, 3, 12]), "episode_lengths holds -5"),
        (np.array([3.0, 12.0]), "of dtype float64, wanted whole numbers"),
    ):
        write(folder / "meta" / "episode_ends", ends)
        refused(folder, words)
    shutil.rmtree(folder / "meta")
    refused(folder, "has no array 'meta/episode_ends'")
    shutil.rmtree(folder / "data" / "action")
    refused(folder, "has no array 'data/action', found")


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("numcodecs")
    names = {
        MADE: ("data/state/.zarray", "data/state/0.0", "data/keypoint/0.0.0", "meta/episode_ends/0"),
        MADE_3: ("data/state/zarr.json", "data/state/c/0/0", "data/action/c/0/0", "data/keypoint/0.0.0"),
    }
    for made, files in names.items():
        folder = tmp_path / made.name
        shutil.copytree(made, folder)
        for name in files:
            read = read_or_refused(folder, folder / name, 100)
            assert sum(read) < len(read)
        path = zipped(made, tmp_path / f"{made.name}.zip")
        assert sum(read_or_refused(path, path, 200)) < 200
