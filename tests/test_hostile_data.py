"""Datasets of strangers: whatever bytes an HDF5 file or Minari folder holds, it is read or refused in one line that
names it; no other file is opened, nothing is imported and little memory is taken."""

import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.damage import read_or_refused, refused

from rrpolicy.data import TrajectoryDataset, from_d4rl, load_dataset, save_minari
from rrpolicy.data.hdf5 import FREE_BYTES

N = 40
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def d4rl_file(path: Path, skip: str | None = None, **options: Any) -> Path:
    """A file of two episodes, with all keys but one."""
    ends = np.zeros(N, bool)
    ends[9] = True
    values = (np.ones((N, 4), np.float32), np.ones((N, 2)), np.arange(N), np.zeros(N, bool), ends)
    with h5py.File(path, "w") as file:
        for key, array in zip(KEYS, values, strict=True):
            if key != skip:
                file.create_dataset(key, data=array, **options)
    return path


def minari_folder(path: Path) -> Path:
    rng = np.random.default_rng(0)
    metadata = {"maze": ["###", "# #", "###"], "goal": [1, 1.5], "returns": [1.0], "agents": [{"returns": [2.0]}]}
    arrays = rng.normal(size=(8, 4)), rng.normal(size=(8, 2)), rng.normal(size=8)
    dataset = TrajectoryDataset.from_arrays(*arrays, episode_lengths=[3, 5], metadata=metadata)
    return save_minari(dataset, path, env_spec="MountainCarContinuous-v0", description="two episodes")


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "shuffle": True, "fletcher32": True}])
def test_damaged_hdf5_files_are_read_or_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    path = d4rl_file(tmp_path / "data.hdf5", **options)
    read = read_or_refused(path, path, 250)
    assert 0 < sum(read) < len(read)


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
def test_damaged_minari_folders_are_read_or_refused(tmp_path: Path, name: str) -> None:
    folder = minari_folder(tmp_path / "set")
    modules = set(sys.modules)
    read = read_or_refused(folder, folder / name, 250)
    assert 0 < sum(read) < len(read) and set(sys.modules) == modules


# ---------------------------------------------------------------------- other files


def external_link(file: h5py.File, other: Path) -> None:
    file["observations"] = h5py.ExternalLink(other, "/observations")


def soft_link_to_an_external_one(file: h5py.File, other: Path) -> None:
    file["away"] = h5py.ExternalLink(other, "/observations")
    file["observations"] = h5py.SoftLink("/away")


def external_storage(file: h5py.File, other: Path) -> None:
    file.create_dataset("observations", (N, 4), np.uint8, external=[(str(other), 0, N * 4)])


def virtual(file: h5py.File, other: Path) -> None:
    layout = h5py.VirtualLayout((N, 4), np.float32)
    layout[:] = h5py.VirtualSource(other, "observations", (N, 4))
    file.create_virtual_dataset("observations", layout)


ELSEWHERE = [
    (external_link, "'observations' is a link"),
    (soft_link_to_an_external_one, "'observations' is a link"),
    (external_storage, "'observations' lies in other files"),
    (virtual, "'observations' lies in other files"),
]


@pytest.mark.parametrize(("lead", "words"), ELSEWHERE)
def test_hdf5_files_lead_nowhere_else(tmp_path: Path, lead: Callable[[h5py.File, Path], None], words: str) -> None:
    other, path = d4rl_file(tmp_path / "other.hdf5"), d4rl_file(tmp_path / "data.hdf5", skip="observations")
    with h5py.File(path, "a") as file:
        lead(file, other)
        assert np.asarray(file["observations"]).shape == (N, 4)  # h5py follows
    refused(path, words)


@pytest.mark.parametrize(("lead", "words"), ELSEWHERE)
def test_nor_do_episodes(tmp_path: Path, lead: Callable[[Any, Path], None], words: str) -> None:
    other, folder = d4rl_file(tmp_path / "other.hdf5"), minari_folder(tmp_path / "set")
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        if lead is soft_link_to_an_external_one:
            file["away"] = h5py.ExternalLink(other, "/observations")
            file["episode_1/observations"] = h5py.SoftLink("/away")
        else:
            lead(file["episode_1"], other)
    refused(folder, words.replace("'", "").replace("observations", "episode_1/observations'"))
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1"]
        file["episode_1"] = h5py.ExternalLink(other, "/")
    refused(folder, "'episode_1' is a link")


