"""Metrics of image scores against what can be counted by hand or is known exactly."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from rrpolicy.common.stats import auroc, share
from rrpolicy.diffusion import DiffusionProcess, GaussianMixtureModel
from rrpolicy.images.metrics import brightness, elbo_difference, label_means


def pairs(scores: list[float], wanted: list[int]) -> float:
    """AUROC by counting all pairs."""
    high = [score for score, flag in zip(scores, wanted, strict=True) if flag]
    low = [score for score, flag in zip(scores, wanted, strict=True) if not flag]
    return float(np.mean([[(a > b) + 0.5 * (a == b) for b in low] for a in high]))


@pytest.mark.parametrize(
    ("scores", "wanted", "area"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0.0),
        ([5, 5, 5, 5], [1, 0, 1, 0], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),
        ([1, 3, 2], [0, 1, 1], 1.0),
    ],
)
def test_auroc_of_small_cases(scores: list[float], wanted: list[int], area: float) -> None:
    assert auroc(scores, np.array(wanted, bool)).value == area == pairs(scores, wanted)


def test_auroc_counts_pairs_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores, wanted = rng.integers(0, 6, 80).astype(float), rng.integers(0, 2, 80)
    assert auroc(scores, wanted == 1).value == pytest.approx(pairs(scores.tolist(), wanted.tolist()))
    assert auroc(-scores, wanted == 1).value == pytest.approx(1 - auroc(scores, wanted == 1).value)
    assert auroc(np.exp(scores), wanted == 1) == auroc(scores, wanted == 1)  # only ranks count


def test_aurocs_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Two normals a distance apart: the area is Φ(distance / √2)."""
    truth, rng = 0.5 * (1 + math.erf(0.5)), np.random.default_rng(1)
    wanted = np.arange(120) < 60
    areas = [auroc(rng.normal(size=120) + wanted, wanted) for _ in range(400)]
    covered = np.mean([area.low <= truth <= area.high for area in areas])
    assert np.mean([area.value for area in areas]) == pytest.approx(truth, abs=0.01)
    assert 0.91 <= covered <= 0.98 and areas[0].n == 120


def test_a_single_image_of_a_kind_leaves_the_area_open() -> None:
    area = auroc([0.0, 1.0], np.array([False, True]))
    assert (area.value, area.low, area.high) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "wanted", "fault"),
    [
        ([1.0, 2.0], [True], r"scores and wanted are \(2,\) and bool \(1,\)"),
        ([1.0, 2.0], [0, 1], r"bool|int64"),
        ([1.0, np.nan], [True, False], "NaN or inf"),
        ([1.0, 2.0], [True, True], "wanted is True everywhere"),
        ([1.0, 2.0], [False, False], "wanted is False everywhere"),
    ],
)
def test_auroc_refuses(scores: Any, wanted: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        auroc(scores, np.array(wanted))


def test_shares_have_wilsons_interval() -> None:
    rate = share(np.arange(10) < 2)  # Wilson 1927: 2 of 10
    assert (rate.value, rate.n) == (0.2, 10)
    assert (rate.low, rate.high) == pytest.approx((0.0567, 0.5098), abs=1e-4)
    none, every = share(np.zeros(100, bool)), share(np.ones(100, bool))
    assert none.low == 0.0 and none.high == pytest.approx(0.0370, abs=1e-4)
    assert every.high == 1.0 and every.low == pytest.approx(1 - none.high)
    for flags in ([], [0, 1], [[True]]):
        with pytest.raises(ValueError, match="wanted booleans"):
            share(np.array(flags))


def test_means_per_label() -> None:
    means = label_means([1.0, 3.0, 5.0], [2, 2, 0], ["a", "b", "c"])
    assert list(means) == ["a", "c"] and means["c"].value == 2.0 and means["a"].n == 1
    assert means["c"].high - means["c"].value == pytest.approx(1.96 * math.sqrt(2) / math.sqrt(2), abs=1e-3)
    assert means["a"].low == -math.inf
    with pytest.raises(ValueError, match="wanted"):
        label_means([1.0], [0, 1], ["a", "b"])


def test_brightness_is_the_mean_pixel() -> None:
    images = np.zeros((2, 2, 2, 1), np.uint8)
    images[1, 0] = 255
    np.testing.assert_allclose(brightness(images), [0.0, 0.5])
    with pytest.raises(ValueError, match="images are float64"):
        brightness(images / 255)


def test_the_elbo_difference_is_the_log_density_ratio() -> None:
    process = DiffusionProcess(40, "cosine", "eps")
    means = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.5]]])
    base = GaussianMixtureModel(means, 0.3, process=process)
    expert = GaussianMixtureModel(means, 0.3, weights=torch.tensor([0.9, 0.1]), process=process)
    events = base.sample(200, torch.Generator().manual_seed(0))
    t = torch.zeros(200, dtype=torch.int64)
    x_t = process.levels(events, t)[0] * events
    exact = (expert.log_prob(x_t, t) - base.log_prob(x_t, t)).numpy()
    estimate = elbo_difference(base, expert, events, n_draws=64, seed=1)
    assert estimate.shape == (200,) and np.corrcoef(estimate, exact)[0, 1] > 0.95
    assert abs(np.mean(estimate - exact)) < 0.1
