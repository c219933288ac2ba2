"""The numbers of a comparison against closed forms: divergences, null test, trees, attribution, curl, calibration."""

import math

import numpy as np
import pytest
import torch

from rrpolicy.common.stats import clustered_mean
from rrpolicy.comparison import NullTest, Tree, attribute, calibration, curl_share, divergence, total_variation_bound
from rrpolicy.comparison.divergence import compared_levels
from rrpolicy.comparison.null import student_tail
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess

VARIANCE = 0.2


def gaussians(width: int, process: DiffusionProcess, shift: float = 0.6) -> tuple[GaussianMixtureModel, ...]:
    """Two Gaussians of one variance, a distance apart: KL is shift² / (2 variance) in either direction."""
    moved = torch.zeros(1, width)
    moved[0, 0] = shift
    return tuple(GaussianMixtureModel(mean, VARIANCE, process=process) for mean in (torch.zeros(1, width), moved))


@pytest.mark.parametrize("process", [DiffusionProcess(20), DiffusionProcess(50, "linear"), DiffusionProcess(1000)])
@pytest.mark.parametrize("width", [2, 32])
def test_the_divergence_of_gaussians_is_the_closed_form(process: DiffusionProcess, width: int) -> None:
    base, expert = gaussians(width, process)
    exact = 0.6**2 / (2 * VARIANCE)
    for first, second in ((base, expert), (expert, base)):
        found = divergence(first, second, first.sample(64, torch.Generator().manual_seed(0)))
        assert found.total.value == pytest.approx(exact, rel=0.02)  # the scores differ alike everywhere: no spread
        assert found.entries[0] == pytest.approx(found.total.value) and np.abs(found.entries[1:]).max() < 1e-6


def test_the_divergence_of_mixtures_lies_in_its_interval() -> None:
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(3, 4, generator=generator)
    base = GaussianMixtureModel(means, 0.1, torch.tensor([0.6, 0.3, 0.1]))
    expert = GaussianMixtureModel(means + 0.2, 0.1, torch.tensor([0.1, 0.3, 0.6]))
    x0, cleanest = expert.sample(20_000, generator), torch.zeros(20_000, dtype=torch.int64)
    ratio = expert.log_prob(x0, cleanest) - base.log_prob(x0, cleanest)
    found = divergence(expert, base, x0[:2000]).total
    assert found.low < float(ratio.mean()) * 1.02 and float(ratio.mean()) * 0.98 < found.high
    assert found.value == pytest.approx(float(ratio.mean()), rel=0.05)


def test_one_model_is_no_distance_from_itself() -> None:
    base, _ = gaussians(3, DiffusionProcess(20))
    found = divergence(base, base, torch.zeros(8, 3))
    assert (found.parts == 0).all() and found.total.value == 0


def test_levels_are_all_or_spread_over_the_signal() -> None:
    assert compared_levels(DiffusionProcess(50)) == tuple(range(50))
    levels = compared_levels(DiffusionProcess(1000), 40)
    assert len(levels) <= 40 and (levels[0], levels[-1]) == (0, 999)
    with pytest.raises(ValueError, match="max_levels is 1, wanted at least 2"):
        compared_levels(DiffusionProcess(50), 1)


def test_events_of_another_shape_are_refused() -> None:
    base, expert = gaussians(3, DiffusionProcess(20))
    with pytest.raises(ValueError, match=r"x0 has shape \(4, 2\), wanted \(N, 3\)"):
        divergence(base, expert, torch.zeros(4, 2))


def test_the_bound_of_total_variation_holds_and_is_the_smaller_one() -> None:
    assert total_variation_bound(0) == 0 and total_variation_bound(1000) == 1
    assert total_variation_bound(0.02) == pytest.approx(0.1)  # Pinsker
    assert total_variation_bound(3) == pytest.approx(math.sqrt(1 - math.exp(-3)))
    for shift in (0.1, 1.0, 3.0):  # of unit Gaussians the total variation is 2 Φ(shift / 2) - 1
        exact = math.erf(shift / 2 / math.sqrt(2))
        assert exact <= total_variation_bound(shift**2 / 2)


def test_groups_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(20), 50)
    values = rng.normal(size=20)[episodes]
    alone, together = clustered_mean(values), clustered_mean(values, episodes)
    assert together.high - together.low > 4 * (alone.high - alone.low)
    assert alone.value == together.value == pytest.approx(values.mean())
    with pytest.raises(ValueError, match=r"groups has shape \(2,\), wanted \(1000,\)"):
        clustered_mean(values, np.zeros(2))


@pytest.mark.parametrize(("degrees", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (10, 2.22814), (31, 2.03951)])
def test_tails_of_student_s_t_are_those_of_the_tables(degrees: int, t: float) -> None:
    assert student_tail(t, degrees) == pytest.approx(0.025, rel=1e-4)
    assert student_tail(-t, degrees) == pytest.approx(0.975, rel=1e-4)
    assert student_tail(0.0, degrees) == pytest.approx(0.5)


