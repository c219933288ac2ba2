"""Statistics against what is known exactly or can be counted by hand."""

import math

import numpy as np
import pytest

from rrpolicy.common.stats import (
    Measure,
    bootstrap_mean,
    bootstrap_statistic,
    mean_difference,
    mean_ratio,
    median_ratio,
    normal_mean,
    share,
    wilson_interval,
)

Z = 1.959963984540054


def test_a_measure_is_a_row_s_numbers() -> None:
    assert Measure(1.0, 0.5, 1.5, 4).columns() == {"mean": 1.0, "ci_low": 0.5, "ci_high": 1.5, "n": 4}


def test_wilsons_interval_solves_its_equation() -> None:
    """Its ends are the rates p that are exactly Z standard errors away from the one seen."""
    for p in wilson_interval(7, 20):
        assert abs(7 / 20 - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / 20))
    assert share(np.array([True] * 7 + [False] * 13)) == Measure(0.35, *wilson_interval(7, 20), 20)


def test_intervals_of_means_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(2.0, 3.0, (300, 40))
    for interval in (normal_mean, bootstrap_mean):
        covered = np.mean([found.low <= 2.0 <= found.high for found in map(interval, samples)])
        assert 0.90 <= covered <= 0.98
    assert normal_mean(np.array([5.0])) == Measure(5.0, -math.inf, math.inf, 1)
    with pytest.raises(ValueError, match="values must be finite numbers"):
        bootstrap_mean([1.0, math.nan])


def test_any_statistic_has_an_interval_of_its_own_values() -> None:
    values = np.arange(101.0)
    median = bootstrap_statistic(values)
    assert median.value == 50 and 30 < median.low < 50 < median.high < 70 and median.n == 101
    assert bootstrap_statistic(values, np.max).high == 100
    assert bootstrap_statistic(values, seed=1) != median == bootstrap_statistic(values)


def test_differences_and_ratios_are_taken_pair_by_pair() -> None:
    second = np.random.default_rng(0).uniform(1, 100, 30)
    assert mean_difference(second + 2, second) == pytest.approx(Measure(2.0, 2.0, 2.0, 30))
    assert mean_ratio(0.9 * second, second) == pytest.approx(Measure(0.9, 0.9, 0.9, 30))
    unpaired = median_ratio(0.9 * second, second[:20])
    assert unpaired.low < unpaired.value < unpaired.high and unpaired.n == 20
    alike = mean_difference(np.ones(48, bool), np.ones(48, bool), rate=True)
    assert (alike.low, alike.high) == pytest.approx((-wilson_interval(0, 48)[1], wilson_interval(0, 48)[1]))
    assert np.isnan(mean_ratio(second, np.zeros(30)).value)
