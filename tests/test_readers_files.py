"""npz files and robomimic's HDF5 files come back as they were written; what is damaged, foreign or too large for its
bytes is one clear error that names the file."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.damage import read_or_refused, refused

from rrpolicy import TrajectoryDataset
from rrpolicy.data import from_npz, from_robomimic, load_dataset

LENGTHS = (3, 5, 4)
N = sum(LENGTHS)


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"observations": rng.normal(size=(N, 4)), "actions": rng.uniform(-1, 1, (N, 2)), "rewards": np.arange(N)}


ENDS = {"terminals": np.arange(N) == 2, "timeouts": np.arange(N) == 7}


def same(data: TrajectoryDataset, wanted: dict[str, Any]) -> None:
    for name, values in wanted.items():
        np.testing.assert_array_equal(getattr(data, name), np.asarray(values, dtype=getattr(data, name).dtype))


# ---------------------------------------------------------------------- npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files_with_flags_or_lengths(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **arrays(), **ENDS, next_observations=np.zeros(3))
    ends = {"terminated": [True, False, False], "truncated": [False, True, False]}
    data = load_dataset(tmp_path / "a.npz")
    same(data, {**arrays(), "episode_lengths": LENGTHS, **ends})
    assert data.metadata == {"source": "a.npz", "format": "npz"}
    save(tmp_path / "b.npz", **arrays(), episode_lengths=LENGTHS, **ends)
    same(from_npz(tmp_path / "b.npz"), {**arrays(), "episode_lengths": LENGTHS, **ends})
    plain = {"observations": np.asfortranarray(arrays()["observations"]), "actions": arrays()["actions"].astype(">f4")}
    save(tmp_path / "c.npz", **plain, episode_lengths=LENGTHS)
    data = load_dataset(tmp_path / "c.npz")
    same(data, plain)
    assert data.rewards is None and data.terminated is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": None}, "array 'actions' is missing, found"),
        ({"timeouts": None}, "either terminals and timeouts, or episode_lengths, found .*'terminals'"),
        ({"terminals": None, "timeouts": None}, "either terminals and timeouts, or episode_lengths"),
        ({"episode_lengths": LENGTHS}, "either terminals and timeouts, or episode_lengths"),
        ({"terminated": [True] * 3}, "either terminals and timeouts, or episode_lengths"),
        ({"actions": np.zeros((N - 1, 2))}, f"actions has {N - 1} rows, wanted {N}"),
        ({"rewards": np.full(N, np.nan)}, "rewards holds nan at row 0"),
        ({"rewards": np.zeros((N, 1))}, "rewards has shape"),
        ({"rewards": np.array([None] * N)}, "'rewards' holds object, wanted real numbers"),
        ({"observations": np.zeros((N, 4), "f4,f4")}, "'observations' holds .*wanted real numbers"),
        ({"observations": np.full((N, 4), "a")}, "'observations' holds <U1, wanted real numbers"),
    ],
)
def test_broken_npz_files_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    values = {name: one for name, one in {**arrays(), **ENDS, **changes}.items() if one is not None}
    np.savez(tmp_path / "a.npz", **values)
    refused(tmp_path / "a.npz", words)


def packed(path: Path, header: bytes, content: bytes = b"", method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An npz file whose observations are these bytes."""
    np.savez(path, actions=np.zeros((N, 1)), episode_lengths=[N])
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("observations.npy", header + content)
    return path


def header(shape: Any, descr: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "content", "words"),
    [
        (header((10**9, 4)), b"", "of shape .* takes 16000000000 bytes, more than its file can justify"),
        (header((N, 4)), bytes(9), "not as long as its shape"),
        (header((N, 1)), bytes(2 * 10**8), "not as long as its shape"),  # inflates to much more
        (header((-1, 4)), bytes(10**8), r"'observations' has shape \(-1, 4\), wanted no negative"),
        (header((-N, -4)), b"", "wanted no negative"),
        (b"nothing", b"", "is not a readable npz file"),
        (header((N, 1)).replace(b"NUMPY\x01", b"NUMPY\x03"), b"", r"has version \(3, 0\)"),
        (header((N, 1)).replace(b"'descr'", b"__imp__"), b"", "is not a readable npz file"),
    ],
)
def test_hostile_npz_files(tmp_path: Path, head: bytes, content: bytes, words: str) -> None:
    refused(packed(tmp_path / "a.npz", head, content), words)


