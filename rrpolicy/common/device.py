"""Devices: where networks compute.

Archives know no device, and the noise of a seed is drawn on the CPU, so that it is the same everywhere.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import nn

from rrpolicy.common.messages import first_line

CPU = torch.device("cpu")
AUTO = "auto"

_preferred: ContextVar[str] = ContextVar("preferred", default=AUTO)


def prefer(device: torch.device | str) -> None:
    """
    Say what ``"auto"`` stands for from now on, in this context of ``contextvars``.

    :param device: as :func:`resolve` takes it; ``"auto"`` for what it stands for by default
    :raises ValueError: as :func:`resolve`
    """
    _preferred.set(AUTO)
    _preferred.set(AUTO if device == AUTO else str(resolve(device)))


def preferred() -> str:
    """What was said by :func:`prefer`; ``"auto"`` where nothing was."""
    return _preferred.get()


def resolve(device: torch.device | str = AUTO) -> torch.device:
    """
    The device that a name stands for.

    :param device: ``"auto"`` for CUDA where there is a GPU, else the CPU, as in Stable-Baselines3, unless
        :func:`prefer` has said otherwise; or a device of torch such as ``"cpu"``, ``"cuda:1"`` or ``"mps"``
    :raises ValueError: for a device that this machine lacks, or no device at all, naming those that it has
    """
    wanted = preferred() if device == AUTO else device
    if wanted == AUTO:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        named = torch.device(wanted)
    except (RuntimeError, TypeError):
        raise _absent(device, "there is no such kind of device") from None
    if named.type == "meta":
        raise _absent(device, "tensors there hold no numbers")
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise _absent(device, "torch sees no such GPU")
    try:
        return torch.empty(0, device=named).device  # of "cuda" the one with its number
    except (NotImplementedError, AssertionError) as error:
        raise _absent(device, "torch is built without it") from error
    except RuntimeError as error:
        raise _absent(device, first_line(error)) from error


def _absent(device: object, fault: str) -> ValueError:
    return ValueError(f"device is {str(device)!r:.60}, this machine has {', '.join(_present())}: {fault}")


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