def test_the_null_test_knows_equal_trainings_from_others() -> None:
    null = (0.010, 0.012, 0.009, 0.011)
    assert NullTest(0.2, null).p_value < 0.001 and NullTest(0.2, null).beyond
    assert NullTest(0.2, null).times_null == pytest.approx(0.2 / 0.0105)
    inside = NullTest(0.0105, null)
    assert inside.p_value > 0.3 and not inside.beyond and "no difference beyond" in inside.sentence
    assert NullTest(0.0, null).p_value == 1 and "are one" in NullTest(0.0, null).sentence
    assert NullTest(0.2, (0.01, 0.02)).p_value == pytest.approx(1 / 3)  # too few for more than ranks
    assert math.isnan(NullTest(0.2, ()).p_value) and not NullTest(0.2, ()).beyond
    with pytest.raises(ValueError, match="wanted finite numbers from 0 on"):
        NullTest(math.nan, null)


def test_p_values_under_the_null_are_uniform() -> None:
    draws = np.exp(0.5 * np.random.default_rng(0).normal(size=(2000, 6)))
    p = np.array([NullTest(float(row[0]), tuple(row[1:])).p_value for row in draws])
    assert [(p < level).mean() for level in (0.05, 0.5)] == pytest.approx([0.05, 0.5], abs=0.03)
    assert (p < 0.01).mean() <= 0.02


def test_a_tree_finds_a_planted_region() -> None:
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, (2000, 5))
    inside = (features[:, 3] > 0.5) & (features[:, 1] <= -0.2)
    tree = Tree.fit(features, 2.0 * inside + 0.05 * rng.normal(size=2000), [f"f{i}" for i in range(5)])
    best = tree.leaves()[0]
    assert set(tree.asked()) == {"f3", "f1"} and tree.fidelity > 0.95
    assert best.mean == pytest.approx(2, abs=0.1) and best.share == pytest.approx(inside.mean(), abs=0.04)
    assert [condition.split(" ")[:2] for condition in sorted(best.conditions)] == [["f1", "≤"], ["f3", ">"]]
    assert np.corrcoef(tree.predict(features), inside)[0, 1] > 0.95


def test_a_tree_of_noise_explains_nothing() -> None:
    rng = np.random.default_rng(0)
    tree = Tree.fit(rng.normal(size=(400, 3)), rng.normal(size=400), "abc")
    assert tree.fidelity < 0.1
    assert Tree.fit(rng.normal(size=(40, 3)), np.ones(40), "abc").leaves()[0].conditions == ()
    with pytest.raises(ValueError, match="do not fit together"):
        Tree.fit(np.zeros((4, 2)), np.zeros(5), "ab")


def test_attribution_sums_to_rho_and_finds_the_entry() -> None:
    process, generator = DiffusionProcess(20), torch.Generator().manual_seed(0)
    base, expert = torch.randn(2, 50, 3, 4, generator=generator)
    pinned = torch.zeros(3, 4, dtype=torch.bool)
    pinned[0, 2:] = True
    expert = torch.where(pinned, base, expert)

    def rho(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (x_t[:, 1, 3] * 2).sin() * x_t[:, 2, 0]

    found = attribute(rho, process, base, expert, pinned)
    assert found.completeness < 1e-4
    everything = np.abs(found.values).sum(axis=0)
    assert everything[1, 3] + everything[2, 0] == pytest.approx(everything.sum()) and (everything[pinned] == 0).all()
    assert set(found.carriers()) <= {0, 3} and found.by_column().sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="of the same conditions"):
        attribute(rho, process, base, expert + 1, pinned)


class Linear:
    """A score model whose noise prediction is a linear function."""

    process, event_shape = DiffusionProcess(20), (4,)

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def eps(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x_t @ self.matrix.T

    def fingerprint(self) -> str:
        return "linear"


def test_curl_is_the_antisymmetric_share_of_the_jacobian() -> None:
    x0, zero = torch.randn(200, 4), Linear(torch.zeros(4, 4))
    matrix = torch.randn(4, 4)
    symmetric, rotation = matrix + matrix.T, matrix - matrix.T
    assert curl_share(zero, Linear(symmetric), x0).value < 0.03
    assert curl_share(zero, Linear(rotation), x0).value > 0.97
    exact = float((rotation / 2).square().sum() / matrix.square().sum())
    mixed = curl_share(zero, Linear(matrix), x0)
    assert mixed.low - 0.03 < exact < mixed.high + 0.03
    assert math.isnan(curl_share(zero, zero, x0).value)


def test_exact_log_odds_are_calibrated_and_doubled_ones_are_not() -> None:
    base, expert = gaussians(2, DiffusionProcess(100), 0.8)
    generator = torch.Generator().manual_seed(0)
    t = torch.zeros(3000, dtype=torch.int64)
    rho = [
        (expert.log_prob(x, t) - base.log_prob(x, t)).numpy()
        for x in (m.sample(3000, generator) for m in (base, expert))
    ]
    right, doubled = calibration(*rho, *rho), calibration(*(2 * one for one in rho))
    assert right.slope == pytest.approx(1, abs=0.1) and right.intercept == pytest.approx(0, abs=0.1)
    assert doubled.slope == pytest.approx(0.5, abs=0.05) and doubled.log_loss.value > right.log_loss.value
    assert right.correlation == pytest.approx(1) and doubled.classifier_auroc is None
    truth = math.erf(0.8 / VARIANCE**0.5 / 2 / math.sqrt(2))
    assert right.separation.low <= truth <= right.separation.high + 0.02
    inside = [one.observed.low <= one.predicted <= one.observed.high for one in right.bins]
    assert sum(inside) >= len(inside) - 2
