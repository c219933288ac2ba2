"""What the reward is fitted to, against exact log density ratios: score differences, value targets, events, and R².

Two analytic mixtures stand for base and expert, so every target has a known mean.
"""

import pytest
import torch
from helpers.agents import DATASET, make_agent

from rrpolicy import RelativeReward, TrajectoryDataset
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.metrics import explained_by_level, explained_fraction, explained_when_guided
from rrpolicy.rewards.targets import CHUNK, PIECE, Targets, eps_difference, make_targets, noised, value_targets

PROCESS = DiffusionProcess(50)
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
BASE = GaussianMixtureModel(MEANS, 0.1, torch.tensor([0.7, 0.3]), PROCESS)
EXPERT = GaussianMixtureModel(MEANS + 0.2, 0.1, torch.tensor([0.3, 0.7]), PROCESS)


class ExactReward(RelativeReward):
    """ρ = log p_expert - log p_base, with nothing learned."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, head: object = None) -> torch.Tensor:
        return EXPERT.log_prob(x_t, t) - BASE.log_prob(x_t, t)


class Constant(RelativeReward):
    def forward(self, x_t: torch.Tensor, t: torch.Tensor, head: object = None) -> torch.Tensor:
        return 0 * x_t.flatten(1).sum(1)


def reward_of(cls: type[RelativeReward]) -> RelativeReward:
    return cls(PROCESS, (2,), heads=("window",), window_kwargs={"width": 8, "n_blocks": 1})


def events(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.cat([BASE.sample(n // 2, generator), EXPERT.sample(n // 2, generator)])


# ---------------------------------------------------------------------- gradients


def test_the_noise_difference_is_the_scaled_gradient_of_the_log_ratio() -> None:
    x_t = torch.randn(6, 2).requires_grad_(True)
    t = torch.tensor([0, 5, 10, 20, 40, 49])
    ratio = EXPERT.log_prob(x_t, t) - BASE.log_prob(x_t, t)
    (gradient,) = torch.autograd.grad(ratio.sum(), x_t)
    wanted = PROCESS.sigma(t)[:, None] * gradient
    torch.testing.assert_close(eps_difference(BASE, EXPERT, x_t.detach(), t), wanted, rtol=1e-3, atol=1e-4)


def test_pinned_entries_have_no_target_and_stay_clean() -> None:
    base, expert = make_agent(), make_agent(seed=1)
    x0, t = torch.randn(6, 8, 6), torch.randint(10, (6,))
    x_t = noised(base, x0, t, torch.Generator())
    assert torch.equal(x_t[:, base.pinned], x0[:, base.pinned]) and (x_t[:, ~base.pinned] != x0[:, ~base.pinned]).all()
    difference = eps_difference(base, expert, x_t, t)
    assert (difference[:, base.pinned] == 0).all() and (difference[:, ~base.pinned] != 0).any()
    value = value_targets(base, expert, x_t, t, torch.Generator())
    assert value.shape == (6,) and torch.isfinite(value).all()


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("level", [0, 1, 5, 15, 30])
def test_value_targets_average_to_the_log_ratio(level: int) -> None:
    """Their constant is fixed by pure noise, where both models are the same."""
    x0 = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [1.3, 0.9], [-0.6, 0.4]])
    generator = torch.Generator().manual_seed(level)
    t = torch.full((4,), level)
    x_t = PROCESS.q_sample(x0, t, torch.randn(x0.shape, generator=generator))
    draws = value_targets(BASE, EXPERT, x_t.repeat(4000, 1), t.repeat(4000), generator).view(4000, 4)
    exact = EXPERT.log_prob(x_t, t) - BASE.log_prob(x_t, t)
    error = (draws.mean(0) - exact).abs()
    assert (error < 0.02 + 4 * draws.std(0) / 4000**0.5).all() and float(exact.std()) > 0.2


LEVELS = [(10, "cosine"), (200, "spread")]  # the fewest, and the most
MORE_LEVELS = [pytest.param(*one, marks=pytest.mark.slow) for one in ((20, "cosine"), (200, "cosine"), (30, "spread"))]


@pytest.mark.parametrize(("n_levels", "schedule"), [*LEVELS, *MORE_LEVELS])
def test_values_do_not_depend_on_how_levels_are_spread(n_levels: int, schedule: str) -> None:
    """Slope of the mean of many targets over the log ratio; a sum by right ends has .76 with 20 cosine levels."""
    ratios = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), n_levels, dtype=torch.float64) ** 7  # EDM's
    table = (1 / (1 + ratios**2)).tolist()
    process = DiffusionProcess(n_levels) if schedule == "cosine" else DiffusionProcess.from_alphas_cumprod(table)
    base, expert = (
        GaussianMixtureModel(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.1, torch.tensor(weights), process)
        for weights in ([0.75, 0.25], [0.25, 0.75])
    )
    for level in (0, n_levels // 2):
        t, generator = torch.full((16,), level), torch.Generator().manual_seed(0)
        x0 = base.sample(16, generator)
        x_t = process.q_sample(x0, t, torch.randn(x0.shape, generator=generator))
        found = value_targets(base, expert, x_t.repeat(2000, 1), t.repeat(2000), generator, 4).view(2000, 16)
        exact = expert.log_prob(x_t, t) - base.log_prob(x_t, t)
        slope = float((found.mean(0) * (exact - exact.mean())).sum() / (exact - exact.mean()).square().sum())
        assert abs(slope - 1) < 0.05


def test_more_draws_are_less_noisy_and_the_last_level_is_nearly_zero() -> None:
    x_t, t = torch.randn(1, 2).repeat(2000, 1), torch.full((2000,), 10)
    few, many = (float(value_targets(BASE, EXPERT, x_t, t, torch.Generator(), n_draws=n).std()) for n in (1, 8))
    assert many < 0.6 * few
    assert value_targets(BASE, EXPERT, x_t, torch.full((2000,), 49), torch.Generator()).abs().max() < 0.01


def test_levels_are_drawn_where_summands_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharp models differ most at the cleanest levels; held against uniform chances, which equal σ would give."""
    base, expert = (GaussianMixtureModel(MEANS + shift, 0.001, process=PROCESS) for shift in (0.0, 0.05))
    x_t, t = torch.tensor([[1.0, 0.5]]).repeat(20_000, 1), torch.zeros(20_000, dtype=torch.int64)
    ours = value_targets(base, expert, x_t, t, torch.Generator(), n_draws=1)
    sigma, levels = PROCESS.sigma, torch.arange(50)

    def equal_for_all_levels(t: torch.Tensor) -> torch.Tensor:
        return torch.ones(50) if t.shape == levels.shape and torch.equal(t, levels) else sigma(t)

    monkeypatch.setattr(PROCESS, "sigma", equal_for_all_levels)
    uniform = value_targets(base, expert, x_t, t, torch.Generator(), n_draws=1)
    assert float(ours.std()) < 0.5 * float(uniform.std())
    assert abs(float(ours.mean() - uniform.mean())) < 4 * float(uniform.std()) / 20_000**0.5


