"""Devices: where networks compute.

Archives know no device, and the noise of a seed is drawn on the CPU, so that it is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rrpolicy.common.messages import first_line

CPU = torch.device("cpu")


def resolve(device: torch.device | str = "auto") -> torch.device:
    """
    The device that a name stands for.

    :param device: ``"auto"`` for CUDA where there is a GPU, else the CPU, as in Stable-Baselines3; or a device of torch
        such as ``"cpu"``, ``"cuda:1"`` or ``"mps"``
    :raises ValueError: for a device that this machine lacks, or no device at all
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=device).device  # of "cuda" the one with its number
        if found.type == "meta":
            raise TypeError("meta tensors hold no numbers")
        return found
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"device is {str(device)!r}, this machine has {', '.join(_present())}: {first_line(error)}"
        ) from error


def _present() -> list[str]:
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["auto", "cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]


def device_of(computes: object) -> torch.device:
    """
    Where something computes: a network where its first parameter or buffer is, a model where its ``device`` says.

    :param computes: a network, an agent, a reward, a score model; the CPU for functions and whatever has no device
    """
    if isinstance(computes, nn.Module):
        weights = next(computes.parameters(), next(computes.buffers(), None))
        return CPU if weights is None else weights.device
    place: torch.device = getattr(computes, "device", CPU)
    return place


def precise(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def randn(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise of ``shape``, drawn on the generator's device and moved to ``device``."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device).to(device)
