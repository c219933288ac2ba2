"""The analytic mixture, on which all other oracles rest, against autograd, quadrature and its own samples."""

import pytest
import torch

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel


@pytest.fixture
def mixture() -> GaussianMixtureModel:
    return GaussianMixtureModel(torch.randn(3, 4, 2), 0.2, torch.tensor([1.0, 2.0, 3.0]))


def test_it_is_a_score_model(mixture: GaussianMixtureModel) -> None:
    assert isinstance(mixture, ScoreModel)
    assert mixture.event_shape == (4, 2) and mixture.process == DiffusionProcess()


def test_eps_is_the_gradient_of_the_log_density(mixture: GaussianMixtureModel) -> None:
    t = torch.tensor([0, 5, 20, 49])
    x_t = torch.randn(4, 4, 2).requires_grad_(True)
    (score,) = torch.autograd.grad(mixture.log_prob(x_t, t).sum(), x_t)
    eps = mixture.eps(x_t.detach(), t)
    torch.testing.assert_close(mixture.process.score_from_eps(t, eps), score, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", [0, 10, 49])
def test_the_density_integrates_to_one(t: int) -> None:
    mixture = GaussianMixtureModel(torch.tensor([[-1.0], [2.0]]), 0.1, torch.tensor([0.3, 0.7]))
    x = torch.linspace(-8, 8, 4001)[:, None]
    density = mixture.log_prob(x, torch.full((4001,), t)).exp()
    assert float(torch.trapezoid(density, x[:, 0])) == pytest.approx(1.0, abs=1e-4)


def test_samples_have_the_mixture_s_moments() -> None:
    mixture = GaussianMixtureModel(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), 0.1, torch.tensor([1.0, 3.0]))
    samples = mixture.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), torch.tensor([1.25, 0.75]), rtol=0, atol=0.03)
    covariance = 0.1 * torch.eye(2) + 0.25 * 0.75 * torch.tensor([[9.0, 3.0], [3.0, 1.0]])
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0, atol=0.05)


def test_noised_samples_follow_the_noised_density(mixture: GaussianMixtureModel) -> None:
    """The score of any density integrates to zero under it."""
    x0 = mixture.sample(20_000, torch.Generator().manual_seed(0))
    t = torch.full((20_000,), 15)
    eps = mixture.eps(mixture.process.q_sample(x0, t, torch.randn(x0.shape)), t)
    assert float(eps.mean(0).abs().max()) < 0.03


def test_the_fingerprint_tells_shape_and_process() -> None:
    one, same = (GaussianMixtureModel(torch.zeros(1, 2) + shift) for shift in (0.0, 1.0))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != GaussianMixtureModel(torch.zeros(1, 3)).fingerprint()
    assert one.fingerprint() != GaussianMixtureModel(torch.zeros(1, 2), process=DiffusionProcess(20)).fingerprint()


def test_wrong_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="variance is 0, it must be positive"):
        GaussianMixtureModel(torch.zeros(1, 2), 0)
    for weights in (torch.ones(2), torch.tensor([1.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match=r"weights is .*, wanted 3 positive numbers"):
            GaussianMixtureModel(torch.zeros(3, 2), weights=weights)