def test_equal_models_have_no_targets() -> None:
    targets = make_targets(BASE, BASE, events(100), torch.Generator(), n_value_draws=2)
    assert targets.value is not None and (targets.value == 0).all() and (targets.eps_difference == 0).all()


def test_swapped_models_have_opposite_targets() -> None:
    one, other = (make_targets(*pair, events(100), torch.Generator(), 2) for pair in ((BASE, EXPERT), (EXPERT, BASE)))
    assert torch.equal(one.x_t, other.x_t) and torch.equal(one.eps_difference, -other.eps_difference)
    torch.testing.assert_close(one.value, -other.value)


def test_targets_come_in_chunks_that_change_nothing_in_shape() -> None:
    n = CHUNK + 40
    targets = make_targets(BASE, EXPERT, events(n), torch.Generator(), n_value_draws=0)
    assert len(targets) == n and targets.x_t.shape == (n, 2) and targets.value is None
    assert len(targets.t.unique()) > 10


# ---------------------------------------------------------------------- events


def test_targets_are_chosen_and_joined() -> None:
    generator = torch.Generator().manual_seed(0)
    with_values, without = (make_targets(BASE, EXPERT, events(6), generator, n) for n in (1, 0))
    chosen = with_values.rows(torch.tensor([3, 1]))
    assert torch.equal(chosen.x_t, with_values.x_t[[3, 1]]) and torch.equal(chosen.value, with_values.value[[3, 1]])
    both = Targets.joined([chosen, without])
    assert len(both) == 8 and both.value is None and torch.equal(both.t[2:], without.t)
    assert torch.equal(Targets.joined([chosen, with_values]).value, torch.cat([chosen.value, with_values.value]))


