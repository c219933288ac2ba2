"""Every test runs alike everywhere: one thread, seeded, with no display, no GL library and none of the user's datasets.

The environment is set before anything imports mujoco, matplotlib or torch, which read it only once.
"""

import os

os.environ["MUJOCO_GL"] = "disable"  # whatever needs a GL context fails here, even where one could be had
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"

import copy
import gc
import random
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts in the background ignore Ctrl-C


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Nothing that is imported is garbage: not to look for it meanwhile saves a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """What was imported is no garbage, and little of the rest is: to look for it rarely saves a tenth of the time."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def no_datasets_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep Minari away from the user's own datasets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield


@pytest.fixture(scope="session", autouse=True)
def models_are_compiled_once() -> Iterator[None]:
    """Each environment gets a copy of what MuJoCo made of the same file before: of a maze most of that is its sky."""
    import mujoco

    compiled: dict[tuple[Path, bytes], Any] = {}
    compile_file = mujoco.MjModel.from_xml_path

    def from_xml_path(path: str, *assets: Any) -> Any:
        if assets:
            return compile_file(path, *assets)
        key = (Path(path).parent, Path(path).read_bytes())
        if key not in compiled:
            compiled[key] = compile_file(path)
        return copy.copy(compiled[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco.MjModel, "from_xml_path", from_xml_path)
        yield


@pytest.fixture(autouse=True)
def reproducible() -> None:
    """Seed the global generators; without a GPU ``torch.manual_seed`` would note each call, with its stack, for one."""
    random.seed(0)
    np.random.seed(0)
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:
        torch.default_generator.manual_seed(0)
