"""The fit report of a reward: what its heads explain of score differences, the spread of its values, and what to doubt.

It is measured by `rewards.measured_fit` when an extraction ends, and stays with the reward in its archive and card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from rrpolicy.common.fields import FitFields
from rrpolicy.common.schema import checked, plain

# Both limits lie between what pairs without a difference (a null: two trainings on the same data) and the 96 pairs of
# `reproduce maze2d` gave (issue 25, and the rows r2_step_noised of docs/results/maze2d.csv).
LEAST_RANGE = 0.25  # nats; maps: .018 of a null, 3.88 of a reward. The geometric mean is .26
LEAST_R2 = 0.03  # step head at its map level: at most .012 of nulls, .068 and more in 95 % of the pairs, median .175


@dataclass(frozen=True)
class LevelFit:
    """
    How well one head explains score differences from ``first_level`` to ``last_level``, which may be the same.

    :param head: ``"window"`` or ``"step"``
    :param first_level: the cleanest noise level
    :param last_level: the noisiest one
    :param r2: explained fraction R² = 1 - Σ‖σ∇ρ - Δε‖² / Σ‖Δε‖², see `metrics.explained_fraction`
    :param r2_winsorized: the same with squares bounded by a typical one, see `metrics.winsorized_fraction`
    :param r2_permuted: R² for the differences Δε of other events, a null: what a direction that does not depend on the
        event explains, below 0 where ρ depends on it
    """

    head: str
    first_level: int
    last_level: int
    r2: float
    r2_winsorized: float
    r2_permuted: float

    @property
    def level_text(self) -> str:
        """The level, or the first and the last one."""
        return f"{self.first_level}" + (f"-{self.last_level}" if self.last_level > self.first_level else "")


@dataclass(frozen=True)
class FitReport:
    """
    How well an extracted reward explains its two models, and whether its values say anything.

    :param n_events: clean events behind the numbers
    :param held_out: whether they were held out; else they were learned from, with other noise
    :param levels: by head and noise level; levels at which the two models do not differ are left out
    :param map_level: noise level at which the step head scores single states; None without a step head
    :param window_range: 1st to 99th percentile of the window head's ρ of the events, nats; None without a window head
    :param step_range: the same of the step head's ρ of single states
    :param clipped: share of value targets that lie beyond ``value_clip`` spreads; None without value targets
    :param unfitted_levels: (first, last) of each run of noise levels without a target in the last buffer
    """

    n_events: int
    held_out: bool
    levels: tuple[LevelFit, ...] = ()
    map_level: int | None = None
    window_range: float | None = None
    step_range: float | None = None
    clipped: float | None = None
    unfitted_levels: tuple[tuple[int, int], ...] = ()

    def warnings(self, least_range: float = LEAST_RANGE, least_r2: float = LEAST_R2) -> tuple[str, ...]:
        """
        What speaks against the reward, a sentence each; empty where nothing does.

        :param least_range: nats within which the rewards of the events must not lie
        :param least_r2: R² below which a head explains nothing: the step head at the level of maps, the window head at
            every level
        """
        if not self.levels:
            return ("the two models do not differ at the events compared, so the reward means nothing",)
        return tuple(self._small_ranges(least_range)) + tuple(self._small_r2(least_r2))

    def _small_ranges(self, least_range: float) -> Iterator[str]:
        for head, spread in (("window", self.window_range), ("step", self.step_range)):
            if spread is not None and spread < least_range:
                yield (
                    f"the {head} head's rewards span {spread:.3g} nats (1st to 99th percentile of the events), less "
                    f"than {least_range:g}: so does a pair without a difference"
                )

    def _small_r2(self, least_r2: float) -> Iterator[str]:
        for head in ("window", "step"):
            fits = [one for one in self.levels if one.head == head]
            if head == "step" and self.map_level is not None:
                fits = [one for one in fits if one.first_level <= self.map_level <= one.last_level]
            if fits and (best := max(one.r2 for one in fits)) < least_r2:
                where = f"at noise level {fits[0].level_text}" if head == "step" else "at its best noise level"
                yield (
                    f"the {head} head explains R² {best:.3f} of the score differences {where}, less than {least_r2:g}: "
                    "no more than of a pair without a difference"
                )

    def lines(self) -> Iterator[str]:
        """The report as text, a table of the fits and a line for each other number."""
        yield f"fit at {self.n_events} events that were {'held out' if self.held_out else 'learned from'}:"
        yield f"  {'head':<8}{'level':>10}{'R²':>10}{'winsorized':>12}{'permuted':>10}"
        for one in self.levels:
            yield (
                f"  {one.head:<8}{one.level_text:>10}{one.r2:>10.3f}{one.r2_winsorized:>12.3f}{one.r2_permuted:>10.3f}"
            )
        for head, spread in (("window", self.window_range), ("step", self.step_range)):
            if spread is not None:
                yield f"  range of ρ, {head} head: {spread:.3g} nats (1st to 99th percentile)"
        if self.clipped is not None:
            yield f"  value targets clipped: {self.clipped:.1%}"
        if self.unfitted_levels:
            n = sum(last - first + 1 for first, last in self.unfitted_levels)
            yield f"  noise levels without targets: {n}, the first {self.unfitted_levels[0][0]}"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values: dict[str, Any] = plain(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Self | None:
        """
        What :meth:`to_dict` returned; None for None, as rewards of older versions have it.

        :raises ValueError: for other fields, or numbers out of bounds
        """
        if values is None:
            return None
        checked(FitFields, dict(values), "fit")
        runs = tuple((first, last) for first, last in values.get("unfitted_levels", ()))
        levels = tuple(LevelFit(**one) for one in values.get("levels", ()))
        return cls(**{**values, "levels": levels, "unfitted_levels": runs})


def fit_fact(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fit report in a reward's configuration as a fact of its card; nothing where there is none."""
    return {name: value for name, value in config.items() if name == "fit"}