def test_samples_follow_the_model() -> None:
    samples = sample_model(EXPERT, 3000, generator=torch.Generator().manual_seed(0))
    assert samples.shape == (3000, 2)
    torch.testing.assert_close(samples.mean(0), torch.tensor([0.6, 0.55]), rtol=0, atol=0.06)


def test_samples_of_an_agent_start_at_its_data() -> None:
    agent = make_agent(normalizer=None).learn(DATASET, 1)
    samples = sample_model(agent, 20, generator=torch.Generator().manual_seed(0))
    known = torch.as_tensor(agent.normalizer.observations.normalize(DATASET.observations), dtype=torch.float32)
    starts = samples[:, 0, 2:]
    nearest = (starts[:, None] - known).abs().amax(dim=2).amin(dim=1)
    assert nearest.max() < 1e-5 and len(starts.unique(dim=0)) > 5


def test_a_pinned_model_that_cannot_sample_its_condition_is_refused() -> None:
    class Pinned(GaussianMixtureModel):
        pinned = torch.tensor([True, False])

    with pytest.raises(ValueError, match="pinned entries but no sample_pinned"):
        sample_model(Pinned(MEANS), 4, generator=torch.Generator())


def test_events_come_from_tensors_datasets_or_the_models() -> None:
    generator = torch.Generator()
    rows = torch.arange(6.0).view(3, 2)
    drawn = as_events(rows, BASE, EXPERT, None).draw(100, generator)
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in rows.tolist()}
    assert as_events(None, BASE, EXPERT, 0).draw(5, generator).shape == (5, 2)
    agent = make_agent()
    for data in (DATASET, [DATASET, DATASET]):
        assert as_events(data, agent, agent, None).draw(5, generator).shape == (5, 8, 6)


def test_windows_are_an_equal_share_of_every_dataset() -> None:
    agent = make_agent()
    far = TrajectoryDataset(DATASET.observations + 50, DATASET.actions, DATASET.episode_lengths)
    drawn = as_events([far, DATASET, DATASET], agent, agent, None).draw(300, torch.Generator())
    assert int((drawn[:, 0, 2] > 10).sum()) == 100


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (torch.zeros(4, 3), ValueError, r"data has shape \(4, 3\), wanted \(N, 2\)"),
        (torch.zeros(0, 2), ValueError, r"data has shape \(0, 2\)"),
        (torch.full((4, 2), torch.nan), ValueError, "data holds NaN or inf"),
        (10_000, TypeError, r"data is a int; call it as extractor\.learn"),
        ([torch.zeros(4, 2)], TypeError, "data is a list"),
        (DATASET, ValueError, "the models have no layout and normalizer"),
    ],
)
def test_other_data_is_refused(data: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        as_events(data, BASE, EXPERT, None)


# ---------------------------------------------------------------------- R²


def test_the_exact_reward_explains_everything_and_a_constant_nothing() -> None:
    x0 = events(400)
    for level, explained in explained_by_level(reward_of(ExactReward), BASE, EXPERT, x0, [0, 10, 40]).items():
        assert explained == pytest.approx(1.0, abs=1e-4), level
    assert explained_by_level(reward_of(Constant), BASE, EXPERT, x0, [0, 40]) == {0: 0.0, 40: 0.0}
    x_t, t = x0, torch.full((400,), 5)
    assert explained_fraction(reward_of(Constant), BASE, BASE, x_t, t) == 1.0
    assert explained_fraction(reward_of(ExactReward), BASE, BASE, x_t, t) == -float("inf")


def test_it_is_also_measured_where_guided_sampling_goes() -> None:
    explained = explained_when_guided(reward_of(ExactReward), BASE, EXPERT, events(100), n_sampling_steps=4)
    assert list(explained) == BASE.process.timesteps(4)
    assert all(value == pytest.approx(1.0, abs=1e-3) for value in explained.values())


def test_models_are_evaluated_in_pieces_alike() -> None:
    base, expert = (make_agent(seed=seed) for seed in (0, 1))
    n = 2 * PIECE + 3
    x_t, t = torch.randn(n, *base.layout.event_shape), torch.arange(n) % base.process.n_diffusion_steps
    with torch.no_grad():
        wanted = base.eps(x_t, t) - expert.eps(x_t, t)
    found = eps_difference(base, expert, x_t, t)
    torch.testing.assert_close(found, torch.where(torch.tensor(base.layout.pinned), 0.0, wanted))
