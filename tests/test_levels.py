"""ρ of clean events does not depend on how finely a model divides its noise: 20 to 1000 levels, of both schedules."""

from typing import Any

import pytest
import torch

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.matching import score_scale
from rrpolicy.rewards.targets import draw_levels

CASES = [(20, "cosine"), (50, "cosine"), (50, "linear"), (100, "cosine"), (1000, "cosine"), (1000, "linear")]
WEIGHTS = (torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4]))


@pytest.mark.parametrize(("n_levels", "schedule"), CASES)
def test_units_are_those_of_each_level(n_levels: int, schedule: str) -> None:
    """Of two shifted Gaussians the score difference is a constant: α Δm / (α² v + σ²)."""
    process, v = DiffusionProcess(n_levels, schedule, "eps"), 0.02  # type: ignore[arg-type]
    shift = torch.tensor([0.3, -0.1])
    models = [GaussianMixtureModel(mean[None], v, torch.ones(1), process) for mean in (torch.zeros(2), shift)]
    data = torch.cat([model.sample(2000, torch.Generator().manual_seed(0)) for model in models])
    reward = RewardExtractor(*models, window_kwargs={"width": 8}, value_coef=0.0, seed=0).learn(data, 1).reward
    levels = torch.arange(n_levels)
    alpha, sigma = process.alpha(levels), process.sigma(levels)
    exact = alpha * shift.square().mean().sqrt() / (alpha**2 * v + sigma**2)
    error = (reward.gradient_scale / exact).log().abs()
    cleanest = error[:1] if n_levels <= 50 else error[: n_levels // 50]
    assert float(error[n_levels // 10 :].max()) < 1.0 and float(error.median()) < 0.1
    # a factor of 5; if all near indices were neighbours, one of 40 at 1000 levels
    assert float(cleanest.max()) < 1.6


SAME_MODES = torch.tensor([[1.2, 0.0], [-0.6, 1.0], [-0.6, -1.0]])
SHARES = (torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.1, 0.3, 0.6]))


def modes_that_differ_in_weight(n_levels: int, schedule: str, total_timesteps: int) -> tuple[float, float]:
    """Pearson's correlation with the log density ratio, ±1.8 nats and 0, at t = 0, and the largest error of a mode."""
    process, generator = DiffusionProcess(n_levels, schedule, "eps"), torch.Generator().manual_seed(0)
    models = [GaussianMixtureModel(SAME_MODES, 0.02, weights, process) for weights in SHARES]
    data = torch.cat([model.sample(2000, generator) for model in models])
    options = {"window_kwargs": {"width": 128, "n_blocks": 2}, "buffer_size": 4096, "learning_rate": 4e-3}
    extractor = RewardExtractor(*models, heads=["window"], seed=0, **options)
    reward = extractor.learn(data, total_timesteps, log_interval=0).reward
    x, t = process.alpha(0) * data, torch.zeros(len(data), dtype=torch.int64)
    with torch.no_grad():
        rho, exact = reward(x, t), models[1].log_prob(x, t) - models[0].log_prob(x, t)
    mode = torch.cdist(data, SAME_MODES).argmin(dim=1)
    error = max(float((rho - exact)[mode == one].mean().abs()) for one in range(3))
    return float(torch.corrcoef(torch.stack([rho, exact]))[0, 1]), error


@pytest.mark.slow  # a fit; the units it needs are computed in test_units_stay_those_of_score_differences_where...
def test_modes_apart_that_differ_in_weight_alone_are_told_apart() -> None:
    """The gradient of ρ vanishes at clean events: in its units ρ was a constant there, at any number of levels."""
    correlation, error = modes_that_differ_in_weight(1000, "linear", 400)
    assert correlation >= 0.98 and error < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("n_levels", "schedule"), [*CASES, (20, "linear")])
def test_modes_apart_are_told_apart_at_any_number_of_levels(n_levels: int, schedule: str) -> None:
    correlation, error = modes_that_differ_in_weight(n_levels, schedule, 1500)
    assert correlation >= 0.99 and error < 0.5


def test_units_stay_those_of_score_differences_where_there_are_any() -> None:
    """Published recipes learn as before: no unit changes unless a gradient vanishes."""
    process = DiffusionProcess(20)
    levels = torch.arange(20)
    spread, rms = torch.full((20,), 2.0), torch.full((20,), 0.2) * process.sigma(levels)
    torch.testing.assert_close(score_scale(rms, spread, process, 4), torch.full((20,), 0.2))
    assert torch.equal(score_scale(rms, None, process, 4), rms / process.sigma(levels))
    rms[0] = 1e-8
    clean = process.alpha(levels) > process.sigma(levels)
    torch.testing.assert_close(score_scale(rms, spread, process, 4), torch.where(clean, 1.0, 0.2))
    assert (score_scale(torch.zeros(20), spread, process, 4) == 0).all()  # one model, nothing to learn


def test_of_many_levels_the_cleanest_are_drawn_often_enough() -> None:
    drawn = draw_levels(1000, 100_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=1000) / 100_000
    assert len(counts) == 1000 and 0.06 < float(counts[:20].sum()) < 0.08  # a fiftieth, and a twentieth beside it
    torch.testing.assert_close(counts[20:].mean(), torch.tensor(0.95 / 1000), rtol=0.01, atol=0)
    generator, other = (torch.Generator().manual_seed(1) for _ in range(2))
    few = draw_levels(50, 1000, generator)
    assert torch.equal(few, torch.randint(50, (1000,), generator=other))  # uniform, and nothing else is drawn
    assert torch.equal(torch.randint(9, (5,), generator=generator), torch.randint(9, (5,), generator=other))


def agreement(n_levels: int, schedule: str, total_timesteps: int, **options: Any) -> tuple[float, float]:
    """Pearson's correlation and slope of ρ of clean samples with their log density ratio, for two mixtures."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 2, generator=generator)
    means = 1.5 * means / means.norm(dim=1, keepdim=True)
    moved = means + 0.3 * torch.randn(4, 2, generator=generator) / 2**0.5
    process = DiffusionProcess(n_levels, schedule, "eps")  # type: ignore[arg-type]
    models = [GaussianMixtureModel(m, 0.02, w, process) for m, w in zip((means, moved), WEIGHTS, strict=True)]
    samples = torch.cat([model.sample(1500, generator) for model in models])
    extractor = RewardExtractor(*models, heads=["window"], seed=0, **options)
    reward = extractor.learn(None, total_timesteps, log_interval=0).reward
    x, t = process.alpha(0) * samples, torch.zeros(len(samples), dtype=torch.int64)
    with torch.no_grad():
        rho, exact = reward(x, t), models[1].log_prob(x, t) - models[0].log_prob(x, t)
    return float(torch.corrcoef(torch.stack([rho, exact]))[0, 1]), float(
        torch.cov(torch.stack([rho, exact]))[0, 1] / exact.var()
    )


@pytest.mark.slow
def test_a_thousand_levels_are_learned_as_few_are() -> None:
    network = {"width": 128, "n_blocks": 2}
    correlation, slope = agreement(1000, "cosine", 500, window_kwargs=network, learning_rate=3e-3)
    assert correlation >= 0.99 and 0.8 < slope < 1.25


@pytest.mark.slow
@pytest.mark.parametrize("value_units", [False, True])
@pytest.mark.parametrize(("n_levels", "schedule"), [*CASES, (20, "linear")])
def test_clean_events_are_scored_alike(n_levels: int, schedule: str, value_units: bool) -> None:
    correlation, slope = agreement(n_levels, schedule, 1500, value_units=value_units)
    assert correlation >= 0.99 and 0.85 < slope < 1.15
