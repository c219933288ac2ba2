"""Torch as this library computes with it, whatever the caller has set: float32, and tensors that gradients may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def usual_torch() -> Iterator[None]:
    """
    A block, or as a decorator a function, outside ``torch.inference_mode`` and with float32 as the default dtype.

    Steering needs gradients, which inference mode forbids; networks and noise of another dtype fit no archive. What the
    caller had is restored afterwards.
    """
    dtype = torch.get_default_dtype()
    if dtype is not torch.float32:
        torch.set_default_dtype(torch.float32)
    try:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                yield
        else:
            yield
    finally:
        if dtype is not torch.float32:
            torch.set_default_dtype(dtype)


def usual_tensor(x: torch.Tensor) -> torch.Tensor:
    """
    A tensor that gradients may use.

    :param x: any tensor
    :return: it, or a copy of it that gradients may use when it was made in inference mode
    """
    return x.clone() if x.is_inference() else x
