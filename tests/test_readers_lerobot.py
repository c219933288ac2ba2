"""LeRobot's folders come back as they were written: ``tests/data/lerobot_v3`` was written by lerobot 0.4.4 itself, the
other files by pyarrow in the same layout or in that of version 2."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.damage import read_or_refused

from rrpolicy.data import from_lerobot, load_dataset

pyarrow = pytest.importorskip("pyarrow")
import pyarrow.parquet as parquet  # noqa: E402

MADE = Path(__file__).parent / "data" / "lerobot_v3"
LENGTHS = (3, 5, 4)
N = sum(LENGTHS)
ROWS = np.arange(N, dtype=np.float32)
AT = np.concatenate([np.arange(n) for n in LENGTHS])
STATE = np.stack([ROWS, AT, np.repeat(LENGTHS, LENGTHS)], axis=1)
OTHER = np.stack([ROWS / 2, -AT], axis=1)
ACTIONS = np.stack([ROWS / 10, -ROWS], axis=1).astype(np.float32)
FEATURES = {
    "observation.state": "float32",
    "observation.images.top": "video",
    "observation.effort": "float64",
    "action": "float32",
    "episode_index": "int64",
    "frame_index": "int64",
    "next.reward": "float32",
}


def written(folder: Path, dtypes: dict[str, str] = FEATURES, **changes: Any) -> Path:
    """One file for each episode, lists of any length, as version 2 has them."""
    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    features = {name: {"dtype": dtype, "shape": [1]} for name, dtype in dtypes.items()}
    (folder / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1", "features": features}))
    episodes = np.repeat(np.arange(3), LENGTHS)
    for number in range(3):
        rows = episodes == number
        columns: dict[str, Any] = {
            "observation.state": pyarrow.array(STATE[rows].tolist(), pyarrow.list_(pyarrow.float32())),
            "observation.effort": ROWS[rows].astype(float),
            "action": pyarrow.array(ACTIONS[rows].tolist()),
            "episode_index": episodes[rows],
            "frame_index": AT[rows],
            "next.reward": ROWS[rows],
            **changes,
        }
        table = pyarrow.table({name: values for name, values in columns.items() if values is not None})
        parquet.write_table(table, folder / "data" / "chunk-000" / f"episode_{number:06d}.parquet")
    return folder


def test_what_lerobot_wrote() -> None:
    data = load_dataset(MADE)
    np.testing.assert_array_equal(data.observations, np.concatenate([STATE, OTHER], axis=1))
    np.testing.assert_array_equal(data.actions, ACTIONS)
    np.testing.assert_array_equal(data.rewards, ROWS)
    assert data.episode_lengths.tolist() == list(LENGTHS) and data.terminated is None
    keys = ["observation.state", "observation.environment_state"]
    assert data.metadata == {"source": "lerobot_v3", "format": "lerobot", "observation_keys": keys}
    np.testing.assert_array_equal(from_lerobot(MADE, keys[1:]).observations, OTHER)


def test_version_2_and_pictures_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    with pytest.warns(UserWarning, match=r"pictures are left out of the observation: observation\.images\.top"):
        data = load_dataset(folder)
    np.testing.assert_array_equal(data.observations, np.concatenate([STATE, ROWS[:, None]], axis=1))
    np.testing.assert_array_equal(data.actions, ACTIONS)
    assert data.episode_lengths.tolist() == list(LENGTHS)
    assert from_lerobot(folder, ["observation.effort"]).observation_dim == 1


def test_rows_are_put_in_order(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(N)
    folder = tmp_path / "set"
    shutil.copytree(MADE, folder)
    path = folder / "data" / "chunk-000" / "file-000.parquet"
    table = parquet.read_table(path)
    parquet.write_table(table.take(order), path)
    np.testing.assert_array_equal(load_dataset(folder).actions, ACTIONS)
    parquet.write_table(table.take(np.delete(order, 3)), path)
    with pytest.raises(ValueError, match="frames are missing or stand twice"):
        load_dataset(folder)
    parquet.write_table(table.take(np.append(order, 3)), path)
    with pytest.raises(ValueError, match="frames are missing or stand twice"):
        load_dataset(folder)


@pytest.mark.filterwarnings("ignore:.*pictures are left out")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"action": None}, "column 'action' is missing, found"),
        (
            {"observation.state": [[1.0]] * 2 + [[1.0, 2.0]]},
            "'observation.state' has 4 numbers in 3 rows, wanted equally",
        ),
        ({"observation.state": [[1.0, 2.0], [1.0], []]}, "'observation.state' has 3 numbers in 3 rows, wanted equally"),
        ({"observation.state": [[[1.0]]] * 3}, "'observation.state' holds list.*, wanted numbers in every row"),
        ({"observation.effort": ["a"] * 3}, "'observation.effort' holds string, wanted numbers"),
        ({"observation.effort": [1.0, None, 2.0]}, "'observation.effort' holds double, wanted numbers in every row"),
        ({"observation.effort": [1.0, float("nan"), 2.0]}, "observations holds nan at row 1, column 3"),
    ],
)
def test_broken_folders_are_named(tmp_path: Path, changes: dict[str, Any], words: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LENGTHS", (3, 3, 3))
    for name, values in (("STATE", STATE[:9]), ("ROWS", ROWS[:9]), ("ACTIONS", ACTIONS[:9]), ("AT", np.arange(9) % 3)):
        monkeypatch.setattr(sys.modules[__name__], name, values)
    with pytest.raises(ValueError, match=words) as caught:
        load_dataset(written(tmp_path / "set", **changes))
    assert str(caught.value).startswith(str(tmp_path))


def test_folders_that_say_too_little(tmp_path: Path) -> None:
    folder = written(tmp_path / "set")
    for keys, words in (
        (["nothing"], "'nothing' is no array of numbers"),
        ([], "there is none"),
        (["observation.images.top"], "pictures are not supported"),
    ):
        with pytest.raises(ValueError, match=words):
            from_lerobot(folder, keys)
    with pytest.raises(ValueError, match="observation_keys is 'action', wanted a sequence"):
        from_lerobot(folder, "action")
    info = folder / "meta" / "info.json"
    for text, words in (
        ("{}", "does not describe features"),
        ("[" * 10**5, "does not describe features"),
        ('{"features": {"x": {"dtype": "float32"}}}', "has no feature 'action'"),
        ('{"features": {"action": 3}}', "does not describe features"),
    ):
        info.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_dataset(folder)
    shutil.copy(MADE / "meta" / "info.json", info)
    shutil.rmtree(folder / "data")
    with pytest.raises(ValueError, match=r"has 0 files data/\*/\*.parquet"):
        load_dataset(folder)


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    folder, n = written(tmp_path / "set", {name: "float32" for name in FEATURES if "images" not in name}), 10**7
    zeros = pyarrow.array(np.zeros(n, np.float32))
    table = pyarrow.table({name: zeros for name in FEATURES if "images" not in name})
    path = folder / "data" / "chunk-000" / "episode_000000.parquet"
    parquet.write_table(table, path)
    assert path.stat().st_size < 10**6
    with pytest.raises(ValueError, match=r"unpacks to \d+ bytes and 10000000 rows, too many for a file of"):
        load_dataset(folder)


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(MADE, folder)
    for path in (folder / "meta" / "info.json", folder / "data" / "chunk-000" / "file-000.parquet"):
        read = read_or_refused(folder, path, 100)
        assert 0 < sum(read) < len(read)


def test_without_pyarrow_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install 'rrpolicy\[lerobot\]'"):
        load_dataset(MADE)
