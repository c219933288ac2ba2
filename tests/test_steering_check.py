"""Extraction says when it does not suffice: ρ is compared at the data and where the steered base goes."""

import pytest
import torch
from helpers.mixtures import PATHS
from torch import Tensor

from rrpolicy import RewardExtractor
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.rewards.metrics import SteeringCheck, check_steering

BASE, EXPERT = (
    GaussianMixtureModel(torch.tensor([[place, 0.0]]), 0.1, torch.ones(1), PATHS["vp"].process) for place in (0.0, 2.0)
)


class LogRatio(torch.nn.Module):
    """The exact ρ, or one whose gradient is three times too large where the first entry is above a bound."""

    def __init__(self, right_below: float = float("inf")) -> None:
        super().__init__()
        self.right_below = right_below

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        known = x_t[:, :1] < self.right_below
        inputs = torch.where(known, x_t, 3 * x_t - 2 * x_t.detach())
        return EXPERT.log_prob(inputs, t) - BASE.log_prob(inputs, t)


def events(n: int = 400) -> Tensor:
    return BASE.sample(n, torch.Generator().manual_seed(0))


def test_a_reward_that_is_right_everywhere_needs_no_advice() -> None:
    check = check_steering(LogRatio(), BASE, EXPERT, events())
    assert check.recorded > 0.99 and check.steered > 0.99 and check.suffices and check.advice == ""


def test_a_reward_that_is_right_at_the_data_alone_needs_the_steered_base() -> None:
    """The sentence names both numbers and the remedy."""
    check = check_steering(LogRatio(right_below=1.0), BASE, EXPERT, events())
    assert check.steered < check.recorded - 0.2 and not check.suffices
    assert f"{check.recorded:.2f}" in check.advice and f"{check.steered:.2f}" in check.advice
    assert "refine(extractor, data, env)" in check.advice


def test_the_margin_lies_between() -> None:
    assert SteeringCheck(0.9, 0.71).suffices and not SteeringCheck(0.9, 0.69).suffices
    assert SteeringCheck(0.1, 0.3).suffices


def test_an_extractor_checks_what_it_learned() -> None:
    event = torch.tensor([[1.0, 0.0]])
    options = {"window_kwargs": {"width": 8, "n_blocks": 1}, "batch_size": 16, "buffer_size": 64}
    extractor = RewardExtractor(BASE, EXPERT, seed=0, **options).learn(event, 3, log_interval=0)
    wanted = check_steering(extractor.reward, BASE, EXPERT, event.expand(64, 2), seed=0, n_sampling_steps=3)
    assert extractor.check_steering(event, n_events=64, n_sampling_steps=3) == wanted
    assert isinstance(extractor.check_steering(n_events=8).advice, str)  # at the models' own samples
    with pytest.raises(ValueError, match="n_events is 1"):
        extractor.check_steering(event, n_events=1)
