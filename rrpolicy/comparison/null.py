"""Whether two models differ by more than two trainings of one model do.

Under the null hypothesis the expert is one more training of the base, so its divergence from the base is drawn as those
of the equal trainings are. Logarithms of divergences are taken as normal: a prediction interval of Student's t for one
more draw gives the p-value, beside the rank among the equal trainings, which assumes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALARM = 0.01  # p-value below which the difference counts as more than that of equal trainings
N_NEEDED = 3  # equal trainings for a p-value of Student's t; with fewer, ranks alone
NOTHING_BEYOND = "no difference beyond what two trainings of one model show"


@dataclass(frozen=True)
class NullTest:
    """
    The divergence of two models beside those of equal trainings.

    :param effect: nats, mean of both directions
    :param null: nats of each equal training (K,), measured in the same manner; empty where there are none
    :param source: where the equal trainings come from
    """

    effect: float
    null: tuple[float, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not all(math.isfinite(one) and one >= 0 for one in (self.effect, *self.null)):
            raise ValueError(f"divergences are {self.effect} and {self.null}, wanted finite numbers from 0 on")

    @property
    def p_value(self) -> float:
        """How likely one more equal training is at least as far away; NaN without equal trainings."""
        n = len(self.null)
        if not n:
            return float("nan")
        if self.effect == 0:
            return 1.0
        logs = np.log([one for one in self.null if one > 0])
        spread = float(logs.std(ddof=1)) if len(logs) == n >= N_NEEDED else 0.0
        if spread == 0:
            return self.rank_p_value
        t = (math.log(self.effect) - float(logs.mean())) / (spread * math.sqrt(1 + 1 / n))
        return student_tail(t, n - 1)

    @property
    def rank_p_value(self) -> float:
        """(1 + number of equal trainings at least as far away) / (1 + K), exact for any distribution."""
        n = len(self.null)
        return (1 + sum(one >= self.effect for one in self.null)) / (1 + n) if n else float("nan")

    @property
    def times_null(self) -> float:
        """The effect in units of the null's median; NaN where that is 0 or unknown."""
        middle = float(np.median(self.null)) if self.null else 0.0
        return self.effect / middle if middle > 0 else float("nan")

    @property
    def beyond(self) -> bool:
        """Whether the difference is more than that of equal trainings, at the level :data:`ALARM`."""
        return self.p_value < ALARM or (self.effect > 0 and len(self.null) > 0 and max(self.null) == 0)

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        if self.effect == 0:
            return "The two models are one: their scores are equal at every sample."
        if not self.null:
            return "There are no equal trainings, so it is not known whether two trainings of one model differ as much."
        if not self.beyond:
            return f"There is {NOTHING_BEYOND} (p = {self.p_value:.2g})."
        times = "" if math.isnan(self.times_null) else f", {self.times_null:.3g} times as much"
        shown = "p < 0.0001" if self.p_value < 1e-4 else f"p = {self.p_value:.2g}"
        return f"The two models differ by more than two trainings of one model do{times} ({shown})."


def null_test(effect: float, null: Sequence[float], source: str = "") -> NullTest:
    """A `NullTest` of plain numbers."""
    return NullTest(float(effect), tuple(float(one) for one in null), source)


def student_tail(t: float, degrees: int) -> float:
    """
    P(T > t) of Student's t with whole degrees of freedom (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).

    :param degrees: at least 1
    """
    if degrees < 1:
        raise ValueError(f"degrees is {degrees}, wanted at least 1")
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd, term, total = degrees % 2, 1.0, 0.0
    for k in range(degrees // 2):
        if k:
            term *= cosine**2 * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
        total += term
    centre = 2 / math.pi * (angle + sine * cosine * total) if odd else sine * total
    return min(max((1 - centre) / 2, 0.0), 1.0)
