"""What one should know of a dataset before training on it: its size, how its episodes ended, what each column holds,
and whether it fits the environment. What would spoil training is a fault; everything else is only reported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.normalizer import MODES, Normalizer
from rrpolicy.data.reference_scores import normalized_score, reference_score
from rrpolicy.data.transitions import episode_returns, finished

CLIP = 1.5  # normalised units, the default bound of plans
ALMOST_CONSTANT = 1e-3  # a range below this share of the largest value in size
FEW_VALUES = 1000  # so many that float32 has in a column's range make steps of it
FAR = 10.0  # robust standard deviations from the median: an outlier
CRUSHED = 0.05  # 98 % of the values lie in less than this share of the range
_ROUNDING = 1e-5  # of a bound: what float32 may add to it


class Column(NamedTuple):
    """
    One column of observations or actions, environment units.

    :param steps: values that float32 has between ``low`` and ``high``, both included
    :param outliers: share of values more than :data:`FAR` robust standard deviations from the median
    :param core: share of the range in which the middle 98 % lie, NaN where more than half of the values are equal
    """

    name: str
    low: float
    high: float
    mean: float
    std: float
    steps: int
    outliers: float
    core: float

    @property
    def kind(self) -> str:
        """``"constant"``, ``"almost constant"`` or nothing."""
        if self.low == self.high:
            return "constant"
        near = self.high - self.low < ALMOST_CONSTANT * max(abs(self.low), abs(self.high))
        return "almost constant" if near else ""


class Outside(NamedTuple):
    """Rows (share) with a value outside the space, and the column with most of them."""

    name: str
    share: float
    column: int
    low: float
    high: float


@dataclass(frozen=True)
class DataReport:
    """
    The report of `rrpolicy check-data` about a dataset.

    :param ends: numbers of episodes by how they ended; None where the dataset does not tell
    :param n_inferred: episodes that count as terminated where it does not tell; None where that cannot be said
    :param beyond_clip: for each mode of the normaliser the share of values beyond ``clip``, and the largest of a column
    :param outside: of observations and actions, where the environment is known
    :param returns: of the episodes that were recorded to their end (n,); None without rewards or such an episode
    :param scores: D4RL's (n,), where it has references
    :param faults: one line for each thing that would spoil training
    """

    n_transitions: int
    lengths: tuple[int, float, int]
    n_episodes: int
    ends: dict[str, int] | None
    n_inferred: int | None
    columns: list[Column]
    clip: float
    beyond_clip: dict[str, tuple[float, float]]
    outside: list[Outside]
    returns: Array | None
    scores: Array | None
    faults: list[str]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.n_transitions} rows in {self.n_episodes} episodes of {_lengths(self.lengths)} rows"
        if self.ends is not None:
            yield "ends: " + ", ".join(f"{count} {how}" for how, count in self.ends.items())
        else:
            inferred = "" if self.n_inferred is None else f", {self.n_inferred} count as terminated by their lengths"
            yield f"ends: not told{inferred}"
        for name, values in (("return", self.returns), ("normalized score", self.scores)):
            if values is not None:
                yield f"{name}: {values.min():.5g} to {values.max():.5g}, mean {values.mean():.5g}, n {len(values)}"
        yield f"{'column':<16}{'min':>12}{'mean':>12}{'max':>12}{'std':>12}  notes"
        for one in self.columns:
            numbers = "".join(f"{value:>12.5g}" for value in (one.low, one.mean, one.high, one.std))
            yield f"{one.name:<16}{numbers}  {_notes(one)}".rstrip()
        for mode, (share, most) in self.beyond_clip.items():
            yield f"beyond clip {self.clip:g} of {mode}: {share:.2%} of all values, {most:.2%} of the worst column's"
        for name, share, *_ in self.outside:
            yield f"{name} outside the environment's space: {share:.2%} of the rows"


def report(
    dataset: TrajectoryDataset,
    observation_space: spaces.Box | None = None,
    action_space: spaces.Box | None = None,
    env_id: str | None = None,
    time_limit: int | None = None,
    clip: float = CLIP,
) -> DataReport:
    """
    Look at a dataset.

    :param dataset: in environment units
    :param observation_space: of the environment, flat; None where it is not known
    :param action_space: likewise
    :param env_id: for the normalised score; None takes what the dataset says
    :param time_limit: environment steps after which episodes are cut off, for ends that the dataset does not tell
    :param clip: normalised units
    """
    arrays = {"observations": dataset.observations, "actions": dataset.actions}
    columns = [_column(f"{name} {i}", values[:, i]) for name, values in arrays.items() for i in range(values.shape[1])]
    faults = [fault for column in columns if (fault := _fault_of(column))]
    if all(column.kind == "constant" for column in columns if column.name.startswith("actions")):
        faults.append("actions never change")
    outside = []
    for name, space in (("observations", observation_space), ("actions", action_space)):
        if space is not None and space.shape != arrays[name].shape[1:]:
            faults.append(f"{name} have {arrays[name].shape[1]} columns, the environment's have {space.shape[0]}")
        elif space is not None:
            outside.append(_outside(name, arrays[name], space))
    faults += [_told(one) for one in outside if one.share > 0]
    lengths, done = dataset.episode_lengths, None if dataset.rewards is None else finished(dataset)
    returns = None if done is None or not done.any() else episode_returns(dataset)[done]
    home = env_id or dataset.metadata.get("env_id") or dataset.metadata.get("source")
    scored = returns is not None and isinstance(home, str) and reference_score(home) is not None
    return DataReport(
        len(dataset),
        (int(lengths.min()), float(lengths.mean()), int(lengths.max())),
        dataset.n_episodes,
        dataset.ends,
        _n_inferred(dataset, done, time_limit),
        columns,
        clip,
        {mode: _beyond_clip(dataset, mode, clip) for mode in MODES},
        outside,
        returns,
        normalized_score(str(home), returns) if scored else None,
        faults,
    )


def actions_outside(dataset: TrajectoryDataset, action_space: spaces.Box) -> float:
    """
    Share of rows whose action lies outside a space, beyond what float32 rounds.

    :param dataset: in environment units
    :param action_space: the environment's
    :raises ValueError: when the widths differ
    """
    return _checked_actions(dataset, action_space).share


def _checked_actions(dataset: TrajectoryDataset, action_space: spaces.Box) -> Outside:
    if (shape := action_space.shape) != (dataset.action_dim,):
        raise ValueError(f"action_space has shape {shape}, wanted ({dataset.action_dim},) as the dataset's actions")
    return _outside("actions", dataset.actions, action_space)


def _told(one: Outside) -> str:
    where = f"most in column {one.column}, which has {one.low:.5g} to {one.high:.5g}"
    return f"{one.name}: {one.share:.2%} of the rows lie outside the environment's space, {where}"


def check_actions(dataset: TrajectoryDataset, action_space: spaces.Box, wanted: str) -> None:
    """
    Refuse a dataset whose actions lie outside a space.

    :raises ValueError: when actions lie outside a space, saying what is wanted instead
    """
    if actions_outside(dataset, action_space) > 0:
        low, high = dataset.actions.min(), dataset.actions.max()
        raise ValueError(
            f"actions ({dataset.action_dim},) reach from {low:g} to {high:g}, outside {action_space}: wanted {wanted}"
        )


def warn_of_actions(datasets: Sequence[TrajectoryDataset], action_space: spaces.Box) -> None:
    """Warn of actions outside a space, of which an agent in that space cannot do what it learns."""
    for dataset in datasets:
        if (found := _checked_actions(dataset, action_space)).share > 0:
            warnings.warn(_told(found), RrpolicyWarning, stacklevel=4)


# ---------------------------------------------------------------------- columns


def _column(name: str, values: Array) -> Column:
    low, first, lower, middle, upper, last, high = np.quantile(values, [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1])
    spread = (upper - lower) / 1.349  # the standard deviation of a Gaussian with these quartiles
    outliers = float(np.mean(np.abs(values - middle) > FAR * spread)) if spread > 0 else 0.0
    core = float((last - first) / (high - low)) if spread > 0 else float("nan")
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Column(name, float(low), float(high), mean, std, _steps(low, high), outliers, core)


def _steps(low: float, high: float) -> int:
    """How many float32 numbers lie from low to high: their bits count up with their size."""
    bits = np.array([low, high], dtype=np.float32).view(np.int32).astype(np.int64)
    first, last = (int(one) if one >= 0 else -(int(one) & 0x7FFFFFFF) for one in bits)
    return last - first + 1


def _fault_of(column: Column) -> str | None:
    span = f"({column.low:.9g} to {column.high:.9g})"
    if column.kind == "almost constant":
        few = f", of which float32 has {column.steps} values: subtract an offset" if column.steps < FEW_VALUES else ""
        return f"{column.name} is almost constant {span}{few}"
    if column.core < CRUSHED:
        return f"{column.name} has outliers: 98 % of its values take {column.core:.2%} of its range {span}"
    return None


def _notes(column: Column) -> str:
    notes = [column.kind] if column.kind else []
    if column.kind != "constant" and column.steps < FEW_VALUES:
        notes.append(f"float32 has {column.steps} values there")
    if column.outliers:
        notes.append(f"{column.outliers:.2%} outliers")
    return ", ".join(notes)


def _beyond_clip(dataset: TrajectoryDataset, mode: str, clip: float) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns that hardly vary are among the faults
        fitted = Normalizer.fit(dataset, mode)
    shares = [
        (np.abs(affine.normalize(values)) > clip).mean(axis=0)
        for affine, values in ((fitted.observations, dataset.observations), (fitted.actions, dataset.actions))
    ]
    joined = np.concatenate(shares)
    return float(joined.mean()), float(joined.max())


# ---------------------------------------------------------------------- spaces, ends and returns


def _outside(name: str, values: Array, box: spaces.Box) -> Outside:
    low, high = box.low.astype(np.float64), box.high.astype(np.float64)
    slack = [_ROUNDING * np.maximum(1.0, np.abs(np.where(np.isfinite(side), side, 0.0))) for side in (low, high)]
    wrong = (values < low - slack[0]) | (values > high + slack[1])
    worst = int(wrong.mean(axis=0).argmax())
    return Outside(
        name, float(wrong.any(axis=1).mean()), worst, float(values[:, worst].min()), float(values[:, worst].max())
    )


def _n_inferred(dataset: TrajectoryDataset, done: Array | None, time_limit: int | None) -> int | None:
    if dataset.terminated is not None or done is None or time_limit is None:
        return None
    return int((done & (dataset.episode_lengths < time_limit)).sum())


def _lengths(lengths: tuple[int, float, int]) -> str:
    low, mean, high = lengths
    return f"{low}" if low == high else f"{low} to {high} (mean {mean:.1f})"
