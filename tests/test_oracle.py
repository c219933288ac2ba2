"""Extraction against the truth: for two analytic mixtures with separated modes ρ is their exact log density ratio.

Gradients alone say nothing about regions between modes, so a perfect gradient fit can rank modes wrongly; matching
values repairs that, and the failure without it is shown beside the success.
"""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.sampling import sample
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.metrics import explained_fraction, explained_when_guided
from rrpolicy.rewards.relative_reward import RelativeReward

LEVELS = (0, 1, 5, 15, 30)  # of 50
WEIGHTS = (torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
BUDGETS: dict[int, tuple[int, dict[str, Any]]] = {
    2: (1000, {"window_kwargs": {"width": 96, "n_blocks": 2}, "buffer_size": 8192, "learning_rate": 5e-3}),
    8: (1500, {"window_kwargs": {"width": 128, "n_blocks": 2}, "buffer_size": 8192}),
    64: (2500, {"buffer_size": 8192}),
}
WIDTHS = [2, *(pytest.param(width, marks=pytest.mark.slow) for width in (8, 64))]  # all show the same


@dataclass(frozen=True)
class Case:
    """A base, an expert whose modes are moved and weighted the other way round, and held-out samples of both."""

    base: GaussianMixtureModel
    expert: GaussianMixtureModel
    train: torch.Tensor
    test: torch.Tensor

    @classmethod
    @functools.cache
    def of(cls, width: int) -> "Case":
        generator = torch.Generator().manual_seed(0)
        means = torch.randn(4, width, generator=generator)
        means = 1.5 * means / means.norm(dim=1, keepdim=True)  # seven standard deviations apart and more
        moved = means + 0.3 * torch.randn(4, width, generator=generator) / width**0.5
        models = [GaussianMixtureModel(m, 0.02, w) for m, w in zip((means, moved), WEIGHTS, strict=True)]
        train, test = (torch.cat([model.sample(n, generator) for model in models]) for n in (20_000, 1500))
        return cls(*models, train, test)

    def truth(self, reward: RelativeReward, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """log density ratio and ρ of noised held-out samples."""
        x_t, t = self.noised(level)
        with torch.no_grad():
            return self.expert.log_prob(x_t, t) - self.base.log_prob(x_t, t), reward(x_t, t)

    def noised(self, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.full((len(self.test),), level)
        noise = torch.randn(self.test.shape, generator=torch.Generator().manual_seed(level))
        return self.base.process.q_sample(self.test, t, noise), t


@functools.cache
def extracted(width: int) -> RelativeReward:
    case, (steps, options) = Case.of(width), BUDGETS[width]
    return RewardExtractor(case.base, case.expert, seed=0, **options).learn(case.train, steps).reward


def pearson(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


def holds_the_contract(width: int) -> None:
    case, reward = Case.of(width), extracted(width)
    for level in LEVELS:
        exact, rho = case.truth(reward, level)
        assert pearson(exact, rho) >= 0.99, f"level {level}"
        assert float((rho - exact).mean().abs()) <= 0.1 * float(exact.std()), f"level {level}"
    x_t, t = (torch.cat(parts) for parts in zip(*map(case.noised, range(0, 50, 5)), strict=True))
    assert explained_fraction(reward, case.base, case.expert, x_t, t) >= 0.98
    explained = explained_when_guided(reward, case.base, case.expert, case.test[:500], n_sampling_steps=10)
    assert sum(explained.values()) / len(explained) >= 0.9


@pytest.mark.parametrize("width", WIDTHS)
def test_rho_is_the_log_density_ratio_at_every_level(width: int) -> None:
    holds_the_contract(width)


def test_without_value_matching_the_modes_are_ranked_wrongly() -> None:
    """The gradients fit as well, and yet ρ is not the log density ratio."""
    case, (_, options) = Case.of(2), BUDGETS[2]
    blind = RewardExtractor(case.base, case.expert, seed=0, value_coef=0.0, **options).learn(case.train, 250).reward
    x_t, t = case.noised(1)
    assert explained_fraction(blind, case.base, case.expert, x_t, t) > 0.95
    for level in (0, 1, 5):
        exact, rho = case.truth(blind, level)
        assert pearson(exact, rho) < 0.9 < 0.98 < pearson(*case.truth(extracted(2), level))


@pytest.mark.slow  # of agents: test_extractor
def test_swapping_the_models_flips_the_sign() -> None:
    case, (_, options) = Case.of(2), BUDGETS[2]
    swapped = RewardExtractor(case.expert, case.base, seed=0, **options).learn(case.train, 250).reward
    for level in LEVELS:
        assert pearson(*case.truth(swapped, level)) < -0.9


def test_identical_models_give_zero() -> None:
    case = Case.of(2)
    reward = RewardExtractor(case.base, case.base, batch_size=32, buffer_size=64, seed=0).learn(case.train, 5).reward
    for level in LEVELS:
        assert (case.truth(reward, level)[1] == 0).all()


@pytest.mark.parametrize("width", WIDTHS[:2])
def test_guided_sampling_at_scale_one_reproduces_the_expert_s_moments(width: int) -> None:
    case, reward = Case.of(width), extracted(width)
    noise = torch.randn(4000, width, generator=torch.Generator().manual_seed(0))
    levels = case.base.process.timesteps(25)

    def moments(denoiser: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            drawn = sample(denoiser, case.base.process, noise, levels, solver="dpm++")
        nearest = torch.cdist(drawn, case.expert.means).argmin(dim=1)
        shares = torch.bincount(nearest, minlength=4) / len(drawn)
        return drawn.mean(0), drawn.T.cov(), shares

    wanted = moments(case.expert.eps)
    steered = moments(guided(case.base.eps, reward, case.base.process, 1.0))
    base = moments(case.base.eps)
    for got, right, wrong, allowed in zip(steered, wanted, base, (0.06, 0.06, 0.04), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=allowed)
        assert float((got - right).norm()) < 0.25 * float((wrong - right).norm())
