"""Names and units of the entries of a window: which column is which feature, and which row is how far ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rrpolicy.common.typing import Array
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.score_model import ScoreModel, layout_of, normalizer_of, pinned_mask

MAZE = ("x", "y", "x velocity", "y velocity", "x force", "y force")


@dataclass(frozen=True)
class Features:
    """
    The columns and rows of events (H, D).

    :param columns: names (D,)
    :param rows: environment steps from the present (H,)
    :param known: (H, D) booleans, True at entries that are conditions
    :param layout: None for events that are not windows
    :param normalizer: None where events have no other units
    """

    columns: tuple[str, ...]
    rows: tuple[int, ...]
    known: Any
    layout: TrajectoryLayout | None = None
    normalizer: Normalizer | None = None

    @classmethod
    def of(cls, model: ScoreModel, names: Sequence[str] | None = None) -> Features:
        """
        The features of a model's events.

        :param names: of all entries of an observation, then of an action; of events without a layout, of all columns;
            None for numbers
        :raises ValueError: for another number of names, or events that are neither vectors nor windows
        """
        shape, layout = tuple(model.event_shape), layout_of(model)
        if len(shape) not in (1, 2):
            raise ValueError(f"events have shape {shape}, wanted vectors (D,) or windows (H, D)")
        height, width = (1, *shape)[-2:]
        if layout is None:
            columns = [f"x{i}" for i in range(width)] if names is None else _checked(names, width, "columns")
            known = pinned_mask(model).cpu().numpy().reshape(height, width)
            return cls(tuple(columns), tuple(range(height)), known)
        n_observed, n_actions = layout.observation_dim, layout.action_dim
        numbered = [f"observation {i}" for i in range(n_observed)] + [f"action {i}" for i in range(n_actions)]
        wanted = "entries of an observation and of an action"
        every = numbered if names is None else _checked(names, n_observed + n_actions, wanted)
        actions = every[n_observed:] if layout.plan_actions else []
        columns = [*actions, *(every[i] for i in layout.columns)]
        rows = tuple((row - layout.present) * layout.stride for row in range(height))
        return cls(tuple(columns), rows, layout.pinned, layout, normalizer_of(model))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, D)."""
        return len(self.rows), len(self.columns)

    def windows(self, x0: Tensor | Array) -> Array:
        """Normalised events (N, *event_shape) in environment units, (N, H, D)."""
        values = x0.detach().cpu().numpy() if isinstance(x0, Tensor) else x0
        values = values.reshape(len(values), *self.shape)
        if self.layout is None or self.normalizer is None:
            return np.asarray(values, dtype=np.float64)
        return np.asarray(self.normalizer.packed(self.layout).denormalize(values), dtype=np.float64)

    def when(self, row: int) -> str:
        """A row in words, such as ``"now"`` or ``"in 8 steps"``; empty for events of one row."""
        if len(self.rows) == 1:
            return ""
        steps = self.rows[row]
        return "now" if steps == 0 else f"in {steps} steps" if steps > 0 else f"{-steps} steps ago"

    def name(self, row: int, column: int) -> str:
        """An entry in words."""
        return f"{self.columns[column]} {self.when(row)}".strip()


def names_of_environment(env: Any) -> tuple[str, ...] | None:
    """
    Names of the entries of an environment's observations and actions, from its simulator; None where it tells none.

    :param env: a PointMaze, or a robot of gymnasium that says how its observations are made
    """
    inner = env.unwrapped
    width, n_actions = np.prod(env.observation_space.shape or (0,)), np.prod(env.action_space.shape or (0,))
    if hasattr(inner, "maze") and (width, n_actions) == (4, 2):
        return MAZE
    parts, model = getattr(inner, "observation_structure", None), getattr(inner, "model", None)
    if not isinstance(parts, dict) or model is None or model.nq != model.nv:
        return None
    joints = [model.joint(i).name for i in range(model.njnt)]
    skipped = int(parts.get("skipped_qpos", 0))
    names = [*joints[skipped:], *(f"{joint} velocity" for joint in joints)]
    names += [f"{model.joint(int(model.actuator(i).trnid[0])).name} torque" for i in range(model.nu)]
    return tuple(names) if len(joints) == model.nq and len(names) == width + n_actions else None


def _checked(names: Sequence[str], n: int, what: str) -> list[str]:
    if len(names) != n or len(set(names)) != n or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"feature_names has {len(names)} names, wanted {n} different ones, of the {what}")
    return [str(name) for name in names]
