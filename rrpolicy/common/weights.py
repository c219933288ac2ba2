"""Stored weights and optimiser states, compared with the network that is to take them before that network is built.

A configuration of a few bytes can describe gigabytes. On torch's meta device a network costs no memory, so its shapes
are known, and compared with those of the file, before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.common.messages import printable

# Adam's averages of gradients cannot exceed the root of those of their squares by more than this, whatever the
# gradients (Cauchy and Schwarz, with its usual decay rates: 7.3), but for squares too small to be written down
_RATIO, _TINY = 8.0, 1e-18
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam and AdamW keep for each parameter


def check_weights(build: Callable[[], nn.Module | None], stored: Mapping[str, Tensor]) -> None:
    """
    Refuse weights that are not those of a network.

    :param build: makes the network, called with the meta device as torch's default; None is not compared
    :param stored: names and tensors of a state dictionary
    :raises RuntimeError: as ``load_state_dict``, naming a tensor that is missing, unknown, of another shape or type
    """
    with torch.device("meta"):
        network = build()
    if network is not None:
        check_alike(stored, network.state_dict())


def check_alike(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """
    Refuse a state dictionary that has other names, shapes or kinds of numbers than another one.

    :param wanted: may be on the meta device
    :raises RuntimeError: as :func:`check_weights`
    """
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        mine, theirs = wanted.get(name), stored.get(name)
        if mine is None or theirs is None:
            what = "has no tensor" if theirs is None else "has the unknown tensor"
            raise RuntimeError(f"the file {what} {printable(name)}")
        if mine.shape != theirs.shape:
            raise RuntimeError(f"tensor {name} has shape {tuple(theirs.shape)}, wanted {tuple(mine.shape)}")
        if mine.dtype != theirs.dtype:  # numbers of another precision may not be finite in this one
            raise RuntimeError(f"tensor {name} is of type {theirs.dtype}, wanted {mine.dtype}")


def check_layers(widths: Sequence[int], stored: Mapping[str, Tensor]) -> None:
    """
    Refuse hidden widths that stored weights do not have, for networks of other libraries.

    :param widths: of consecutive layers, inputs first
    :param stored: names and tensors of a state dictionary
    :raises RuntimeError: naming the first layer that no tensor belongs to
    """
    shapes = {tuple(value.shape) for value in stored.values()}
    for inputs, outputs in pairwise(widths):
        if (outputs, inputs) not in shapes:
            raise RuntimeError(f"the file has no layer of shape {(outputs, inputs)}, which its configuration names")


def stored_weights(module: nn.Module, half: bool = False) -> dict[str, Tensor]:
    """The state dictionary of a module, its floating-point numbers in half precision if wanted."""
    return {
        name: value.half() if half and value.is_floating_point() else value
        for name, value in module.state_dict().items()
    }


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an Adam optimiser has gathered, as tensors named ``index.moment``; empty before its first step."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def set_moments(optimizer: torch.optim.Optimizer, stored: Mapping[str, Tensor]) -> None:
    """
    Give an optimiser what :func:`moments` returned of one over the same parameters.

    :raises ValueError: for moments that are missing, unknown, of another shape, or that cannot be right
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in stored.items():
        index, _, name = key.partition(".")
        if not (index.isdecimal() and len(index) < 9 and int(index) < len(parameters)) or name not in _MOMENTS:
            raise ValueError(f"the optimiser state has the unknown entry {printable(key)}")
        shape = torch.Size() if name == "step" else parameters[int(index)].shape
        if value.shape != shape or not value.is_floating_point():
            raise ValueError(f"the optimiser state {key} is {value.dtype} {tuple(value.shape)}, wanted {tuple(shape)}")
        if name != "exp_avg" and bool((value < 0).any()):
            raise ValueError(f"the optimiser state {key} is negative, wanted values of at least 0")
        state.setdefault(int(index), {})[name] = value
    for place, entries in state.items():
        if missing := set(_MOMENTS) - set(entries):
            raise ValueError(f"the optimiser state of parameter {place} lacks {', '.join(sorted(missing))}")
        if bool((entries["exp_avg"].abs() > _RATIO * entries["exp_avg_sq"].sqrt() + _TINY).any()):
            raise ValueError(f"the optimiser state of parameter {place} has averages that its squares do not allow")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def set_generator_state(generator: torch.Generator, state: Any) -> None:
    """
    Restore the state of a random generator.

    :param state: as ``generator.get_state()`` returned it
    :raises ValueError: for something else
    """
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the random state cannot be restored: {printable(error, 100)}") from error
