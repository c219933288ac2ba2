"""The fit report: it tells a reward from that of a pair without a difference, and a rare mode does not decide it."""

import functools
from pathlib import Path

import pytest
import torch
from helpers.old_archives import ARCHIVES
from torch import Tensor, nn

from rrpolicy import zoo
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.fit_report import LEAST_R2, LEAST_RANGE, FitReport, LevelFit
from rrpolicy.rewards.measured_fit import clipped_share, measured_fit, unfitted_levels
from rrpolicy.rewards.metrics import explained_fraction, winsorized_fraction
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.targets import Targets, noised

PROCESS = DiffusionProcess(20)
NARROW = {"width": 32, "n_blocks": 1}


def model(shift: float) -> GaussianMixtureModel:
    """A Gaussian over windows (3, 2) around a point."""
    return GaussianMixtureModel(torch.full((1, 3, 2), shift), 0.1, process=PROCESS)


@functools.cache
def extracted(shift: float, seed: int = 0) -> RewardExtractor:
    """From a base and an expert that lies ``shift`` beside it; data of both, held out from others."""
    models, generator = (model(0.0), model(shift)), torch.Generator().manual_seed(0)
    data, held_out = (torch.cat([one.sample(2000, generator) for one in models]) for _ in range(2))
    options = {"window_kwargs": NARROW, "step_kwargs": NARROW, "buffer_size": 2048, "learning_rate": 5e-3}
    extractor = RewardExtractor(*models, heads=["window", "step"], seed=seed, **options)
    return extractor.learn(data, 60, log_interval=0, fit_dataset=held_out)


def test_a_reward_with_a_difference_passes() -> None:
    fit = extracted(0.6).fit_report
    assert fit is not None and fit.held_out and fit.n_events == 512
    assert fit.warnings() == ()
    assert {one.head for one in fit.levels} == {"window", "step"} and fit.map_level == 2
    assert fit.step_range is not None and fit.step_range > LEAST_RANGE
    assert all(one.r2 > LEAST_R2 for one in fit.levels if one.first_level > 0)


class Exact(nn.Module):
    """log N(x; αm, s²) - log N(x; 0, s²) of the pair ``model(0), model(0.6)``, s² = .1 α² + σ²: α m·x / s² and more."""

    def __init__(self, process: DiffusionProcess, event_shape: tuple[int, ...], pinned: Tensor, n_outputs: int) -> None:
        super().__init__()

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        drift = 0.6 * alpha
        squares = drift * x_t.flatten(1).sum(dim=1) - 6 * drift**2 / 2
        return (squares / (0.1 * alpha**2 + sigma**2))[:, None]


def test_an_exact_reward_has_the_numbers_of_theory() -> None:
    reward = RelativeReward(PROCESS, (3, 2), heads=("window",), window_kwargs={"network": Exact})
    events = torch.cat([model(shift).sample(4000, torch.Generator().manual_seed(3)) for shift in (0.0, 0.6)])
    fit = measured_fit(reward, model(0.0), model(0.6), events, True)
    # the direction is the same for every event, so differences of other events are explained, too
    found = [number for one in fit.levels for number in (one.r2, one.r2_winsorized, one.r2_permuted)]
    assert len(fit.levels) == 6 and found == pytest.approx([1.0] * 18, abs=1e-4)
    # ρ of x0 is normal about -M and M, with the variance 2M: M = 6 · .6² α² / (2 s²)
    s2 = 0.1 * float(PROCESS.alpha(0)) ** 2 + float(PROCESS.sigma(0)) ** 2
    half = 6 * 0.36 * float(PROCESS.alpha(0)) ** 2 / (2 * s2)
    spread = (2 * half * 0.1 * float(PROCESS.alpha(0)) ** 2 / s2) ** 0.5  # of clean events, which lack the noise
    assert fit.window_range == pytest.approx(2 * (half + 2.054 * spread), rel=0.03)  # 2 % beyond 2.054 deviations


def test_a_pair_without_a_difference_is_warned_of() -> None:
    with pytest.warns(RrpolicyWarning, match=r"the window head's rewards span 0.0\d* nats .* less than 0.25"):
        extractor = extracted(1e-3, seed=1)
    fit = extractor.fit_report
    assert fit is not None
    told = " ".join(fit.warnings())
    assert "window head's rewards" in told and "step head's rewards" in told
    assert fit.warnings(least_range=0.0, least_r2=-1.0) == ()


def test_identical_models_have_nothing_to_explain() -> None:
    same = RewardExtractor(model(0), model(0), window_kwargs=NARROW, batch_size=32, buffer_size=256, seed=0)
    with pytest.warns(RrpolicyWarning, match="the two models do not differ"):
        same.learn(model(0).sample(100, torch.Generator().manual_seed(0)), 2)
    assert same.fit_report is not None and same.fit_report.levels == () and same.fit_report.window_range == 0


def test_r2_is_the_explained_fraction_of_the_same_events() -> None:
    extractor = extracted(0.6)
    events = model(0.3).sample(200, torch.Generator().manual_seed(1))
    report = extractor.measure_fit(events, n_events=200)
    x0, generator = extractor._fit_events(events, 200), torch.Generator().manual_seed(1)
    pair = extractor.base, extractor.expert
    for level, fit in zip(sorted({one.first_level for one in report.levels}), report.levels, strict=False):
        t = torch.full((200,), level)
        x_t = noised(pair[0], x0, t, generator)
        assert fit.head == "window" and fit.first_level == fit.last_level == level
        assert fit.r2 == pytest.approx(explained_fraction(extractor.reward, *pair, x_t, t, "window", x0), abs=1e-5)


