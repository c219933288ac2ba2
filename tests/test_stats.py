"""Statistics against what is known exactly or can be counted by hand."""

import math

import numpy as np
import pytest

from rrpolicy.common.stats import (
    Measure,
    bootstrap_mean,
    bootstrap_statistic,
    hierarchical_mean,
    mean_difference,
    mean_ratio,
    median_ratio,
    normal_mean,
    share,
    student_mean,
    student_quantile,
    student_ratio,
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


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (5, 2.5706), (30, 2.0423)])
def test_student_s_quantiles_are_those_of_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


def test_one_degree_of_freedom_is_cauchy_s_and_many_are_the_normal_distribution() -> None:
    assert student_quantile(1) == pytest.approx(math.tan(0.475 * math.pi))
    assert student_quantile(10_000) == pytest.approx(Z, abs=3e-4)
    with pytest.raises(ValueError, match="degrees of freedom must be at least 1, got 0"):
        student_quantile(0)


@pytest.mark.parametrize("n_seeds", [3, 6])
def test_a_few_seeds_hold_the_truth_as_often_as_they_say(n_seeds: int) -> None:
    """Where the range of three numbers holds it in 1 - 2/2^3 = 75 % of cases."""
    samples = np.random.default_rng(1).normal(2.0, 3.0, (3000, n_seeds))
    found = [student_mean(sample) for sample in samples]
    assert np.mean([one.low <= 2 <= one.high for one in found]) == pytest.approx(0.95, abs=0.012)
    if n_seeds == 3:
        covered = (samples.min(axis=1) <= 2) & (samples.max(axis=1) >= 2)
        assert covered.mean() == pytest.approx(0.75, abs=0.025)


def test_student_s_interval_of_numbers_counted_by_hand() -> None:
    half = student_quantile(2) * 1 / math.sqrt(3)
    assert student_mean([1, 2, 3]) == pytest.approx(Measure(2, 2 - half, 2 + half, 3))
    assert student_mean([5.0]) == Measure(5.0, -math.inf, math.inf, 1)


def test_a_ratio_of_means_is_not_moved_by_a_small_denominator_as_the_mean_of_ratios_is() -> None:
    above, below = np.array([9.0, 9.0, 2.0]), np.array([10.0, 10.0, 1.0])
    found = student_ratio(above, below)
    assert found.value == pytest.approx(20 / 21) and np.mean(above / below) == pytest.approx(3.8 / 3)
    assert student_ratio(0.9 * below, below) == pytest.approx(Measure(0.9, 0.9, 0.9, 3))
    assert np.isnan(student_ratio(above, -below).value)
    with pytest.raises(ValueError, match="first and second must be equally long, got 3 and 2"):
        student_ratio(above, below[:2])
    rng, covered = np.random.default_rng(2), []
    for _ in range(2000):
        gap = rng.normal(50, 4, 6)
        one = student_ratio(0.8 * gap + rng.normal(0, 3, 6), gap)
        covered.append(one.low <= 0.8 <= one.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_the_hierarchical_bootstrap_agrees_with_resampling_the_episodes_themselves() -> None:
    """Its variance is that of two stages: (n - 1)/n of the seeds' over n, and the mean one of the episodes' over n."""
    rng, n = np.random.default_rng(3), 6
    episodes = rng.normal(rng.normal(0, 2, (n, 1)), 8, (n, 64))
    found = hierarchical_mean([normal_mean(one) for one in episodes], n_resamples=20_000)
    drawn = [np.mean([rng.choice(episodes[seed], 64).mean() for seed in rng.integers(n, size=n)]) for _ in range(4000)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found.value == pytest.approx(episodes.mean()) and found.n == n
    assert found.low == pytest.approx(low, abs=0.12) and found.high == pytest.approx(high, abs=0.12)
    within = np.mean([one.var(ddof=1) / 64 for one in episodes])
    half = Z * math.sqrt((episodes.mean(axis=1).var() + within) / n)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.04)
    exact = hierarchical_mean([Measure(1.0, 1.0, 1.0, 64)] * 3)
    assert (exact.low, exact.high) == (1.0, 1.0)
