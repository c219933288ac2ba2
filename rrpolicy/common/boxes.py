"""Boxes as JSON, for archives and exported planners."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces


def box_to_dict(box: spaces.Box) -> dict[str, Any]:
    """JSON form: bounds as lists (None for infinite) and the dtype's name."""
    return {"low": _to_json(box.low), "high": _to_json(box.high), "dtype": str(box.dtype)}


def box_from_dict(values: Mapping[str, Any]) -> spaces.Box:
    """The Box that `box_to_dict` described."""
    dtype = np.dtype(str(values["dtype"]))
    low = np.array([-math.inf if bound is None else bound for bound in values["low"]], dtype=dtype)
    high = np.array([math.inf if bound is None else bound for bound in values["high"]], dtype=dtype)
    for name, bounds in (("low", low), ("high", high)):
        given = np.array([bound is not None for bound in values[name]])
        if not np.isfinite(bounds[given]).all():
            raise ValueError(f"{name} holds a bound that {dtype} cannot hold")
    return spaces.Box(low, high, dtype=dtype.type)


def _to_json(bounds: np.ndarray) -> list[float | None]:
    return [bound.item() if math.isfinite(bound) else None for bound in bounds]  # a float holds no large integer