# ---------------------------------------------------------------------- a measure that one event cannot decide


def test_a_rare_mode_decides_r2_and_not_the_winsorized_fraction() -> None:
    """One event in two hundred: there the models hardly differ and ρ errs by a little, or differ very much."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(2000, 4, generator=generator)
    got = wanted + 0.1 * torch.randn(2000, 4, generator=generator)

    def both(got: Tensor, wanted: Tensor) -> tuple[float, float]:
        residual, total = ((got - wanted) ** 2).sum(dim=1), (wanted**2).sum(dim=1)
        return float(1 - residual.sum() / total.sum()), winsorized_fraction(residual, total)

    assert both(got, wanted) == pytest.approx((0.99, 0.986), abs=0.005)
    rare = slice(0, 10)
    far, off = wanted.clone(), got.clone()
    far[rare] *= 1000  # far off the data, where ρ stays small
    plain, bounded = both(got, far)
    assert plain < 0.01 and bounded > 0.97
    off[rare] *= 1000
    plain, bounded = both(off, wanted)
    assert plain < -1000 and bounded > 0.97
    near = 1e-4 * wanted  # a mode of its own at which the two hardly differ, and ρ is nearly right
    plain, bounded = both(near + 0.1 * wanted[torch.randperm(2000, generator=generator)], near)
    assert plain < -100_000 and -1 <= bounded < 0


def test_the_winsorized_fraction_is_bounded() -> None:
    ones, zeros = torch.ones(8), torch.zeros(8)
    assert winsorized_fraction(zeros, ones) == 1 and winsorized_fraction(ones, ones) == 0
    assert winsorized_fraction(zeros, zeros) == 1 and winsorized_fraction(ones, zeros) == -1
    assert winsorized_fraction(torch.full((8,), float("nan")), ones) == 0  # counts as far away
    assert winsorized_fraction(torch.full((8,), 1e30), torch.tensor([1e-3, 1, 1, 2, 5, 7, 8, 9e5])) >= -1


# ---------------------------------------------------------------------- what only training knows


def test_levels_without_targets() -> None:
    assert unfitted_levels(torch.tensor([0, 1, 4, 9]), 12) == ((2, 3), (5, 8), (10, 11))
    assert unfitted_levels(torch.arange(12), 12) == ()


def test_share_of_clipped_value_targets() -> None:
    reward = RelativeReward(PROCESS, (2,), heads=("window",), window_kwargs=NARROW).requires_grad_(False)
    x_t, t = torch.randn(8, 2), torch.arange(8)
    off = torch.tensor([0.0, 1.0, -1.9, 2.1, -2.1, 30.0, 0.5, 1.5])  # spreads
    spread = torch.linspace(1, 2, 20)
    targets = Targets(None, x_t, t, torch.zeros(8, 2), reward(x_t, t) + off * spread[t])
    assert clipped_share(reward, targets, spread, 2.0) == 3 / 8
    assert clipped_share(reward, Targets(None, x_t, t, torch.zeros(8, 2), None), spread, 2.0) is None


# ---------------------------------------------------------------------- where it is kept


def test_it_stays_with_the_reward(tmp_path: Path) -> None:
    extractor = extracted(0.6)
    extractor.reward.save(tmp_path / "reward", card={"seed": 3})
    loaded, card = RelativeReward.load(tmp_path / "reward"), zoo.card(tmp_path / "reward.zip")
    assert loaded.fit == extractor.fit_report == FitReport.from_dict(card["fit"]) and card["seed"] == 3
    extractor.save(tmp_path / "extractor")
    again = RewardExtractor.load(tmp_path / "extractor", base=extractor.base, expert=extractor.expert)
    assert again.fit_report == extractor.fit_report
    again.set_parameters(again.get_parameters())
    assert again.fit_report is None


def test_archives_of_before_have_none() -> None:
    assert RelativeReward.load(ARCHIVES / "reward.zip").fit is None


def test_what_was_not_held_out_says_so() -> None:
    data = model(0).sample(300, torch.Generator().manual_seed(0))
    options = {"window_kwargs": NARROW, "batch_size": 32, "buffer_size": 64, "seed": 0}
    for given, held_out in ((None, False), (data, False), (data[:100].clone(), True)):
        fit = RewardExtractor(model(0), model(0.6), **options).learn(data, 2, fit_dataset=given).fit_report
        assert fit is not None and fit.held_out is held_out
    with pytest.raises(TypeError, match="data is a str"):  # before anything is learned
        RewardExtractor(model(0), model(0.6), **options).learn(data, 10**9, fit_dataset="mine")


def test_a_hostile_report_is_refused() -> None:
    values = FitReport(10, True, (LevelFit("window", 0, 0, 0.9, 0.9, 0.0),)).to_dict()
    assert FitReport.from_dict(values) == FitReport(10, True, (LevelFit("window", 0, 0, 0.9, 0.9, 0.0),))
    for name, value in (("n_events", "x"), ("clipped", 2.0), ("extra", 1), ("levels", [{"head": "window"}])):
        with pytest.raises(ValueError, match=f"fit: {name}"):
            FitReport.from_dict({**values, name: value})


def test_the_text_tells_what_is_doubtful() -> None:
    step = LevelFit("step", 2, 2, LEAST_R2 / 2, 0.01, -0.2)
    fit = FitReport(512, False, (step,), 2, None, LEAST_RANGE / 2, None, ((3, 5), (9, 9)))
    text = str(fit)
    assert "learned from" in text and "0.125 nats" in text and "noise levels without targets: 4, the first 3" in text
    first, second = fit.warnings()
    assert "span 0.125 nats" in first and "R² 0.015" in second and "noise level 2" in second
