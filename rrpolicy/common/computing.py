"""How a gradient step computes: in which precision networks are called, in how many parts, compiled or not.

None of it changes what is learned but for rounding, and weights, their average, the optimiser and losses are float32.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution

from rrpolicy.common.device import precise
from rrpolicy.common.messages import first_line

Precision = Literal["fp32", "bf16"]

Batch = tuple[Tensor, ...]
"""All that a loss is computed from, tensors of B rows each."""

Values = Mapping[str, Tensor | float]
"""Numbers by name; tensors of one number stay where they are."""


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """
    A block in which networks compute in a precision: matrix products and convolutions, as ``torch.autocast`` says.

    :param precision: ``"fp32"``, or ``"bf16"``
    :param device: where they compute
    :raises ValueError: for another precision, or a device that lacks it
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r:.60}, it must be one of {get_args(Precision)}")
    if precision == "fp32":
        return nullcontext()
    try:
        return torch.autocast(device.type, dtype=torch.bfloat16)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"precision is {precision!r}, which {device} lacks: {first_line(error)}") from error


def backend_of(compile: bool | str) -> str | None:
    """
    The backend of ``torch.compile`` that an option names.

    :param compile: True for ``"inductor"``, False for none, or a name of ``torch.compiler.list_backends()``
    :raises ValueError: for a name that there is not
    """
    if isinstance(compile, bool):
        return "inductor" if compile else None
    if compile not in torch.compiler.list_backends(None):
        usual = ", ".join(sorted(torch.compiler.list_backends()))
        raise ValueError(f"compile is {compile!r:.60}, it must be True, False or a backend of torch.compile: {usual}")
    return compile


def check_compiler(backend: str, device: torch.device) -> None:
    """
    Compile something small. The first use of ``torch.compile`` in a process turns off the checks of torch's
    distributions, by which runs of Stable-Baselines3 notice that their weights are NaN; they are turned on again.

    :raises ValueError: where nothing can be compiled, as without a C++ compiler on the CPU or Triton on a GPU
    """
    checked = Distribution._validate_args
    try:
        torch.compile(torch.sin, backend=backend, fullgraph=True)(torch.zeros(1, device=device))
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        said = first_line(getattr(error, "inner_exception", error))  # of a backend
        fault = f"torch.compile with {backend!r} cannot compile on {device} here: {said}"
        raise ValueError(f"compile is wanted, and {fault}") from error
    finally:
        Distribution.set_default_validate_args(checked)


def parts_of(batch: Batch, n: int) -> Iterator[tuple[float, Batch]]:
    """
    Divide a batch: the mean over its rows is the sum of the parts' means, each times its share.

    :param batch: tensors (B, ...)
    :param n: parts
    :return: the share of the rows, and the part
    """
    rows = len(batch[0])
    for part in zip(*(tensor.tensor_split(min(n, rows)) for tensor in batch), strict=True):
        yield len(part[0]) / rows, part


def add_values(total: dict[str, Tensor | float], share: float, values: Values) -> None:
    """Add the values of a part to those of its batch, in place."""
    for name, value in values.items():
        total[name] = total.get(name, 0.0) + share * value


def read(values: Values, device: torch.device) -> dict[str, float]:
    """
    Values as numbers of Python. The device is waited for once.

    :param device: of the tensors
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    if tensors:
        wide = torch.stack([value.detach().to(precise(device)) for value in tensors.values()])
        numbers |= dict(zip(tensors, wide.cpu().tolist(), strict=True))
    return {name: float(numbers[name]) for name in values}


def check_as_before(learner: object, wanted: Mapping[str, Any]) -> None:
    """
    Check that a learner that goes on computes as it began.

    :param wanted: options of `ComputingOptions` by name; what is not named, or None, may be anything
    :raises ValueError: naming the first that differs
    """
    for name, value in wanted.items():
        if value is not None and (before := getattr(learner, name)) != value:
            raise ValueError(f"it began with {name} {before!r}, now it is {value!r}")
