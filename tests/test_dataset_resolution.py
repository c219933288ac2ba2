"""Columns whose values float32 cannot tell apart are refused by name; what only looks alike is not."""

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rrpolicy import TrajectoryDataset
from rrpolicy.data import from_d4rl

N = 1000
ROWS = np.arange(N)


def made(column: Any, name: str = "observations") -> TrajectoryDataset:
    arrays: dict[str, Any] = {"observations": np.ones((N, 2)), "actions": np.ones((N, 2))}
    arrays[name] = np.stack([np.linspace(0, 1, N), np.asarray(column)], axis=1)
    if np.asarray(column).dtype.kind in "iu":
        arrays[name] = np.stack([ROWS.astype(np.asarray(column).dtype), column], axis=1)
    return TrajectoryDataset.from_arrays(**arrays)


@pytest.mark.parametrize("name", ["observations", "actions"])
@pytest.mark.parametrize(
    ("column", "kept"),
    [
        (1.7e9 + 0.01 * ROWS, 1),  # seconds since 1970
        (1.7e9 + ROWS, 9),
        (-1.7e9 - ROWS, 9),
        (1_700_000_000_000 + 10 * ROWS, 1),  # milliseconds, whole numbers
        ((1.7e9 + ROWS).astype(np.uint64), 9),
        (2.0**26 + ROWS, 126),  # a counter that is only too large by a little
        (1e6 + 1e-3 * ROWS, 17),  # metres of a map
    ],
)
def test_columns_that_merge_are_named(name: str, column: Any, kept: int) -> None:
    words = rf"^{name} column 1 holds 1000 different values from .* float32 keeps {kept} apart: subtract an offset"
    with pytest.raises(ValueError, match=words) as caught:
        made(column, name)
    assert repr(column.min().item()) in str(caught.value)
    offset = made(column - column.min(), name)  # what it says helps
    assert len(np.unique(getattr(offset, name)[:, 1])) == N


@pytest.mark.parametrize(
    "column",
    [
        (1.7e9 + ROWS).astype(np.float32),  # has merged before, and nobody can know
        np.full(N, 1.7e9),
        2.0**24 + ROWS,  # two become one: half of them
        0.3 + 1e-16 * ROWS,  # a constant and rounding
        1 - np.exp(-0.05 * ROWS),  # comes to rest
        np.where(ROWS < 500, ROWS / N, 0.7 + 1e-9 * ROWS),  # moves and then trembles
        1e-30 * (1 + 1e-3 * ROWS),
        np.zeros(N),
        ROWS % 2 == 0,
    ],
)
def test_what_float32_can_hold_is_taken(column: Any) -> None:
    np.testing.assert_array_equal(made(column).observations[:, 1], column.astype(np.float32))


@pytest.mark.parametrize("offset", [0.5, -20.0])
def test_almost_constant_columns_are_told_and_taken(offset: float) -> None:
    column = offset + 1e-6 * np.sin(ROWS)
    with pytest.warns(UserWarning, match=r"observations column 1 holds \d+ different values"):
        assert made(column).observations[:, 1] == pytest.approx(offset, abs=2e-6)


def test_files_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["observations"], file["actions"] = 1.7e9 + ROWS[:, None] / 100, np.zeros((N, 1))
        file["terminals"] = file["timeouts"] = np.zeros(N, bool)
    with pytest.raises(ValueError, match=r"d\.hdf5: observations column 0 holds 1000 different values"):
        from_d4rl(tmp_path / "d.hdf5")


def test_looking_takes_little_time() -> None:
    values = np.random.default_rng(0).normal(1.0, 0.01, (200_000, 10))  # an offset in every column
    begin = time.process_time()
    TrajectoryDataset.from_arrays(values, values)
    assert time.process_time() - begin < 2
