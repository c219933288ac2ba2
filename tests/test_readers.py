"""Datasets come back from Minari and D4RL files as they were; a foreign or broken file is one clear error.
No network is used and no environment is built: remote stores are fakes and files on disk."""

import io
import json
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path

from rrpolicy.common.spaces import flattened, flattened_box
from rrpolicy.data import TrajectoryDataset, from_d4rl, from_minari, load_dataset, save_minari
from rrpolicy.data.downloads import download_minari

LENGTHS = [3, 5]
N = sum(LENGTHS)


@pytest.fixture(autouse=True)
def no_datasets_of_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture
def dataset() -> TrajectoryDataset:
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(N, 4)), rng.uniform(-1, 1, size=(N, 2)), rng.normal(size=N)
    return TrajectoryDataset.from_arrays(*arrays, episode_lengths=LENGTHS, metadata={"goal": [1, 2.5], "seed": 3})


def same(one: TrajectoryDataset, two: TrajectoryDataset) -> None:
    for name in ("observations", "actions", "rewards", "episode_lengths"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def d4rl_file(path: Path, dataset: TrajectoryDataset, **changes: Any) -> Path:
    ends = np.zeros(N, bool)
    ends[LENGTHS[0] - 1] = True
    arrays = {
        "observations": dataset.observations,
        "actions": dataset.actions,
        "rewards": dataset.rewards,
        "terminals": np.zeros(N, bool),
        "timeouts": ends,
        **changes,
    }
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            if values is not None:
                file[key] = values
        file["infos/qpos"] = np.zeros(N)
    return path


def minari_of(episodes: list[EpisodeBuffer], observation_space: spaces.Space, action_space: spaces.Space) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for authors and permalinks
        return minari.create_dataset_from_buffers(
            "point/made-v0", episodes, observation_space=observation_space, action_space=action_space
        )


def made_by_minari(length: int = 4, **changes: Any) -> Any:
    """A goal-conditioned dataset as PointMaze's: Dict observations, T+1 of them."""
    box = spaces.Box(-10, 10, (2,), np.float64)
    rows = np.arange(2.0 * (length + 1)).reshape(-1, 2)
    fields: dict[str, Any] = {
        "observations": {"observation": rows, "achieved_goal": rows + 100, "desired_goal": rows + 200},
        "actions": np.arange(length)[:, None] / 10,
        "rewards": np.arange(length),
        "terminations": np.zeros(length, bool),
        "truncations": np.zeros(length, bool),
        **changes,
    }
    space = spaces.Dict({key: box for key in ("observation", "achieved_goal", "desired_goal")})
    return minari_of([EpisodeBuffer(**fields)] * 2, space, spaces.Box(-1, 1, (1,), np.float64))


def unreachable(dataset_id: str) -> None:
    (get_dataset_path(dataset_id) / "data").mkdir(parents=True)  # a download breaks off
    raise ConnectionError("no route to host\nand more")


def test_saved_and_loaded(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    folder = save_minari(dataset, tmp_path / "new" / "folder", dataset_id="maze/base-v2", description="two episodes")
    found = load_dataset(folder)
    same(found, dataset)
    wanted = {"source": "maze/base-v2", "format": "minari", "description": "two episodes", "goal": [1, 2.5], "seed": 3}
    assert found.metadata == wanted
    same(load_dataset(folder / "main_data.hdf5"), dataset)
    assert sorted(path.name for path in folder.iterdir()) == ["main_data.hdf5", "metadata.json"]


def test_minari_itself_reads_what_was_saved(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    space = spaces.Box(-1, 1, (2,), np.float32)
    folder = save_minari(dataset, tmp_path / "set", env_spec="MountainCarContinuous-v0", action_space=space)
    found = minari.MinariDataset(folder)
    assert (found.total_episodes, found.total_steps, found.action_space) == (2, N, space)
    assert found.env_spec.id == "MountainCarContinuous-v0"
    episode = found[1]
    assert episode.observations.shape == (LENGTHS[1] + 1, 4)
    np.testing.assert_array_equal(episode.observations[-1], episode.observations[-2])
    np.testing.assert_array_equal(episode.truncations, [False] * 4 + [True])
    assert not episode.terminations.any()
    assert load_dataset(folder).metadata["env_id"] == "MountainCarContinuous-v0"


def test_unknown_rewards_stay_unknown(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    folder = save_minari(dataset.with_rewards(None), tmp_path / "set")
    assert load_dataset(folder).rewards is None
    np.testing.assert_array_equal(minari.MinariDataset(folder)[0].rewards, 0)


def test_dict_observations_by_object_id_and_folder() -> None:
    made = made_by_minari()
    for source in (made, "point/made-v0", made.storage.data_path, made.storage.data_path.parent):
        found = from_minari(source)
        np.testing.assert_array_equal(found.episode_lengths, [4, 4])
        np.testing.assert_array_equal(found.observations[:4], np.arange(8).reshape(4, 2))
        np.testing.assert_array_equal(found.rewards, [0, 1, 2, 3] * 2)
        assert found.metadata == {"source": "point/made-v0", "format": "minari"}
    same(load_dataset("point/made-v0"), found)


def test_filtered_minari_dataset_keeps_its_filter() -> None:
    assert from_minari(made_by_minari().filter_episodes(lambda episode: episode.id == 1)).n_episodes == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": np.zeros((6, 1))}, "episode 0 has 5 observations, 6 actions, 4 rewards"),
        ({"rewards": np.array([0, 1, np.nan, 0])}, "rewards holds nan at row 2"),
        ({"actions": np.array([[0], [np.inf], [0], [0]])}, "actions holds inf at row 1, column 0"),
    ],
)
def test_broken_minari_episodes_are_named(changes: dict[str, Any], words: str) -> None:
    made = made_by_minari(**changes)
    with pytest.raises(ValueError, match=words) as caught:
        from_minari(made)
    assert str(caught.value).startswith(str(made.storage.data_path))


def test_spaces_that_are_not_flat_boxes_are_refused() -> None:
    box, flags = spaces.Box(-1, 1, (2,), np.float64), {"rewards": [0.0], "terminations": [False], "truncations": [True]}
    discrete = EpisodeBuffer(observations=np.zeros((2, 2)), actions=np.zeros(1, int), **flags)
    with pytest.raises(ValueError, match=r"action_space is Discrete\(3\), wanted a flat Box"):
        from_minari(minari_of([discrete], box, spaces.Discrete(3)))
    minari.delete_dataset("point/made-v0")
    image = EpisodeBuffer(observations=np.zeros((2, 40, 40, 3), np.uint8), actions=np.zeros((1, 2)), **flags)
    with pytest.raises(ValueError, match=r"observation_space is Box.*wanted a flat Box: images are not supported"):
        from_minari(minari_of([image], spaces.Box(0, 255, (40, 40, 3), np.uint8), box))
    minari.delete_dataset("point/made-v0")
    switch = {"observations": {"arm": np.zeros((2, 2)), "on": np.zeros(2, int)}, "actions": np.zeros((1, 2))}
    with pytest.raises(ValueError, match=r"observation_space/on is Discrete\(2\), wanted a flat Box, or a Dict"):
        from_minari(minari_of([EpisodeBuffer(**switch, **flags)], spaces.Dict(arm=box, on=spaces.Discrete(2)), box))


@pytest.mark.parametrize("opened", [True, False])
def test_dictionaries_tuples_and_grids_are_the_vectors_of_environments(opened: bool) -> None:
    """Not in alphabetic order, nested, with numbers and grids in them, for observations and actions."""
    line, grid, number = (spaces.Box(-9, 9, shape, np.float64) for shape in ((2,), (2, 3), ()))
    seen = spaces.Dict(OrderedDict(z=line, a=spaces.Tuple([grid, number]), observation=line))
    done = spaces.Dict(OrderedDict(turn=line, grip=number))
    buffers, wanted = [], []
    for length in LENGTHS:
        space = [batch_space(one, n) for one, n in ((seen, length + 1), (done, length))]
        (observations, actions) = (one.sample() for one in space)
        flags = {key: np.zeros(length) for key in ("rewards", "terminations", "truncations")}
        buffers.append(EpisodeBuffer(observations=observations, actions=actions, **flags))
        wanted.append((flattened(seen, observations)[:-1], flattened(done, actions)))
    made = minari_of(buffers, seen, done)
    found = load_dataset(made if opened else "point/made-v0")
    assert (
        (found.observation_dim, found.action_dim)
        == (11, 3)
        == (flattened_box(seen, "observation").shape[0], flattened_box(done, "action").shape[0])
    )
    for array, i in ((found.observations, 0), (found.actions, 1)):
        np.testing.assert_array_equal(array, np.concatenate([one[i] for one in wanted]).astype(np.float32))


def test_a_filtered_dataset_is_taken_as_it_is() -> None:
    made = made_by_minari().filter_episodes(lambda episode: episode.id == 1)
    same(load_dataset(made), from_minari(made))


def test_folder_that_would_build_an_environment_is_refused(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    """Minari makes the environment that the file names when a space is missing, whatever its entry point is."""
    folder = save_minari(dataset, tmp_path / "set", env_spec="MountainCarContinuous-v0")
    path = folder / "metadata.json"
    values = json.loads(path.read_text())
    del values["observation_space"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="lacks 'observation_space'"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"minari_version": "99.0"}, "not a Minari dataset that can be read.*99.0"),
        ({"data_format": "floppy"}, "not a Minari dataset that can be read"),
        ({"action_space": '{"type": "Unknown"}'}, "not a Minari dataset that can be read"),
        ({"dataset_id": None}, "lacks 'dataset_id'"),
        ({"total_episodes": 0}, "no episode"),
        ({"total_episodes": 3}, "the Minari dataset is damaged.*episode_2"),
        ({"rrpolicy": "text"}, None),
    ],
)
def test_foreign_minari_metadata(
    dataset: TrajectoryDataset, tmp_path: Path, values: dict[str, Any], words: str | None
) -> None:
    path = save_minari(dataset, tmp_path / "set") / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    if words is None:
        same(load_dataset(path.parent), dataset)
        return
    with pytest.raises(ValueError, match=words) as caught:
        load_dataset(path.parent)
    assert str(caught.value).startswith(str(path.parent))