def test_no_filter_is_loaded_from_a_library(tmp_path: Path) -> None:
    """The filter's number makes HDF5 look through the folders of HDF5_PLUGIN_PATH for a shared library."""
    path = d4rl_file(tmp_path / "data.hdf5", skip="observations")
    with h5py.File(path, "a") as file:
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((N, 4))
        plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((N, 4))
        h5py.h5d.create(file.id, b"observations", h5py.h5t.NATIVE_FLOAT, space, plan)
    folders = h5py.h5pl.size()
    refused(path, r"'observations' has the filters \[32015\]")
    assert h5py.h5pl.size() == folders


# ---------------------------------------------------------------------- sizes


SIZES: list[tuple[dict[str, Any], str]] = [
    ({"shape": (10**9, 4), "chunks": (1000, 4)}, "'observations' .*declares 1000000 chunks"),
    ({"shape": (10**9, 4), "chunks": (10**7, 4), "compression": "gzip"}, "takes 16000000000 bytes"),
    ({"shape": (10**9, 4), "fillvalue": 1.0}, "takes 16000000000 bytes"),
    ({"shape": (N, 4), "chunks": (10**8, 4), "maxshape": (None, 4)}, "takes 1600000000 bytes"),
    ({"shape": (10**6, 4), "chunks": (1, 4), "maxshape": (None, 4)}, "declares 1000000 chunks"),
    ({"shape": (2**62, 2**62), "chunks": (2**20, 1)}, "declares .* chunks"),
]


@pytest.mark.parametrize(("options", "words"), SIZES)
def test_small_files_of_many_numbers(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    path = d4rl_file(tmp_path / "data.hdf5", skip="observations")
    with h5py.File(path, "a") as file:
        file.create_dataset("observations", dtype=np.float32, **options)
    assert path.stat().st_size < 20_000
    refused(path, words)


def test_many_arrays_that_are_small_enough_one_by_one(tmp_path: Path) -> None:
    """Hard links: each episode has the same array twice, of a quarter of what may be read."""
    folder = minari_folder(tmp_path / "set")
    rows = FREE_BYTES // 64
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        for name in ("observations", "actions"):
            del file["episode_0"][name], file["episode_1"][name]
        file.create_dataset("long", (rows, 4), np.float32, chunks=(rows, 4), compression="gzip")
        for episode in ("episode_0", "episode_1"):
            for name in ("observations", "actions"):
                file[episode][name] = file["long"]
            del file[episode]["rewards"], file[episode]["terminations"]
            file[episode].create_dataset("rewards", (rows,), np.uint8, chunks=(rows,), compression="gzip")
    with pytest.raises(ValueError, match="takes 16777216 bytes, and all that is read") as caught:
        load_dataset(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("chunk", [N, N // 4])
def test_chunks_that_inflate_to_more_than_they_should(tmp_path: Path, chunk: int) -> None:
    path = d4rl_file(tmp_path / "data.hdf5", skip="observations")
    with h5py.File(path, "a") as file:
        made = file.create_dataset("observations", (N, 4), np.float32, chunks=(chunk, 4), compression="gzip")
        made.id.write_direct_chunk((0, 0), zlib.compress(bytes(10**7), 9))
    refused(path, "'observations' has a chunk")
    with h5py.File(path, "a") as file:
        file["observations"].id.write_direct_chunk((0, 0), zlib.compress(bytes(100 * chunk), 9))
    refused(path, "'observations' has a chunk that does not unpack to the .* bytes it should have")


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "gzip"},
        {"compression": "lzf"},
        {"compression": "gzip", "fletcher32": True, "shuffle": True},
        {"chunks": True},
    ],
)
def test_what_may_be_compressed_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, packed = d4rl_file(tmp_path / "whole.hdf5"), d4rl_file(tmp_path / "packed.hdf5", **options)
    for name in ("observations", "actions", "rewards", "episode_lengths"):
        np.testing.assert_array_equal(getattr(from_d4rl(packed), name), getattr(from_d4rl(whole), name))


# ---------------------------------------------------------------------- kinds of values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones((N, 4), complex), "holds complex128, wanted real numbers"),
        (np.array([["a"] * 4] * N, dtype="S1"), "holds |S1, wanted real numbers"),
        (np.zeros((N, 4), dtype=[("x", "f4")]), "wanted real numbers"),
        (h5py.Empty("f4"), "has no shape"),
        ("text", "wanted real numbers|has no shape"),
        (np.float32(1), r"shape \(\)"),
    ],
)
def test_only_real_numbers_are_read(tmp_path: Path, values: Any, words: str) -> None:
    path = d4rl_file(tmp_path / "data.hdf5", skip="observations")
    with h5py.File(path, "a") as file:
        file["observations"] = values
    refused(path, words)


