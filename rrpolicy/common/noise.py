"""Random draws: where generators are made, and what is drawn from them, on the device that is to use it.

The noise of a seed is drawn on the CPU, so that it is the same everywhere. ``fast_noise`` puts the generator on the
device instead: nothing is moved, and the numbers of a seed are those of that kind of device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rrpolicy.common.device import CPU


def generator(seed: int, device: torch.device = CPU) -> torch.Generator:
    """
    A generator of a seed.

    :param seed: a whole number
    :param device: where it draws; what it gives differs between the CPU and each kind of device
    """
    return torch.Generator(device).manual_seed(seed)


def twin(of: torch.Generator, state: Tensor | None = None) -> torch.Generator:
    """
    Another generator on the same device.

    :param of: the first one
    :param state: in which it begins; None: that of the first one
    """
    return torch.Generator(of.device).set_state(of.get_state() if state is None else state)


def moved(drawing: torch.Generator, device: torch.device, seed: int | None = None) -> torch.Generator:
    """
    A generator on a device: the same one where it is there already, and its state where the device is of the same kind.

    :param drawing: the generator
    :param device: where it is to draw
    :param seed: of the new one on another kind of device, which has other states; None: that of the first one
    """
    if same_place(drawing.device, device):
        return drawing
    if drawing.device.type == device.type:
        return torch.Generator(device).set_state(drawing.get_state())
    return generator(drawing.initial_seed() if seed is None else seed, device)


def same_place(one: torch.device, other: torch.device) -> bool:
    """Whether two devices are one, where a device without a number is the first of its kind."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def send(x: Tensor, device: torch.device) -> Tensor:
    """
    A tensor on a device; to CUDA it goes from pinned memory, so that nothing waits for the GPU.

    :param x: on the CPU, or there already
    """
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def randn(shape: Sequence[int], drawing: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise of ``shape``, drawn on the generator's device and sent to ``device``."""
    return send(torch.randn(tuple(shape), generator=drawing, device=drawing.device), device)


def rand(n: int, drawing: torch.Generator, device: torch.device) -> Tensor:
    """Numbers (n,), uniform in [0, 1), drawn and sent likewise."""
    return send(torch.rand(n, generator=drawing, device=drawing.device), device)


def randint(high: int, shape: Sequence[int], drawing: torch.Generator, device: torch.device) -> Tensor:
    """Whole numbers of ``shape``, uniform in [0, high), drawn and sent likewise."""
    return send(torch.randint(high, tuple(shape), generator=drawing, device=drawing.device), device)
