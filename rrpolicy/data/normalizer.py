"""Environment units to normalised units and back, one affine map per column, fitted once and shared by every model.
It is a plain value: two agents compare by ``fingerprint``, and constant columns go to 0 and come back exactly."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.common.typing import AnyArray
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout

if TYPE_CHECKING:
    import torch

MODES = ("limits", "gaussian", "isotropic", "quantiles")  # archives hold the position
QUANTILES = (0.01, 0.99)  # sent to -1 and 1 by "quantiles"
ALMOST_CONSTANT = 1e-5  # scales that are a smaller part of their offset are rounding errors
LEAST_CLIP = {"limits": 1.5, "isotropic": 1.5, "quantiles": 1.5, "gaussian": 5.0}  # normalised units that are planned
FARTHEST = 100.0  # normalised units beyond which an observation says nothing more when it is acted upon


@dataclass(frozen=True, eq=False)
class Affine:
    """``normalised = (x - offset) / scale`` for each of n columns.

    :param offset: ``(n,)``, environment units; stored as float32
    :param scale: ``(n,)``, environment units per normalised unit, at least 0; 0 marks a constant column
    :raises ValueError: for other shapes, values that are not finite, or a negative scale
    """

    offset: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("offset", "scale"):
            # + 0.0 turns -0.0 into 0.0, so that equal values have equal bytes
            value = np.array(getattr(self, name), dtype=np.float32) + np.float32(0.0)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise ValueError(f"{name}={value}, wanted finite values of shape (n,)")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if self.offset.shape != self.scale.shape or (self.scale < 0).any():
            raise ValueError(f"scale={self.scale}, wanted {self.offset.shape[0]} values of at least 0")

    @property
    def width(self) -> int:
        """n, the number of columns."""
        return int(self.offset.shape[0])

    def normalize(self, x: AnyArray) -> AnyArray:
        """Environment units to normalised units; constant columns become 0.

        :param x: ``(..., n)`` numpy or torch, not changed
        :return: the same shape and kind, floating point
        """
        self._check_width(x)
        return (x - _like(x, self.offset)) / _like(x, self._divisor) * _like(x, self._varies)

    def normalize_bounded(self, x: np.ndarray) -> np.ndarray:
        """As :meth:`normalize`, within ±:data:`FARTHEST`: no observation, however far off, gives infinite numbers.

        :param x: ``(..., n)`` finite
        :return: the same shape
        """
        with np.errstate(over="ignore"):
            return np.clip(self.normalize(x), -FARTHEST, FARTHEST)

    def denormalize(self, x: AnyArray) -> AnyArray:
        """Normalised units to environment units; constant columns become their constant exactly.

        :param x: ``(..., n)`` numpy or torch, not changed
        :return: the same shape and kind, floating point
        """
        self._check_width(x)
        return x * _like(x, self.scale) + _like(x, self.offset)

    def select(self, columns: tuple[int, ...]) -> "Affine":
        """The map of some columns, in the order given.

        :param columns: column numbers
        """
        return Affine(self.offset[list(columns)], self.scale[list(columns)])

    @staticmethod
    def concatenate(parts: "list[Affine]") -> "Affine":
        """One map over the joined columns of several.

        :param parts: maps in column order
        """
        return Affine(np.concatenate([p.offset for p in parts]), np.concatenate([p.scale for p in parts]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Affine):
            return NotImplemented
        return np.array_equal(self.offset, other.offset) and np.array_equal(self.scale, other.scale)

    def __hash__(self) -> int:
        return hash((self.offset.tobytes(), self.scale.tobytes()))

    @cached_property
    def _varies(self) -> np.ndarray:
        return (self.scale > 0).astype(np.float32)

    @cached_property
    def _divisor(self) -> np.ndarray:
        return np.where(self.scale > 0, self.scale, np.float32(1.0))

    def _check_width(self, x: "np.ndarray | torch.Tensor") -> None:
        if x.ndim < 1 or x.shape[-1] != self.width:
            raise ValueError(f"x has shape {tuple(x.shape)}, wanted (..., {self.width})")


@dataclass(frozen=True)
class Normalizer:
    """The shared coordinate system of a base, an expert and their reward.

    :param observations: map of all observation columns
    :param actions: map of all action columns
    :param mode: ``"limits"``, ``"gaussian"``, ``"isotropic"`` or ``"quantiles"``: how it was fitted
    """

    observations: Affine
    actions: Affine
    mode: str = "limits"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r}, wanted one of {MODES}")

    @classmethod
    def fit(cls, dataset: TrajectoryDataset | Sequence[TrajectoryDataset], mode: str = "limits") -> "Normalizer":
        """Fit to a dataset, or to several at once: a base's and its expert's, so that neither leaves the other's range.

        A column that is constant but for rounding errors (a scale below 1e-5 of its offset) gets its offset as scale,
        so that a small change of it while acting does not become thousands of normalised units; a warning names it.

        :param dataset: transitions in environment units; of several every row counts the same
        :param mode: ``"limits"`` sends each column's range to [-1, 1]; ``"gaussian"`` to mean 0 and standard
            deviation 1; ``"quantiles"`` its 1 % and 99 % quantiles to [-1, 1], so that outliers do not decide the scale
            (a column with equal quantiles: its range); ``"isotropic"`` centres each observation column on its midpoint
            and divides all of them by one scale, the largest half range, so that distances keep their proportions
            (actions as in limits)
        :raises ValueError: for an unknown mode, no dataset or datasets of different widths
        :raises TypeError: for something else than datasets
        """
        data = [dataset] if isinstance(dataset, TrajectoryDataset) else dataset
        if not isinstance(data, Sequence) or not all(isinstance(one, TrajectoryDataset) for one in data):
            raise TypeError(f"dataset is a {type(dataset).__name__}, wanted a TrajectoryDataset or a list of them")
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}, wanted one of {MODES}")
        whole = data[0] if len(data) == 1 else TrajectoryDataset.concatenate(data)
        observations, actions = _FITTED[mode](whole.observations), _floored("action", _FITTED[mode](whole.actions))
        if mode == "isotropic":  # of the scale that all columns share, no part is a rounding error
            return cls(_isotropic(observations), actions, mode)
        return cls(_floored("observation", observations), actions, mode)

    @classmethod
    def from_bounds(
        cls,
        observations: tuple[np.ndarray, np.ndarray],
        actions: tuple[np.ndarray, np.ndarray],
        mode: str = "limits",
    ) -> "Normalizer":
        """Build from known limits, such as a maze's geometry, instead of from data.

        :param observations: (low, high), each ``(obs_dim,)``, environment units
        :param actions: (low, high), each ``(action_dim,)``, environment units
        :param mode: ``"limits"`` or ``"isotropic"``
        :raises ValueError: for another mode, bounds that are not finite, or low above high
        """
        if mode not in ("limits", "isotropic"):
            raise ValueError(f"mode={mode!r}, wanted 'limits' or 'isotropic' for bounds (the others are for data)")
        mapped = _limits("observations", *observations)
        return cls(_isotropic(mapped) if mode == "isotropic" else mapped, _limits("actions", *actions), mode)

    def packed(self, layout: TrajectoryLayout) -> Affine:
        """The map of a packed row, for whole windows ``(..., D)`` at once.

        :param layout: decides which columns and in which order
        :raises ValueError: when the layout was made for other widths
        """
        if layout not in self._packed:
            self._packed[layout] = self._joined(layout)
        return self._packed[layout]

    @cached_property
    def _packed(self) -> dict[TrajectoryLayout, Affine]:
        return {}

    def _joined(self, layout: TrajectoryLayout) -> Affine:
        for name, width, wanted in (
            ("observation_dim", layout.observation_dim, self.observations.width),
            ("action_dim", layout.action_dim, self.actions.width),
        ):
            if width != wanted:
                raise ValueError(f"layout.{name}={width}, wanted {wanted}, the normaliser's")
        chosen = self.observations.select(layout.columns)
        return Affine.concatenate([self.actions, chosen]) if layout.plan_actions else chosen

    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal exactly when two normalisers are equal."""
        digest = hashlib.sha256(self.mode.encode())
        for affine in (self.observations, self.actions):
            for values in (affine.offset, affine.scale):
                digest.update(f"|{values.shape[0]}|".encode())
                digest.update(values.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays for an archive group; keep them in float32, half precision would change the fingerprint."""
        return {
            "observation_offset": self.observations.offset,
            "observation_scale": self.observations.scale,
            "action_offset": self.actions.offset,
            "action_scale": self.actions.scale,
            "mode": np.array([MODES.index(self.mode)], dtype=np.uint8),
        }

    @classmethod
    def from_tensors(cls, tensors: "Mapping[str, torch.Tensor]") -> "Normalizer":
        """Rebuild from tensors of :meth:`to_arrays`.

        :param tensors: the archive group
        :raises ValueError: naming the tensor that is missing or wrong
        """
        names = ("observation_offset", "observation_scale", "action_offset", "action_scale", "mode")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"normalizer: tensor {missing[0]!r} is missing, wanted {names}")
        for name in names[:-1]:
            if not tensors[name].is_floating_point():
                raise ValueError(f"normalizer: tensor {name!r} is of type {tensors[name].dtype}, wanted float32")
        *maps, mode = (tensors[name].detach().cpu().numpy() for name in names)
        if mode.shape != (1,) or not 0 <= int(mode[0]) < len(MODES):
            raise ValueError(f"normalizer: tensor 'mode' is {mode}, wanted one number below {len(MODES)}")
        return cls(Affine(maps[0], maps[1]), Affine(maps[2], maps[3]), MODES[int(mode[0])])


def _like(x: AnyArray, values: np.ndarray) -> AnyArray:
    """Made anew each time: a tensor kept from inference mode could not be used in training later."""
    return values if isinstance(x, np.ndarray) else (x if x.is_floating_point() else x.float()).new_tensor(values)


def _limits(name: str, low: np.ndarray, high: np.ndarray) -> Affine:
    bounds = np.asarray([low, high], dtype=np.float64)
    if bounds.ndim != 2 or not np.isfinite(bounds).all() or (bounds[0] > bounds[1]).any():
        raise ValueError(f"{name}: bounds {low} to {high}, wanted finite (n,) arrays with low at most high")
    return Affine(bounds.mean(0), (bounds[1] - bounds[0]) / 2)


def _gaussian(values: np.ndarray) -> Affine:
    # a constant column is recognised by its range: its standard deviation may be a rounding error above 0
    varies = values.max(0) > values.min(0)
    mean = np.where(varies, values.mean(0, dtype=np.float64), values[0])
    return Affine(mean, np.where(varies, values.std(0, dtype=np.float64), 0.0))


def _range(values: np.ndarray) -> Affine:
    return _limits("data", values.min(0), values.max(0))


def _quantiles(values: np.ndarray) -> Affine:
    low, high = np.quantile(values.astype(np.float64), QUANTILES, axis=0)
    differ = high > low  # a flag that is rarely set has equal quantiles and still varies
    return _limits("data", np.where(differ, low, values.min(0)), np.where(differ, high, values.max(0)))


def _isotropic(mapped: Affine) -> Affine:
    return Affine(mapped.offset, np.where(mapped.scale > 0, mapped.scale.max(), np.float32(0.0)))


def _floored(name: str, mapped: Affine) -> Affine:
    """Almost constant columns measured in their own size."""
    size = np.abs(mapped.offset)
    almost = (mapped.scale > 0) & (mapped.scale < ALMOST_CONSTANT * size)
    if almost.any():
        warnings.warn(
            f"{name} columns {np.flatnonzero(almost).tolist()} vary by less than {ALMOST_CONSTANT:g} of their size, "
            "which is taken for rounding errors; subtract what is constant from a column whose small changes matter",
            category=RrpolicyWarning,
            stacklevel=3,
        )
    return Affine(mapped.offset, np.where(almost, size, mapped.scale))


_FITTED = {"limits": _range, "gaussian": _gaussian, "isotropic": _range, "quantiles": _quantiles}
