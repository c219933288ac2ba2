"""What agents and rewards have in common: one normaliser, a safe archive, refusals, and leaving no trace."""

from __future__ import annotations

import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.typing import Array
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer

TOLERANCE = 1e-3  # of an action's range, or of a reward's size: batches of different sizes round differently


class ContractError(AssertionError):
    """
    A contract is broken.

    :param contract: its name
    :param seen: what was seen, against what was promised
    """

    def __init__(self, contract: str, seen: str) -> None:
        super().__init__(f"contract '{contract}' is broken: {seen}")
        self.contract = contract


def demand(contract: str, kept: bool, seen: str) -> None:
    """
    Raise where a contract is broken.

    :raises ContractError: unless ``kept``
    """
    if not kept:
        raise ContractError(contract, seen)


def check_refusal(contract: str, call: Callable[[], object], names: tuple[object, ...], what: str) -> None:
    """
    Check that bad input is refused with a message that names what was wrong.

    :raises ContractError: unless ``call`` raises a ValueError whose message holds all of ``names``
    """
    try:
        call()
    except ValueError as error:
        missing = [str(name) for name in names if str(name) not in str(error)]
        demand(contract, not missing, f"{what} was refused with {str(error)!r}, which does not name {missing}")
        return
    except Exception as error:
        raise ContractError(contract, f"{what} raised {type(error).__name__}, wanted a ValueError: {error}") from error
    raise ContractError(contract, f"{what} was not refused")


def check_normalizer(normalizer: Normalizer, layout: TrajectoryLayout) -> None:
    """
    Check that a normaliser is inverted exactly.

    :raises ContractError: unless packed rows map to environment units and back, constant columns exactly
    """
    affine = normalizer.packed(layout)
    rows = np.random.default_rng(0).uniform(-1, 1, (50, affine.width)).astype(np.float32)
    units = affine.denormalize(rows)
    again = affine.normalize(units)
    constant = affine.scale == 0
    exact = (again[:, constant] == 0).all() and (units[:, constant] == affine.offset[constant]).all()
    demand("one normaliser", bool(exact), "a constant column does not map to 0 and back exactly")
    reach = 1 + np.abs(affine.offset / np.where(constant, 1, affine.scale))
    undone = (np.abs(again - rows) <= 1e-5 * reach)[:, ~constant].all()
    demand("one normaliser", bool(undone), "normalising does not undo denormalising")


def check_archive(subject: Any, answer: Callable[[Any], Array]) -> None:
    """
    Check that an object is the same after saving and loading.

    :param subject: anything with ``save(path)`` and ``load(path)``
    :param answer: what a loaded subject must answer alike, bit for bit
    :raises ContractError: for pickles, another answer, a lost normaliser or a damaged file that loads
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "subject.zip"
        subject.save(path)
        demand("archive", zipfile.is_zipfile(path), f"save({path.name!r}) did not write a zip of that name")
        with zipfile.ZipFile(path) as archive:
            foreign = [name for name in archive.namelist() if not name.endswith((".json", ".safetensors"))]
        demand("archive", not foreign, f"the archive holds {foreign}, wanted JSON and safetensors only")
        loaded = type(subject).load(path)
        demand("archive", getattr(loaded, "env", None) is None, "what was loaded has an environment")
        demand("archive", np.array_equal(answer(loaded), answer(subject)), "what was loaded answers otherwise")
        if hasattr(subject, "normalizer"):
            demand("one normaliser", loaded.normalizer == subject.normalizer, "the archive lost the normaliser")
        whole = path.read_bytes()
        half = len(whole) // 2
        flipped = whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]
        for fault, damaged in (("cut off", whole[:half]), ("tampered with", flipped)):
            path.write_bytes(damaged)
            check_refusal("archive", lambda: type(subject).load(path), (path.name,), f"a file that was {fault}")


@contextmanager
def leaves_no_trace(contract: str, modules: list[nn.Module]) -> Iterator[None]:
    """
    A context in which networks and global random states must stay as they are.

    :param modules: networks whose weights, gradients, modes and flags are watched, with the global random states
    :raises ContractError: when the block changed any of them
    """
    before = _world(modules)
    yield
    for (name, was), now in zip(before.items(), _world(modules).values(), strict=True):
        demand(contract, _same(was, now), f"{name} changed")


def _world(modules: list[nn.Module]) -> dict[str, Any]:
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return {
        "torch's global random state": torch.get_rng_state(),
        "numpy's global random state": list(np.random.get_state(legacy=False)["state"].values()),
        "python's global random state": random.getstate(),
        "a module's mode (train or eval)": [one.training for module in modules for one in module.modules()],
        "a weight": [parameter.detach().clone() for parameter in parameters],
        "a weight's gradient": [None if one.grad is None else one.grad.clone() for one in parameters],
        "a weight's requires_grad": [one.requires_grad for one in parameters],
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else bool(one == other)
