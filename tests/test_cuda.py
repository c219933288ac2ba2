"""The paths of `test_devices` on a GPU, where there is one: its numbers are the CPU's up to rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_devices import CASES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_the_numbers_of_the_cpu(case: str, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        numbers = CASES[case](device, tmp_path / device)
        found.append(numbers if isinstance(numbers, list) else [numbers])
    for mine, theirs in zip(*found, strict=True):
        error, size = np.asarray(theirs, dtype=float) - mine, np.sqrt(np.mean(np.square(mine, dtype=float)))
        assert np.sqrt(np.mean(error**2)) < 1e-3 * (1 + size)