def test_damaged_minari_files(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    folder = save_minari(dataset, tmp_path / "set")
    (folder / "main_data.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match="damaged"):
        load_dataset(folder)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_dataset(folder)


def test_save_refuses_what_does_not_fit_and_leaves_nothing(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    target = tmp_path / "set"
    odd = TrajectoryDataset(dataset.observations, dataset.actions, dataset.episode_lengths)
    odd.metadata["a"] = object()
    for made, options, words in (
        (dataset, {"dataset_id": "no version"}, "dataset_id='no version'"),
        (dataset, {"dataset_id": "name"}, "dataset_id='name'"),
        (dataset, {"observation_space": spaces.Box(-1, 1, (3,))}, r"observation_space=.*wanted a Box of shape \(4,\)"),
        (dataset, {"action_space": spaces.Discrete(2)}, r"action_space=.*wanted a Box of shape \(2,\)"),
        (dataset, {"env_spec": "Nowhere-v0"}, "env_spec='Nowhere-v0'"),
        (odd, {}, "dataset.metadata cannot be written as JSON"),
    ):
        with pytest.raises(ValueError, match=words):
            save_minari(made, target, **options)
        assert not target.exists()
    save_minari(dataset, target)
    with pytest.raises(ValueError, match="holds a Minari dataset already"):
        save_minari(dataset, target)


def test_interrupted_save_leaves_no_dataset(
    dataset: TrajectoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("minari.dataset.minari_storage.MinariStorage.update_metadata", fail)
    with pytest.raises(OSError, match="no space left"):
        save_minari(dataset, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_d4rl_file(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    path = d4rl_file(tmp_path / "walker.hdf5", dataset)
    for read in (load_dataset, from_d4rl):
        found = read(path)
        same(found, dataset)
        assert found.metadata == {"source": "walker.hdf5", "format": "d4rl"}
    assert from_d4rl(d4rl_file(tmp_path / "plain.h5", dataset, rewards=None)).rewards is None


def test_d4rl_columns_of_flags_are_flattened(dataset: TrajectoryDataset, tmp_path: Path) -> None:
    path = d4rl_file(tmp_path / "column.hdf5", dataset, rewards=np.asarray(dataset.rewards)[:, None])
    same(from_d4rl(path), dataset)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timeouts": None}, "key 'timeouts' is missing, wanted .*, found .*'terminals'"),
        ({"observations": None}, "key 'observations' is missing"),
        ({"actions": np.zeros((N - 1, 2))}, f"actions has {N - 1} rows, wanted {N}"),
        ({"timeouts": np.zeros(N + 1)}, rf"timeouts has shape \({N + 1},\), wanted \({N},\)"),
        ({"observations": np.full((N, 4), np.nan)}, "observations holds nan at row 0, column 0"),
        ({"observations": None, "observations/state": np.zeros(3)}, "'observations' is a Group, wanted an array"),
    ],
)
def test_broken_d4rl_files_are_named(
    dataset: TrajectoryDataset, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = d4rl_file(tmp_path / "broken.hdf5", dataset, **changes)
    with pytest.raises(ValueError, match=words) as caught:
        load_dataset(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_dataset(dataset: TrajectoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minari.download_dataset", unreachable)
    (tmp_path / "noise.hdf5").write_bytes(b"noise")
    (tmp_path / "table.csv").write_text("1,2")
    for read, name, words in (
        (load_dataset, "noise.hdf5", "is not a readable HDF5 file"),
        (from_d4rl, "noise.hdf5", "is not a readable HDF5 file"),
        (load_dataset, "table.csv", "suffix '.csv'"),
        (load_dataset, ".", "holds no Minari dataset"),
    ):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / name)
    for read in (load_dataset, from_d4rl, from_minari):
        with pytest.raises(FileNotFoundError, match="nowhere-v0"):
            read("point/nowhere-v0")


# ---------------------------------------------------------------------- by name


def test_minari_ids_are_downloaded_once(
    dataset: TrajectoryDataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def download(dataset_id: str) -> None:
        asked.append(dataset_id)
        print("Downloading")
        save_minari(dataset, get_dataset_path(dataset_id) / "data", dataset_id)

    monkeypatch.setattr("minari.download_dataset", download)
    for _ in range(2):
        same(load_dataset("point/maze/made-v0"), dataset)
    assert asked == ["point/maze/made-v0"] and capsys.readouterr().out == ""


def test_a_download_that_fails_leaves_nothing(dataset: TrajectoryDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minari.download_dataset", unreachable)
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"^mujoco/hopper/medium-v0: .*: no route to host$"):
            load_dataset("mujoco/hopper/medium-v0")
        assert not get_dataset_path("mujoco/hopper/medium-v0").exists()
    save_minari(dataset, get_dataset_path("point/made-v0") / "data", "point/made-v0")
    monkeypatch.setattr("minari.download_dataset", lambda _: 1 / 0)
    with pytest.raises(FileNotFoundError, match="division by zero"):
        download_minari("point/made-v0")
    same(load_dataset("point/made-v0"), dataset)  # what was there still is


def test_d4rl_names(dataset: TrajectoryDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, own = d4rl_file(tmp_path / "hopper_medium-v2.hdf5", dataset), tmp_path / "own"
    addresses = {"hopper-medium-v2": remote.as_uri(), "hopper-expert-v2": (tmp_path / "gone.hdf5").as_uri()}
    fake_d4rl(monkeypatch, addresses, own)
    same(load_dataset("d4rl:hopper-medium-v2"), dataset)
    remote.unlink()
    assert load_dataset("d4rl:hopper-medium-v2").metadata["source"] == "hopper_medium-v2.hdf5"
    with pytest.raises(ValueError, match=r"^d4rl:hopper-medim-v2: D4RL has no dataset .* it has hopper-medium-v2"):
        load_dataset("d4rl:hopper-medim-v2")
    with pytest.raises(ValueError, match=r"d4rl:hopper-expert-v2: could not be downloaded from file:.*gone"):
        load_dataset("d4rl:hopper-expert-v2")
    assert [path.name for path in own.iterdir()] == ["hopper_medium-v2.hdf5"]
    assert "mujoco_py" not in sys.modules


def test_half_a_d4rl_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote(io.BytesIO):
        headers: ClassVar = {"Content-Length": "9"}

    fake_d4rl(monkeypatch, {"hopper-medium-v2": "http://somewhere/file.hdf5"}, tmp_path / "own")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Remote(b"half"))
    with pytest.raises(ValueError, match="4 of 9 bytes arrived"):
        load_dataset("d4rl:hopper-medium-v2")
    assert not (tmp_path / "own").exists()


def test_d4rl_names_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    marker = ModuleType("mujoco_py")
    monkeypatch.setitem(sys.modules, "mujoco_py", marker)
    monkeypatch.setitem(sys.modules, "d4rl", None)
    with pytest.raises(ValueError, match=r"pip install 'rrpolicy\[d4rl\]'"):
        load_dataset("d4rl:hopper-medium-v2")
    assert sys.modules["mujoco_py"] is marker


def fake_d4rl(monkeypatch: pytest.MonkeyPatch, addresses: dict[str, str], folder: Path) -> None:
    """What is used of D4RL's package."""
    package: Any = ModuleType("d4rl")
    package.infos, package.offline_env = ModuleType("d4rl.infos"), ModuleType("d4rl.offline_env")
    package.infos.DATASET_URLS, package.offline_env.DATASET_PATH = addresses, str(folder)
    for module in (package, package.infos, package.offline_env):
        monkeypatch.setitem(sys.modules, module.__name__, module)
