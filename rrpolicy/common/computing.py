"""How a gradient step computes: in how many parts a batch passes through the networks.

None of it changes what is learned but for rounding, and checkpoints are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rrpolicy.common.device import precise

Batch = tuple[Tensor, ...]
"""All that a loss is computed from, tensors of B rows each."""

Values = Mapping[str, Tensor | float]
"""Numbers by name; tensors of one number stay where they are."""


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
