"""Flat Box spaces to and from JSON, and the check that an environment is the one an agent was made for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces


def flat_box(space: spaces.Space[Any], name: str) -> spaces.Box:
    """
    :raises ValueError: unless ``space`` is a one-dimensional Box, naming it
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"the {name} space is {space}, it must be a Box with one dimension; flatten it with a wrapper")
    return space


def box_to_dict(box: spaces.Box) -> dict[str, Any]:
    """JSON form: bounds as lists (None for infinite) and the dtype's name."""
    return {"low": _to_json(box.low), "high": _to_json(box.high), "dtype": str(box.dtype)}


def box_from_dict(values: dict[str, Any]) -> spaces.Box:
    dtype = np.dtype(str(values["dtype"]))
    low = np.array([-math.inf if bound is None else bound for bound in values["low"]], dtype=dtype)
    high = np.array([math.inf if bound is None else bound for bound in values["high"]], dtype=dtype)
    return spaces.Box(low, high, dtype=dtype.type)


def check_spaces(
    observation_space: spaces.Box, action_space: spaces.Box, other_observation: Any, other_action: Any
) -> None:
    """
    :raises ValueError: when an environment's spaces differ from the agent's in shape or (finite) bounds
    """
    for name, mine, other in (
        ("observation", observation_space, other_observation),
        ("action", action_space, other_action),
    ):
        same = isinstance(other, spaces.Box) and mine.shape == other.shape
        if not same or not (np.allclose(mine.low, other.low) and np.allclose(mine.high, other.high)):
            raise ValueError(f"the agent was made for the {name} space {mine}, the environment has {other}")


def _to_json(bounds: np.ndarray) -> list[float | None]:
    return [float(bound) if math.isfinite(bound) else None for bound in bounds]
