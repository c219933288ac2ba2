"""What a comparison found: numbers with intervals, as an object, as JSON and as a page."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from rrpolicy.common.stats import Measure
from rrpolicy.common.typing import Array
from rrpolicy.common.version import __version__
from rrpolicy.comparison.attribution import Attribution
from rrpolicy.comparison.clips import Clip
from rrpolicy.comparison.divergence import Divergence, total_variation_bound
from rrpolicy.comparison.features import Features
from rrpolicy.comparison.fit import Calibration
from rrpolicy.comparison.null import NullTest
from rrpolicy.comparison.samples import Samples
from rrpolicy.comparison.tree import Tree
from rrpolicy.envs.maze import MazeGeometry

LEAST_SLOPE = 0.5  # of the labels on ρ, below which its values are said to be no log odds


@dataclass(frozen=True)
class Fit:
    """
    How well ρ explains the two models.

    :param r2_by_level: R² of ∇ρ for the score difference at noised events of both models
    :param r2_held_out: the same over the levels that sampling visits
    :param r2_steered: on the x_t of the steered base
    :param curl: share of the Jacobian of the score difference that no scalar explains
    :param null_curl: the same of equal trainings
    :param calibration: ρ as log odds
    :param lower_bound: of KL(expert‖base), by ρ
    :param agreement: the lowest correlation of two rewards of the ensemble
    :param unknown: share of the steered base's windows that neither model knows; None with too few samples
    """

    r2_by_level: dict[int, float]
    r2_held_out: float
    r2_steered: float
    curl: Measure
    null_curl: tuple[float, ...]
    calibration: Calibration
    lower_bound: float
    agreement: float
    unknown: Measure | None = None


@dataclass(frozen=True, eq=False)
class Steered:
    """
    Events from one condition.

    :param start: number of the pair whose condition it is
    :param windows: name -> (n, H, D) in environment units: base, steered at ½ and 1, expert
    """

    start: int
    windows: dict[str, Array]


@dataclass(frozen=True, eq=False)
class Findings:
    """
    The difference of two models, see :func:`rrpolicy.diff`.

    :param names: of base and expert
    :param features: names and units of their entries
    :param samples: events of both models
    :param forward: KL(expert‖base)
    :param backward: KL(base‖expert)
    :param null: their mean beside that of equal trainings
    :param seed: of everything random
    :param reward: ρ, the mean of the ensemble; None where it was left out, as are all that follow
    :param members: (K, 2N) ρ of each reward at all events, the base's first
    :param attribution: of ρ to time and feature
    :param fit: how well ρ explains the two models
    :param regions: a tree of log(1 + KL), where they differ, by what is known before planning
    :param preferences: a tree that explains ρ
    :param counterfactual: what steering makes of one start
    :param maze: drawn below windows that hold positions in it
    :param clip: a video of the counterfactual in an environment; None where none was given
    """

    names: tuple[str, str]
    features: Features
    samples: Samples
    forward: Divergence
    backward: Divergence
    null: NullTest
    seed: int
    reward: Any = None
    members: Array | None = None
    attribution: Attribution | None = None
    fit: Fit | None = None
    regions: Tree | None = None
    preferences: Tree | None = None
    counterfactual: Steered | None = None
    maze: MazeGeometry | None = None
    clip: Clip | None = None

    def with_reward(self, **found: Any) -> Self:
        """The same with what needs ρ."""
        return replace(self, **found)

    # ------------------------------------------------------------------ findings

    @property
    def total_variation(self) -> float:
        """An upper bound of the total variation, from the smaller divergence."""
        return total_variation_bound(min(self.forward.total.value, self.backward.total.value))

    @property
    def rho(self) -> Array | None:
        """(2N,) mean ρ of all events, the base's first."""
        return None if self.members is None else np.asarray(self.members.mean(axis=0))

    @property
    def verdict(self) -> str:
        """The finding in a few plain sentences."""
        kl = self.forward.total
        base, expert = self.names
        far = f"KL({expert}‖{base}) is {kl.value:.3g} nats a window (95 % {kl.low:.3g} to {kl.high:.3g})"
        if self.fit is None:
            far += f", so the total variation is at most {self.total_variation:.2f}."
        else:
            seen = self.fit.calibration.separation
            far += f"; the total variation lies between {seen.low:.2f} and {self.total_variation:.2f}."
            if not LEAST_SLOPE <= (slope := self.fit.calibration.slope) <= 1 / LEAST_SLOPE:
                far += f" The values of ρ are no log odds (slope {slope:.2g}): they order windows; KL is a bound alone."
        where = ""
        if self.attribution is not None and self.null.beyond and (carried := self.attribution.carriers()):
            shown = ", ".join(self.features.columns[i] for i in carried[:4])
            more = f" and {len(carried) - 4} more" if len(carried) > 4 else ""
            share = self.attribution.by_column()[carried].sum()
            where = f" {share:.0%} of ρ's attribution lies on {shown}{more}."
        return f"{self.null.sentence} {far}{where}"

    def passes(self, fail_above: float | None = None, require_null: float | None = None) -> list[str]:
        """
        Reasons why the comparison fails a check; empty where it passes.

        :param fail_above: nats that KL(expert‖base) must not exceed
        :param require_null: p-value that the null test must reach: the difference has to be one of equal trainings
        """
        failed, kl, p = [], self.forward.total.value, self.null.p_value
        if fail_above is not None and kl > fail_above:
            failed.append(f"KL({self.names[1]}‖{self.names[0]}) is {kl:.4g} nats, above {fail_above:g}")
        if require_null is not None and not p >= require_null:
            why = "is not known without equal trainings" if math.isnan(p) else f"is {p:.3g}, below {require_null:g}"
            failed.append(f"the p-value of the null test {why}")
        return failed

    # ------------------------------------------------------------------ entries

    def entries(self, x0: Tensor) -> Array:
        """Events as rows of all their entries in environment units, (N, H·D)."""
        windows = self.features.windows(x0)
        return windows.reshape(len(windows), -1)

    def entry_names(self) -> list[str]:
        """Names of the entries of :meth:`entries`."""
        height, width = self.features.shape
        return [self.features.name(row, column) for row in range(height) for column in range(width)]

    # ------------------------------------------------------------------ output

    def to_dict(self) -> dict[str, Any]:
        """JSON values: every number of the page."""
        levels = list(self.forward.levels)
        values: dict[str, Any] = {
            "version": __version__,
            "base": self.names[0],
            "expert": self.names[1],
            "seed": self.seed,
            "n_samples": len(self.samples),
            "verdict": self.verdict,
            "kl_expert_base": self.forward.total.columns(),
            "kl_base_expert": self.backward.total.columns(),
            "total_variation_bound": self.total_variation,
            "by_level": {
                "levels": levels,
                "kl_expert_base": [one.columns() for one in self.forward.by_level()],
                "kl_base_expert": [one.columns() for one in self.backward.by_level()],
            },
            "null": {
                "effect": self.null.effect,
                "null": list(self.null.null),
                "source": self.null.source,
                "p_value": self.null.p_value,
                "rank_p_value": self.null.rank_p_value,
                "times_null": self.null.times_null,
                "beyond": self.null.beyond,
            },
        }
        return without_nan({**values, **self._of_reward()})

    def _of_reward(self) -> dict[str, Any]:
        if self.fit is None or self.attribution is None or self.regions is None or self.preferences is None:
            return {}
        return {
            "fit": fit_values(self.fit),
            "attribution": {
                "features": list(self.features.columns),
                "rows": list(self.features.rows),
                "mean": self.attribution.mean.tolist(),
                "shares": self.attribution.by_column().tolist(),
                "carriers": [self.features.columns[i] for i in self.attribution.carriers()],
                "completeness": self.attribution.completeness,
            },
            "regions": tree_values(self.regions),
            "preferences": tree_values(self.preferences),
        }