def test_npz_files_packed_by_what_has_no_bound(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused(packed(tmp_path / f"{method}.npz", header((N, 1)), bytes(N), method), "is compressed by method")
    (tmp_path / "text.npz").write_text("text")
    refused(tmp_path / "text.npz", "is not a readable npz file")
    with pytest.raises(FileNotFoundError):
        from_npz(tmp_path / "none.npz")


# ---------------------------------------------------------------------- robomimic


def robomimic_file(path: Path, numbers: Any = (0, 1, 2), **changes: Any) -> Path:
    """As robomimic writes its low-dimensional datasets: compressed or not, with masks and attributes around."""
    values = arrays()
    stops = np.cumsum(LENGTHS)
    with h5py.File(path, "w") as file:
        group = file.create_group("data")
        group.attrs["total"] = N
        group.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        for number, stop, length in zip(numbers, stops, LENGTHS, strict=True):
            rows = slice(stop - length, stop)
            demo = group.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            observations = values["observations"][rows]
            stored = {
                "obs/robot0_eef_pos": observations[:, 1:],
                "obs/object": observations[:, 0],
                "actions": values["actions"][rows],
                "next_obs/object": observations[:, 0],
                "rewards": values["rewards"][rows].astype(float),
                "dones": np.arange(length) == length - 1 if number == 0 else np.zeros(length, int),
                "states": np.zeros((length, 9)),
                **changes,
            }
            for name, array in stored.items():
                if array is not None:
                    demo.create_dataset(name, data=array, compression="gzip" if np.ndim(array) else None)
        file.create_dataset("mask/train", data=np.array([b"demo_0"]))
    return path


def test_robomimic_files(tmp_path: Path) -> None:
    path = robomimic_file(tmp_path / "low_dim.hdf5")
    wanted = {**arrays(), "episode_lengths": LENGTHS, "terminated": [True, False, False], "truncated": [False] * 3}
    data = load_dataset(path)  # keys in alphabetic order: object, robot0_eef_pos
    same(data, wanted)
    keys = ["object", "robot0_eef_pos"]
    assert data.metadata == {"source": "low_dim.hdf5", "format": "robomimic", "observation_keys": keys}
    other = from_robomimic(path, keys[::-1])
    same(other, {"observations": np.roll(arrays()["observations"], -1, axis=1), "actions": arrays()["actions"]})
    assert from_robomimic(path, ["object"]).observations.shape == (N, 1)


def test_demonstrations_come_by_their_numbers(tmp_path: Path) -> None:
    data = load_dataset(robomimic_file(tmp_path / "d.h5", numbers=(0, 2, 10)))
    same(data, arrays())  # demo_10 comes last, though not in alphabetic order
    assert data.episode_lengths.tolist() == list(LENGTHS)


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    data = load_dataset(robomimic_file(tmp_path / "d.h5", rewards=None, dones=None))
    assert data.rewards is None and data.terminated is None and data.truncated is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"obs/agentview_image": np.zeros((3, 8, 8, 3), np.uint8)}, "obs/agentview_image has shape .* images are not"),
        ({"actions": np.zeros((2, 2))}, "data/demo_0 has 2 actions and .* wanted equal lengths"),
        ({"actions": np.zeros((0, 2))}, "data/demo_0 has 0 actions"),
        ({"actions": None}, "actions' is missing"),
        ({"actions": 3.0}, "data/demo_0 has 0 actions"),
        ({"obs/object": None, "obs/robot0_eef_pos": None}, "demo_0 has no group 'obs'"),
        ({"obs/object": 1.0}, "obs/object has shape"),
        ({"rewards": np.zeros(2)}, "rewards"),
        ({"rewards": np.zeros((3, 2))}, r"data/demo_0/rewards has shape \(3, 2\), wanted \(3,\)"),
        ({"dones": np.full(3, 0.5)}, "data/demo_0/dones ends with 0.5, wanted 0 or 1"),
    ],
)
def test_broken_robomimic_files_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    refused(robomimic_file(tmp_path / "d.hdf5", **changes), words)


def test_other_layouts_are_no_robomimic_files(tmp_path: Path) -> None:
    path = robomimic_file(tmp_path / "d.hdf5")
    for keys, words in (
        (["nothing"], r"observation_keys: 'nothing' is no array of numbers, found \['object'"),
        ([], "there is none"),
    ):
        refused(path, words, lambda one, keys=keys: from_robomimic(one, keys))
    with pytest.raises(ValueError, match="observation_keys is 'object', wanted a sequence"):
        from_robomimic(path, "object")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["data/episode"] = np.zeros(3)
    refused(tmp_path / "other.hdf5", "'data' has no group demo_0, found", from_robomimic)
    with h5py.File(tmp_path / "linked.hdf5", "w") as file:
        file["data/demo_0/actions"] = np.zeros((3, 1))
        file["data/demo_0/obs/a"] = h5py.ExternalLink(str(path), "data/demo_0/obs/object")
    refused(tmp_path / "linked.hdf5", "is a link to somewhere else")


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["d.hdf5", "a.npz"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "d.hdf5":
        robomimic_file(path)
    else:
        np.savez_compressed(path, **arrays(), **ENDS)
    read = read_or_refused(path, path, 200)
    assert 0 < sum(read) < len(read)