def test_references_and_lists_of_any_length_are_no_numbers(tmp_path: Path) -> None:
    for kind in (h5py.ref_dtype, h5py.regionref_dtype, h5py.vlen_dtype(np.float32), h5py.string_dtype()):
        path = d4rl_file(tmp_path / "data.hdf5", skip="observations")
        with h5py.File(path, "a") as file:
            file.create_dataset("observations", (N, 4), dtype=kind)
        refused(path, "wanted real numbers")


def test_flags_that_are_neither_0_nor_1(tmp_path: Path) -> None:
    for values, words in ((np.full(N, np.nan), "timeouts holds nan at row 0"), (np.full(N, 2), "timeouts holds 2")):
        path = d4rl_file(tmp_path / "data.hdf5", skip="timeouts")
        with h5py.File(path, "a") as file:
            file["timeouts"] = values
        refused(path, words)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "data.hdf5"
    os.mkfifo(pipe)
    for read in (load_dataset, from_d4rl):
        with pytest.raises(ValueError, match=r"data\.hdf5: (is not a regular file|holds no Minari dataset)"):
            read(pipe)
    folder = minari_folder(tmp_path / "set")
    (folder / "main_data.hdf5").unlink()
    os.mkfifo(folder / "main_data.hdf5")
    refused(folder, "is not a regular file")


# ---------------------------------------------------------------------- metadata.json