def fit_values(fit: Fit) -> dict[str, Any]:
    """How well ρ fits as JSON values."""
    return {
        "r2_by_level": {str(level): value for level, value in fit.r2_by_level.items()},
        "r2_held_out": fit.r2_held_out,
        "r2_steered": fit.r2_steered,
        "curl": fit.curl.columns(),
        "null_curl": list(fit.null_curl),
        "lower_bound": fit.lower_bound,
        "agreement": fit.agreement,
        **({} if fit.unknown is None else {"unknown": fit.unknown.columns()}),
        "calibration": calibration_values(fit.calibration),
    }


def calibration_values(found: Calibration) -> dict[str, Any]:
    """ρ as log odds, as JSON values."""
    known = {"classifier_auroc": found.classifier_auroc, "classifier_log_loss": found.classifier_log_loss}
    return {
        "slope": found.slope,
        "intercept": found.intercept,
        "auroc": found.auroc.columns(),
        "log_loss": found.log_loss.columns(),
        "correlation": found.correlation,
        "total_variation_seen": found.separation.columns(),
        **{name: value.columns() for name, value in known.items() if value is not None},
        "bins": [{"rho": one.rho, "predicted": one.predicted, **one.observed.columns()} for one in found.bins],
    }


def tree_values(tree: Tree) -> dict[str, Any]:
    """A tree as JSON values."""
    leaves = [{"conditions": list(one.conditions), "mean": one.mean, "share": one.share} for one in tree.leaves()]
    return {"fidelity": tree.fidelity, "asked": tree.asked(), "leaves": leaves}


def without_nan(value: Any) -> Any:
    """JSON values with None for what is not a number."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_nan(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if isinstance(value, np.floating) else value
