"""Every test runs alike everywhere: one thread, seeded, with no display, no GL library and none of the user's datasets.

The environment is set before anything imports mujoco, matplotlib or torch, which read it only once.
"""

import os

os.environ["MUJOCO_GL"] = "disable"  # whatever needs a GL context fails here, even where one could be had
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"

import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore Ctrl-C


@pytest.fixture(autouse=True)
def reproducible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seed the global generators and keep Minari away from the user's own datasets."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