def nested(levels: int) -> Any:
    return [] if levels == 0 else [nested(levels - 1)]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("total_episodes", 10**9, "total_episodes is 1000000000, and main_data.hdf5 has no room"),
        ("total_episodes", -1, "total_episodes is -1"),
        ("total_episodes", True, "total_episodes is True"),
        ("total_episodes", 1.5, "total_episodes is 1.5"),
        ("total_episodes", None, "total_episodes is None"),
        ("ref_min_score", float("nan"), "ref_min_score is nan, wanted a finite number"),
        ("ref_max_score", 10**400, "ref_max_score is .*, wanted a finite number"),
        ("description", ["x"], "description is 'list', wanted a text"),
        ("dataset_id", "\x1b[31mred-v0", r"dataset_id is '.x1b.*wanted namespace"),
        ("data_format", "arrow", "data_format is 'arrow', wanted 'hdf5'"),
        ("data_format", 3, "data_format is 3"),
        ("env_spec", '{"id": "evil_module:Env-v0"}', "environment id is 'evil_module:Env-v0'"),
        ("env_spec", '{"id": "a\\nb"}', "environment id is"),
        ("env_spec", '{"id": 3}', "environment id is 3"),
        ("env_spec", "[" * 100_000, "env_spec is not valid JSON"),
        ("env_spec", 3, "env_spec is 3"),
        ("action_space", '{"type": "Box", "shape": [1000000000, 2], "low": 0, "high": 1}', "wanted 3 axes as its"),
        ("action_space", '{"type": "Box", "shape": 2}', r"action_space is Box\(2\), wanted a flat Box"),
        ("action_space", '{"type": "Tuple", "subspaces": []}', "action_space is Tuple without parts"),
        ("action_space", "3", "action_space is a JSON int"),
        ("observation_space", '{"type": "Dict", "subspaces": [1]}', "is a Dict with subspaces of type list"),
        ("observation_space", '{"type": "Tuple", "subspaces": {"a": 1}}', "is a Tuple with subspaces of type dict"),
        ("observation_space", '{"type": "Dict", "subspaces": {"a": 1}}', "observation_space/a is of type None"),
        ("observation_space", '{"type": "Dict", "subspaces": {"../a": {"type": "Box"}}}', "has the key '../a'"),
        (
            "observation_space",
            '{"type": "Dict", "subspaces": {"a": {"type": "Box", "shape": [1]}}}',
            "'.*/a' is missing",
        ),
        ("observation_space", '{"type": "Tuple", "subspaces": [' * 99 + "3" + "]}" * 99, "0/0/0.* is of type 'Tuple'"),
        ("observation_space", '{"type": {}}', "observation_space is of type {}"),
    ],
)
def test_minari_metadata_is_not_believed(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = minari_folder(tmp_path / "set") / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(path.parent, words)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("maze", "/dev/zero", "metadata: maze: .* a valid list, got /dev/zero"),
        ("maze", ["#" * 300] * 3, r"metadata: maze\.0: .* at most 256 characters"),
        ("maze", ["#"] * 300, "metadata: maze: .* at most 256 items"),
        ("maze", [["#"]], r"metadata: maze\.0: .* a valid string"),
        ("source", ["x"], "metadata: source: .* a valid string"),
        ("env_id", "a/../../b", r"metadata: env_id: .* got a/\.\./\.\./b"),
        ("goal", [1, float("inf")], "finite"),
        ("goal", [1, 2, 3], "metadata: goal: .* at most 2 items"),
        ("goal", [True, 1], r"metadata: goal\.0: .* got True"),
        ("env_id", "evil_module:Env-v0", "metadata: env_id: .* got evil_module:Env-v0"),
        ("agents", "x", "metadata: agents: .* got x"),
        ("agents", [{"returns": ["x"]}], r"metadata: agents\.0\.returns\.0: .* a valid number, got x"),
        ("returns", 3, "metadata: returns: .* got 3"),
        ("note", float("nan"), "metadata holds what is no JSON"),
        ("note", nested(100), "metadata is nested more than 64 levels deep"),
    ],
)
def test_our_own_metadata_neither(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = minari_folder(tmp_path / "set") / "metadata.json"
    values = json.loads(path.read_text())
    values["rrpolicy"]["metadata"][key] = value
    path.write_text(json.dumps(values))
    refused(path.parent, words)


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    dataset = TrajectoryDataset.from_arrays(np.ones((3, 1)), np.ones((3, 1)), metadata={"maze": "/dev/zero"})
    with pytest.raises(ValueError, match=r"dataset\.metadata: metadata: maze: .* got /dev/zero"):
        save_minari(dataset, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_minari_file_is_not_read_in_place_of_another(tmp_path: Path) -> None:
    folder = minari_folder(tmp_path / "set")
    (folder / "other.hdf5").write_bytes((folder / "main_data.hdf5").read_bytes())
    assert len(load_dataset(folder / "main_data.hdf5")) == 8
    refused(folder / "other.hdf5", "is a file of a Minari dataset, wanted it as main_data.hdf5")


def test_json_beyond_all_bounds(tmp_path: Path) -> None:
    path = minari_folder(tmp_path / "set") / "metadata.json"
    text = path.read_text()
    for content, words in (
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is a JSON list, wanted an object"),
        (text.replace('"total_steps": 8', '"total_steps": ' + "9" * 5000), "not valid JSON"),
        (text + " " * 2**23, "has more than 8388608 bytes, too large"),
        (text.replace('"returns": [2.0]', '"returns": [1e999]'), "finite"),
    ):
        assert content != text
        path.write_text(content)
        refused(path.parent, words)
    path.write_bytes(b"\xff\xfe")
    refused(path.parent, "not valid JSON")


def test_environments_in_metadata_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point is code; without a space of its own, Minari would build the environment."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    path = minari_folder(tmp_path / "set") / "metadata.json"
    values = json.loads(path.read_text())
    for key in ("env_spec", "eval_env_spec"):
        values[key] = json.dumps({**json.loads(values["env_spec"]), "entry_point": "evil_module:Env"})
    path.write_text(json.dumps(values))
    assert load_dataset(path.parent).metadata["env_id"] == "MountainCarContinuous-v0"
    assert "evil_module" not in sys.modules
