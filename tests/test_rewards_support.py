"""The support of two models: their own samples are known, what neither makes is flagged."""

import pytest
import torch

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.rewards import Support


def test_own_samples_are_known_and_others_are_flagged() -> None:
    base, expert = (GaussianMixtureModel(torch.tensor([[shift] * 8]), 0.02) for shift in (-1.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    support = Support.fit(base, expert, base.sample(500, generator), expert.sample(500, generator))
    for model in (base, expert):
        assert support.unknown(model.sample(1000, generator)).mean() < 0.05
    for far in (torch.zeros(100, 8), torch.full((100, 8), 3.0), torch.randn(100, 8, generator=generator)):
        assert support.unknown(far).mean() > 0.95
    scores = [float(support.score(torch.full((1, 8), 1.0 + off))[0]) for off in (0.0, 0.5, 1.0)]
    assert scores == sorted(scores) and scores[0] < 1 < scores[2]


def test_too_few_samples_and_other_quantiles_are_refused() -> None:
    model, x0 = GaussianMixtureModel(torch.zeros(1, 2)), torch.zeros(200, 2)
    with pytest.raises(ValueError, match="there are 200 and 50 samples, wanted at least 100 of each"):
        Support.fit(model, model, x0, x0[:50])
    with pytest.raises(ValueError, match="quantile is 1, it must lie between 0 and 1"):
        Support.fit(model, model, x0, x0, quantile=1)
