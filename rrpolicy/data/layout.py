"""Which columns of a packed transition are actions and which are observations: the only file that knows.
A window of H rows, taken every ``stride`` environment steps, is packed as ``[action, observation]`` into (H, D)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rrpolicy.common.arguments import whole
from rrpolicy.common.typing import AnyArray

if TYPE_CHECKING:
    import torch

_LARGEST = {
    "observation_dim": 2**16,
    "action_dim": 2**16,
    "horizon": 2**14,
    "stride": 10_000,
    "n_observation_rows": 2**14,
}  # as in archives
_MOST_NUMBERS = 2**22  # of a window


@dataclass(frozen=True)
class TrajectoryLayout:
    """How observations and actions become the event that a diffusion model plans.

    :param observation_dim: width of an environment observation
    :param action_dim: width of an environment action
    :param horizon: H, rows in a window
    :param stride: environment steps from one row to the next (more than 1: a *jumpy* plan)
    :param observation_columns: entries of the observation that are planned, in packed order; ``None`` = all
    :param plan_actions: whether a row holds the action too; if not, a controller turns planned states into actions
    :param n_observation_rows: first rows whose observations are known: the last of them is the present, those before it
        are the history (before an episode's beginning, its first row again)
    :raises ValueError: naming the field that is wrong
    """

    observation_dim: int
    action_dim: int
    horizon: int
    stride: int = 1
    observation_columns: tuple[int, ...] | None = None
    plan_actions: bool = True
    n_observation_rows: int = 1

    def __post_init__(self) -> None:
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r}, wanted an integer of at least 1")
            if value > largest:
                raise ValueError(f"{name}={value!r}, wanted at most {largest}")
            object.__setattr__(self, name, int(value))
        if (size := self.horizon * (self.observation_dim + self.action_dim)) > _MOST_NUMBERS:
            raise ValueError(f"horizon={self.horizon} makes windows of {size} numbers, wanted at most {_MOST_NUMBERS}")
        if self.longest_execution < 1 and self.n_observation_rows > 1:
            raise ValueError(f"n_observation_rows={self.n_observation_rows} leaves no row to plan of {self.horizon}")
        if self.observation_columns is not None:
            columns = tuple(whole("observation_columns", column) for column in self.observation_columns)
            inside = all(0 <= column < self.observation_dim for column in columns)
            if not columns or not inside or len(set(columns)) < len(columns):
                wanted = f"at least one and distinct, from 0 to {self.observation_dim - 1}"
                raise ValueError(f"observation_columns={self.observation_columns!r}, wanted columns {wanted}")
            object.__setattr__(self, "observation_columns", columns)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The observation entries that are planned, in packed order."""
        return tuple(range(self.observation_dim)) if self.observation_columns is None else self.observation_columns

    @cached_property
    def width(self) -> int:
        """D, the width of a packed row."""
        return len(self.columns) + (self.action_dim if self.plan_actions else 0)

    @property
    def event_shape(self) -> tuple[int, int]:
        """(H, D), the shape of what the diffusion model plans."""
        return (self.horizon, self.width)

    @property
    def span(self) -> int:
        """Environment steps that a window touches, first and last included."""
        return (self.horizon - 1) * self.stride + 1

    @property
    def present(self) -> int:
        """Row of the present, from which on a plan is executed; the rows before it are the history."""
        return self.n_observation_rows - 1

    @property
    def longest_execution(self) -> int:
        """Environment steps for which a plan can be executed."""
        return (self.horizon - self.present - (0 if self.plan_actions else 1)) * self.stride

    @property
    def past(self) -> int:
        """Environment steps from the first row of a window to the present."""
        return self.present * self.stride

    @property
    def action_slice(self) -> slice:
        """Packed columns that are actions; empty when actions are not planned."""
        return slice(0, self.action_dim if self.plan_actions else 0)

    @property
    def observation_slice(self) -> slice:
        """Packed columns that are observation entries."""
        return slice(self.action_slice.stop, self.width)

    @cached_property
    def pinned(self) -> np.ndarray:
        """(H, D) booleans, True at the known observations (never at actions), which conditioning holds."""
        mask = np.zeros(self.event_shape, dtype=bool)
        mask[: self.n_observation_rows, self.observation_slice] = True
        mask.flags.writeable = False
        return mask

    def pack(self, observations: AnyArray, actions: AnyArray | None = None) -> AnyArray:
        """Select and join columns; values and units stay as they are.

        :param observations: ``(..., observation_dim)``
        :param actions: ``(..., action_dim)``; needed exactly when actions are planned, otherwise ignored
        :return: ``(..., D)``
        :raises ValueError: when a width is wrong or actions are missing
        """
        self._check_width("observations", observations, self.observation_dim)
        chosen = observations[..., self._selection]
        if not self.plan_actions:
            return chosen
        if actions is None:
            raise ValueError("actions=None, wanted an array: this layout plans actions")
        self._check_width("actions", actions, self.action_dim)
        if isinstance(actions, np.ndarray):
            return np.concatenate([actions, chosen], axis=-1)
        given: Any = actions
        packed = given.new_empty((*given.shape[:-1], self.width))
        packed[..., self.action_slice], packed[..., self.observation_slice] = actions, chosen
        return packed

    def observations_of(self, x: AnyArray) -> AnyArray:
        """The planned observation entries of packed rows.

        :param x: ``(..., D)``
        :return: ``(..., len(columns))``, a view
        """
        self._check_width("x", x, self.width)
        return x[..., self.observation_slice]

    def actions_of(self, x: AnyArray) -> AnyArray:
        """The actions of packed rows.

        :param x: ``(..., D)``
        :return: ``(..., action_dim)``, a view
        :raises ValueError: when this layout does not plan actions
        """
        if not self.plan_actions:
            raise ValueError("plan_actions=False: packed rows of this layout hold no actions")
        self._check_width("x", x, self.width)
        return x[..., self.action_slice]

    def to_dict(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_dict` rebuilds the layout; a history is named where there is one."""
        values, columns = asdict(self), self.observation_columns
        if self.n_observation_rows == 1:
            del values["n_observation_rows"]  # fingerprints and archives stay as they were before there were histories
        return {**values, "observation_columns": None if columns is None else list(columns)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrajectoryLayout":
        """Rebuild a layout.

        :param values: what :meth:`to_dict` returned
        :raises ValueError: for a missing or unknown field, or a wrong value
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted({"observation_dim", "action_dim", "horizon"} - set(values))
        if unknown or missing:
            raise ValueError(f"layout: unknown fields {unknown}, missing fields {missing}, wanted {sorted(known)}")
        columns = values.get("observation_columns")
        return cls(**{**values, "observation_columns": None if columns is None else tuple(columns)})

    @cached_property
    def _selection(self) -> slice | list[int]:
        """A slice where the columns are consecutive: a view then, instead of a gather."""
        first = self.columns[0]
        consecutive = self.columns == tuple(range(first, first + len(self.columns)))
        return slice(first, first + len(self.columns)) if consecutive else list(self.columns)

    @staticmethod
    def _check_width(name: str, array: "np.ndarray | torch.Tensor", width: int) -> None:
        if array.ndim < 1 or array.shape[-1] != width:
            raise ValueError(f"{name} has shape {tuple(array.shape)}, wanted (..., {width})")
