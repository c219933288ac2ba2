"""Noise of a picture's own: it depends on the picture and a key alone, not on its place or its neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def digests_of_events(values: Tensor) -> list[bytes]:
    """One for each of values (n, ...)."""
    return [hashlib.sha256(one.contiguous().numpy().tobytes()).digest() for one in values.cpu()]


def noise_of(digests: Sequence[bytes], key: str, like: Tensor) -> Tensor:
    """Normal noise (n, *event_shape), each event's from its own digest."""
    seeds = (int.from_bytes(hashlib.sha256(digest + key.encode()).digest()[:4], "little") for digest in digests)
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(like.device)
