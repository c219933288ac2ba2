"""The observation statistics of Stable-Baselines3's ``VecNormalize``, read from its pickle without running it.
Its instructions are traced without being executed (`common.pickles`), and the numbers of two arrays are taken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.messages import at, printable
from rrpolicy.common.pickles import traced
from rrpolicy.common.schema import read_small
from rrpolicy.common.typing import Array

MAX_BYTES = 2**24
_DTYPES = {"f8": np.float64, "f4": np.float32}


@dataclass(frozen=True)
class ObservationStatistics:
    """
    Mean and variance by which observations are normalised for an agent.

    :param mean: (obs_dim,)
    :param variance: (obs_dim,)
    :param clip: largest absolute value after scaling
    :param epsilon: added to the variance
    """

    mean: Array
    variance: Array
    clip: float = 10.0
    epsilon: float = 1e-8

    def normalize(self, observations: Array) -> Array:
        """
        Normalise observations as during training.

        :param observations: (n, obs_dim) in environment units
        :return: float32 of the same shape
        """
        scaled = (observations - self.mean) / np.sqrt(self.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


def read_statistics(path: str | Path) -> ObservationStatistics | None:
    """
    Read the statistics of observations that ``VecNormalize`` saved.

    :param path: ``vecnormalize.pkl`` of an agent
    :return: None when observations were not normalised
    :raises ValueError: naming the file, when it holds something else or its numbers cannot be right
    """
    place = Path(path)
    try:
        content = read_small(place, MAX_BYTES)
    except ValueError as error:
        raise ValueError(at(place, error)) from error
    try:
        state = traced(content).state
        if state.get("norm_obs") is False:
            return None
        moments = state["obs_rms"].state
        mean, variance = (_array(moments[name]) for name in ("mean", "var"))
        numbers = float(state.get("clip_obs", 10.0)), float(state.get("epsilon", 1e-8))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(at(place, f"no statistics of a VecNormalize that can be read: {error}")) from error
    finite = all(np.isfinite(values).all() for values in (mean, variance, np.array(numbers)))
    if mean.ndim != 1 or mean.shape != variance.shape or not finite or (variance < 0).any() or min(numbers) <= 0:
        raise ValueError(at(place, f"mean {mean.shape} and variance {variance.shape}, wanted finite ones of one shape"))
    return ObservationStatistics(mean, variance, *numbers)


def _array(node: Any) -> Array:
    """The numbers of an inert numpy array, float64."""
    if node.name.endswith("multiarray _reconstruct"):
        _, shape, dtype, fortran, content = node.state
    elif node.name.endswith("numeric _frombuffer"):  # since protocol 5
        content, dtype, shape, order = node.parts
        fortran = order == "F" and len(shape) > 1
    else:
        raise ValueError(f"found {printable(node.name)}, wanted a numpy array")
    kind, order = dtype.parts[0], dtype.state[1]
    if not isinstance(kind, str) or not isinstance(order, str):  # others may hold themselves many times over
        raise ValueError("the type of an array is no text")
    if kind not in _DTYPES or not isinstance(content, bytes | bytearray) or fortran:
        raise ValueError(f"an array of type {printable(kind)!r}, wanted one of {', '.join(_DTYPES)}")
    values = np.frombuffer(content, np.dtype(_DTYPES[kind]).newbyteorder(order))  # type: ignore[arg-type]
    return values.reshape(shape).astype(np.float64)
