"""The posterior of a reward's last layer: exact linear regressions, coverage where ρ is known, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import NARROW, make_agent
from torch import Tensor, nn

from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward
from rrpolicy.common.archive import write_archive
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards import Ensemble, LaplaceReward, RewardExtractor, load_reward
from rrpolicy.rewards.algebra import KIND
from rrpolicy.rewards.laplace import posterior_covariance, temperature
from rrpolicy.rewards.last_layer import feature_slopes, last_layer, rho_features
from rrpolicy.rewards.matching import value_spread
from rrpolicy.rewards.targets import make_targets

PROCESS = DiffusionProcess(10)


class Linear(nn.Module):
    """Features x and a bias: what the difference of two Gaussians of one variance is at each level."""

    def __init__(self, process: DiffusionProcess, event_shape: Any, pinned: Tensor, n_outputs: int = 1) -> None:
        super().__init__()
        self.leave = nn.Linear(int(np.prod(event_shape)), n_outputs)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.leave(x_t.flatten(1))


def gaussians(shift: float = 0.5) -> tuple[GaussianMixtureModel, GaussianMixtureModel]:
    means = torch.tensor([[0.0, 0.0]])
    return GaussianMixtureModel(means, 0.3, process=PROCESS), GaussianMixtureModel(means + shift, 0.3, process=PROCESS)


def linear_reward(base: GaussianMixtureModel) -> RelativeReward:
    torch.manual_seed(0)
    reward = RelativeReward.for_model(base, heads=("window",), window_kwargs={"network": Linear})
    reward.gradient_scale.copy_(torch.linspace(0.5, 2.0, PROCESS.n_diffusion_steps))
    return reward.requires_grad_(False).eval()


def make_reward(agent: DiffusionAgent) -> RelativeReward:
    reward = RelativeReward.for_model(agent, window_kwargs=NARROW, step_kwargs=NARROW)
    reward.gradient_scale.copy_(torch.linspace(3.0, 1.0, agent.process.n_diffusion_steps))
    return reward.requires_grad_(False).eval()


def test_features_times_weights_are_rho_and_their_slopes_its_gradient() -> None:
    agent = make_agent()
    reward = make_reward(agent)
    x_t, t = torch.randn(5, *reward.event_shape), torch.arange(5)
    layer = last_layer(reward)
    weights = torch.cat([layer.weight[0], layer.bias])
    torch.testing.assert_close(rho_features(reward, x_t, t) @ weights, reward(x_t, t))
    along = torch.where(reward.pinned, 0.0, torch.randn(reward.event_shape))
    slopes = feature_slopes(reward, x_t, t, along[None])[0] @ weights
    torch.testing.assert_close(slopes, (reward.gradient(x_t, t) * along).flatten(1).sum(dim=1), rtol=1e-3, atol=1e-4)


def test_the_posterior_is_that_of_bayesian_linear_regression() -> None:
    """Every derivative and every value as a row of its own, by numpy alone."""
    base, expert = gaussians()
    reward = linear_reward(base)
    found = LaplaceReward.fit(reward, base, expert, n_events=64, n_value_draws=2, tempered=False, seed=3)
    generator = torch.Generator().manual_seed(3)
    source = torch.cat([model.sample(8, torch.Generator().manual_seed(0)) for model in (base, expert)])
    same = LaplaceReward.fit(reward, base, expert, source, n_events=64, n_value_draws=2, tempered=False, seed=3)
    x0 = source[torch.randint(16, (128,), generator=generator)]
    targets = make_targets(base, expert, x0, generator, 2).rows(torch.arange(64))
    wanted = _by_hand(reward, targets)
    np.testing.assert_allclose(same.covariance.numpy(), wanted, rtol=2e-3, atol=1e-9)
    assert found.covariance.shape == (3, 3) and not torch.equal(found.covariance, same.covariance)
    x_t, t = torch.randn(4, 2), torch.tensor([0, 3, 5, 9])
    phi = reward.gradient_scale[t][:, None].numpy() * np.column_stack([x_t.numpy(), np.ones(4)])
    np.testing.assert_allclose(same.spread(x_t, t).numpy(), np.sqrt(np.einsum("nf,fg,ng->n", phi, wanted, phi)), 2e-3)


def _by_hand(reward: RelativeReward, targets: Any) -> np.ndarray:
    scale = reward.gradient_scale[targets.t].double().numpy()
    layer = last_layer(reward)
    w = np.append(layer.weight[0].double().numpy(), float(layer.bias))
    difference = (targets.eps_difference / PROCESS.sigma(targets.t)[:, None]).double().numpy() / scale[:, None]
    slopes = np.tile(np.eye(2, 3), (len(scale), 1))  # of scale·(w·x + b) / scale along each axis
    units = value_spread(targets, PROCESS)[targets.t].double().numpy()
    values = (scale / units)[:, None] * np.column_stack([targets.x_t.double().numpy(), np.ones(len(scale))])
    precision = np.zeros((3, 3))
    for rows, given in ((slopes, difference.reshape(-1)), (values, targets.value.double().numpy() / units)):
        precision += rows.T @ rows / np.mean((rows @ w - given) ** 2)
    prior = _evident_prior(precision, w)
    return np.linalg.inv(precision + prior * np.eye(3))


def _evident_prior(precision: np.ndarray, w: np.ndarray) -> float:
    """λ of the largest log evidence ½ (F ln λ − λ ‖w‖² − ln |Λ + λ I|), on a fine grid."""
    grid = np.exp(np.linspace(-12, 12, 100_001))
    values = np.linalg.eigvalsh(precision)
    logs = len(w) * np.log(grid) - grid * (w @ w) - np.log(values[:, None] + grid).sum(axis=0)
    return float(grid[logs.argmax()])


def test_intervals_of_a_true_linear_model_hold_it_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, inside = torch.randn(40, 4, generator=generator, dtype=torch.float64), []
    for _ in range(1000):
        true = torch.randn(4, generator=generator, dtype=torch.float64)
        given = rows @ true + torch.randn(40, generator=generator, dtype=torch.float64)
        mean = torch.linalg.solve(rows.T @ rows + torch.eye(4, dtype=torch.float64), rows.T @ given)
        phi = torch.randn(4, generator=generator, dtype=torch.float64)
        spread = (phi @ posterior_covariance(rows.T @ rows, mean) @ phi).sqrt()
        inside.append(float((phi @ (mean - true)).abs() < 1.96 * spread))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.fixture(scope="module")
def extracted() -> tuple[GaussianMixtureModel, GaussianMixtureModel, list[RelativeReward]]:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])
    models = [GaussianMixtureModel(means, 0.2, torch.tensor(w), PROCESS) for w in ([0.7, 0.3], [0.3, 0.7])]
    rewards = []
    for seed in range(3):
        small = {"width": 16, "n_blocks": 1}
        extractor = RewardExtractor(*models, buffer_size=1024, window_kwargs=small, seed=seed, learning_rate=5e-3)
        rewards.append(extractor.learn(None, 150, log_interval=0).reward)
    return models[0], models[1], rewards


def test_tempered_intervals_hold_the_exact_rho(extracted: Any) -> None:
    base, expert, rewards = extracted
    generator = torch.Generator().manual_seed(5)
    x0 = torch.cat([model.sample(500, generator) for model in (base, expert)])
    t = torch.randint(PROCESS.n_diffusion_steps, (1000,), generator=generator)
    x_t = PROCESS.q_sample(x0, t, torch.randn(x0.shape, generator=generator))
    exact = expert.log_prob(x_t, t) - base.log_prob(x_t, t)
    alone, tempered = (LaplaceReward.fit(rewards[0], base, expert, tempered=one) for one in (False, True))
    assert torch.equal(tempered(x_t, t), rewards[0](x_t, t))
    covered = {}
    for name, reward in {"alone": alone, "tempered": tempered, "ensemble": Ensemble(rewards)}.items():
        low, high = reward.interval(x_t, t, 0.8)
        covered[name] = float(((low <= exact) & (exact <= high)).float().mean())
    assert covered["alone"] < covered["tempered"] - 0.1  # the network's errors are no independent noise
    assert 0.65 < covered["tempered"] < 0.98 and 0.65 < covered["ensemble"] <= 1
    ratio = tempered.covariance / alone.covariance
    assert float(ratio.min()) > 1 and torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)


def test_the_temperature_is_the_ratio_of_variances_whatever_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    variance = torch.rand(20_000, generator=generator) ** 2
    noise = torch.where(torch.rand(20_000, generator=generator) < 0.5, 0.01, 25.0)
    first, second, third = torch.randn(3, 20_000, generator=generator)
    error = 3 * variance.sqrt() * first
    squares = (error - noise.sqrt() * second) * (error - noise.sqrt() * third)
    assert temperature(squares, noise, variance) == pytest.approx(9, rel=0.05)
    assert temperature(squares / 100, noise, variance) == 1.0  # never narrower than the posterior


def test_where_rho_is_unsure_it_counts_less(extracted: Any) -> None:
    base, expert, rewards = extracted
    reward = LaplaceReward.fit(rewards[0], base, expert, n_events=128)
    x_t, t = 3 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    limit = float(reward.spread(x_t, t).median())
    damped = reward.with_options(max_uncertainty=limit)
    factor = (limit / reward.spread(x_t, t)).clamp(max=1)
    assert 0 < int((factor < 1).sum()) < len(factor)
    torch.testing.assert_close(damped(x_t, t), factor * rewards[0](x_t, t))
    torch.testing.assert_close(damped.gradient(x_t, t), factor[:, None] * rewards[0].gradient(x_t, t))
    torch.testing.assert_close((2 * damped)(x_t, t), 2 * rewards[0](x_t, t))


def test_windows_in_environment_units_and_steering() -> None:
    agent = make_agent()
    reward = make_reward(agent)
    layer = last_layer(reward)
    laplace = LaplaceReward(reward, 0.01 * torch.eye(layer.in_features + 1))
    layout = agent.layout
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(3, layout.horizon, layout.observation_dim))
    actions = rng.normal(size=(3, layout.horizon, layout.action_dim)) if layout.plan_actions else None
    low, high = laplace.predict_interval(observations, actions)
    spread = laplace.predict_spread(observations, actions)
    np.testing.assert_allclose((low + high) / 2, reward.predict(observations, actions), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(high - low, 2 * 1.959964 * spread, rtol=1e-4)
    x0, t = reward.packed(observations, actions), torch.zeros(3, dtype=torch.int64)
    x_t = torch.where(reward.pinned, x0, reward.process.alpha(0) * x0)
    np.testing.assert_allclose(spread, laplace.spread(x_t, t).numpy(), rtol=1e-5)
    still = GuidedPlanner(agent, laplace, max_uncertainty=1e-9)
    observation = observations[0, 0].astype(np.float32)
    wanted = agent.predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(still.predict(observation, deterministic=True)[0], wanted, atol=1e-5)
    with pytest.raises(ValueError, match="the posterior is that of windows"):
        laplace.predict_interval(observations[:, 0], None if actions is None else actions[:, 0])


def test_the_posterior_is_saved_with_its_reward(tmp_path: Path) -> None:
    agent = make_agent()
    reward = make_reward(agent)
    n = last_layer(reward).in_features + 1
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    laplace = LaplaceReward(reward, root @ root.T / n, max_uncertainty=0.5)
    laplace.save(tmp_path / "reward")
    loaded = load_reward(tmp_path / "reward.zip")
    assert isinstance(loaded, LaplaceReward) and loaded.max_uncertainty == 0.5
    assert torch.equal(loaded.covariance, laplace.covariance)
    x_t = torch.randn(5, *reward.event_shape, generator=torch.Generator().manual_seed(1))
    t = torch.arange(5)
    assert torch.equal(loaded.spread(x_t, t), laplace.spread(x_t, t))
    assert torch.equal(loaded(x_t, t), laplace(x_t, t))
    planner = GuidedPlanner(agent, laplace, scale=0.7)
    planner.save(tmp_path / "planner")
    again = GuidedPlanner.load(tmp_path / "planner")
    observation = np.zeros(agent.layout.observation_dim, dtype=np.float32)
    actions = [one.predict(observation, deterministic=True)[0] for one in (planner, again)]
    np.testing.assert_array_equal(*actions)


def test_posteriors_that_are_none_are_refused(tmp_path: Path) -> None:
    reward = make_reward(make_agent())
    n = last_layer(reward).in_features + 1
    skew, negative = torch.eye(n), -torch.eye(n)
    skew[0, 1] = 0.5
    for matrix in (skew, negative, torch.full((n, n), torch.nan)):
        with pytest.raises(ValueError, match="covariance is not symmetric with variances of 0 and more"):
            LaplaceReward(reward, matrix)
    config, tensors = LaplaceReward(reward, torch.eye(n)).archived()
    without = {name: group for name, group in tensors.items() if name != "posterior"}
    write_archive(tmp_path / "without.zip", KIND, config, without)
    with pytest.raises(ValueError, match=r"without\.zip: is not a valid rewards archive: .*posterior"):
        load_reward(tmp_path / "without.zip")
    wrong = {**tensors, "posterior": {"covariance": negative}}
    write_archive(tmp_path / "wrong.zip", KIND, config, wrong)
    with pytest.raises(ValueError, match=r"wrong\.zip: covariance is not symmetric"):
        load_reward(tmp_path / "wrong.zip")
    twice = {**config, "members": [{"factors": [2.0], "rewards": [0]}]}
    with pytest.raises(ValueError, match="form is 'laplace', whose only member is a reward alone"):
        write_archive(tmp_path / "twice.zip", KIND, twice, tensors)
        load_reward(tmp_path / "twice.zip")


class Squared(Linear):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return super().forward(x_t, t) ** 2


def test_what_has_no_last_layer_is_refused() -> None:
    base, expert = gaussians()
    squared = RelativeReward.for_model(base, heads=("window",), window_kwargs={"network": Squared})
    with pytest.raises(ValueError, match=r"a Squared, must end with an nn\.Linear of 1 output"):
        LaplaceReward.fit(squared, base, expert)
    reward = linear_reward(base)
    with pytest.raises(ValueError, match="it is a CombinedReward"):
        LaplaceReward.fit(2 * reward, base, expert)
    with pytest.raises(ValueError, match=r"covariance has shape \(2, 2\), the last layer needs \(3, 3\)"):
        LaplaceReward(reward, torch.eye(2))
    other = GaussianMixtureModel(torch.zeros(1, 3), process=PROCESS)
    with pytest.raises(ValueError, match="differ in event shape"):
        LaplaceReward.fit(reward, other, other)
    with pytest.raises(ValueError, match=r"level is 95, it must lie between 0 and 1"):
        LaplaceReward(reward, torch.eye(3)).interval(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 95)
