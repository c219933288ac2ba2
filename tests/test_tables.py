"""Tables and JSON of strangers take no more memory than four times their file and a little, whatever they hold."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from rrpolicy.common.schema import MAX_CONTAINERS, check_depth, from_json
from rrpolicy.common.tables import MAX_BYTES, read_table
from rrpolicy.data.minari_head import read_head
from rrpolicy.rewards.recorded import RecordedPairs

SPARE = 200 * 2**20


def growth(read: Callable[[], object]) -> int:
    """Bytes of the reader's peak; a refusal counts like a result."""
    tracemalloc.start()
    try:
        read()
    except ValueError as error:
        assert len(str(error)) <= 400
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_lines_are_read_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b'a,b\r\n"x\ny",2\n\n3\n')
    assert read_table(path) == [["a", "b"], ["x\ny", "2"], [], ["3"]]


@pytest.mark.parametrize("piece", [pytest.param("a\n", marks=pytest.mark.slow), ","])  # cells are counted, too
def test_tables_of_short_cells_are_bounded(piece: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(piece * (2**21 // len(piece)))
    faults: list[str] = []

    def read() -> None:
        with pytest.raises(ValueError) as refused:
            read_table(path)
        faults.append(str(refused.value))

    assert growth(read) <= 4 * 2**21 + SPARE
    assert "table.csv: is no table that can be read: it has more than" in faults[0]


def test_large_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(bytes(MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"table.csv: .*too large"):
        read_table(path)


@pytest.mark.parametrize("piece", ["{}", "[[[[[[]]]]]]"])
def test_manifests_and_metadata_are_bounded(piece: str, tmp_path: Path) -> None:
    many = ",".join([piece] * (2**21 // (len(piece) + 1)))
    box = json.dumps({"type": "Box", "shape": [1]})
    head = {
        "observation_space": box,
        "action_space": box,
        "dataset_id": "a/b-v0",
        "minari_version": "0.5.3",
        "data_format": "hdf5",
        "total_episodes": 1,
    }
    own = f'"rrpolicy": {{"metadata": {{"x": [{many}]}}}}'
    (tmp_path / "metadata.json").write_text(f"{json.dumps(head)[:-1]}, {own}}}")
    (tmp_path / "manifest.json").write_text(f'{{"format": 1, "shards": [["shard-00000.safetensors", 1]], {own}}}')
    for read in (read_head, RecordedPairs.open):
        assert growth(lambda read=read: read(tmp_path)) <= 4 * 2**21 + SPARE / 2
    for read, name in ((read_head, "metadata.json"), (RecordedPairs.open, "manifest.json")):
        with pytest.raises(ValueError, match=f"{name}.* has more than {MAX_CONTAINERS} lists and objects"):
            read(tmp_path)


def test_depth_is_counted_in_values() -> None:
    check_depth([[{"a": 1}]], "it", 4)
    check_depth([[{}]], "it", 3)
    with pytest.raises(ValueError, match="it is nested more than 3 levels deep"):
        check_depth([1, [{}], [{"a": 1}]], "it", 3)
    assert from_json("[[1], {}]") == [[1], {}]
