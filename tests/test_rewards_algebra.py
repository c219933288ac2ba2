"""Sums and ensembles of rewards: values, gradients, archives, steering, and rewards for Stable-Baselines3."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.forged import forge

from rrpolicy import DiffusionAgent, GuidedPlanner, Normalizer, PlanningOptions, RelativeReward, zoo
from rrpolicy.common.archive import read_archive
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards import CombinedReward, Ensemble, load_reward
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.wrappers import RelativeRewardWrapper

NORMALIZER = Normalizer.from_bounds((-np.ones(3), np.ones(3)), (-2 * np.ones(1), 2 * np.ones(1)))


def agent() -> DiffusionAgent:
    return DiffusionAgent(
        "MlpPolicy",
        "Pendulum-v1",
        horizon=4,
        normalizer=NORMALIZER,
        process=DiffusionProcess(20),
        planning=PlanningOptions(clip=None, n_sampling_steps=2, n_action_steps=1),
        policy_kwargs={"width": 8, "n_blocks": 1},
    )


def reward(seed: int, model: DiffusionAgent | GaussianMixtureModel | None = None) -> RelativeReward:
    """A reward with random weights."""
    torch.manual_seed(seed)
    small = {"width": 8, "n_blocks": 1}
    heads = ("window", "step") if model is None else ("window",)
    made = RelativeReward.for_model(model or agent(), heads=heads, window_kwargs=small, step_kwargs=small)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def rewards() -> list[RelativeReward]:
    return [reward(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def events() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 20


Events = tuple[torch.Tensor, torch.Tensor]
Rewards = list[RelativeReward]


def test_sums_are_linear_in_value_and_gradient(rewards: Rewards, events: Events) -> None:
    first, second, _ = rewards
    mixed = first + 2 * second - first * 0.5
    assert isinstance(mixed, CombinedReward) and mixed.weights == (0.5, 2.0)
    torch.testing.assert_close(mixed(*events), 0.5 * first(*events) + 2 * second(*events))
    torch.testing.assert_close(mixed.gradient(*events), 0.5 * first.gradient(*events) + 2 * second.gradient(*events))
    torch.testing.assert_close((-mixed)(*events), -mixed(*events))
    observations, actions = np.zeros((5, 3), np.float32), np.ones((5, 1), np.float32)
    wanted = 0.5 * first.predict(observations, actions) + 2 * second.predict(observations, actions)
    np.testing.assert_allclose(mixed.predict(observations, actions), wanted, rtol=1e-5)


def test_an_ensemble_has_a_mean_a_spread_and_a_lower_bound(rewards: Rewards, events: Events) -> None:
    ensemble = Ensemble(rewards)
    values = torch.stack([one(*events) for one in rewards])
    torch.testing.assert_close(ensemble(*events), values.mean(dim=0))
    torch.testing.assert_close(ensemble.spread(*events), values.std(dim=0))
    lower = ensemble.with_options(score="lower", n_deviations=2.0)
    torch.testing.assert_close(lower(*events), values.mean(dim=0) - 2 * values.std(dim=0))
    inputs = events[0].clone().requires_grad_(True)
    (wanted,) = torch.autograd.grad(lower(inputs, events[1]).sum(), inputs)
    torch.testing.assert_close(lower.gradient(*events), torch.where(lower.pinned, 0.0, wanted))
    torch.testing.assert_close((2 * ensemble)(*events), 2 * ensemble(*events))
    torch.testing.assert_close((rewards[0] - ensemble)(*events), rewards[0](*events) - ensemble(*events))
    torch.testing.assert_close((ensemble + ensemble)(*events), 2 * ensemble(*events))
    same = Ensemble([rewards[0], rewards[0]], score="lower")
    assert torch.isfinite(same.gradient(*events)).all() and (same.spread(*events) == 0).all()


def test_where_rewards_disagree_they_count_less(rewards: Rewards, events: Events) -> None:
    ensemble = Ensemble(rewards)
    limit = float(ensemble.spread(*events).median())
    damped = ensemble.with_options(max_uncertainty=limit)
    factor = (limit / ensemble.spread(*events)).clamp(max=1)
    assert 0 < int((factor < 1).sum()) < len(factor)
    torch.testing.assert_close(damped(*events), factor * ensemble(*events))
    torch.testing.assert_close(damped.gradient(*events), factor.view(-1, 1, 1) * ensemble.gradient(*events))


def test_sums_and_ensembles_are_saved_in_one_archive(rewards: Rewards, events: Events, tmp_path: Path) -> None:
    options = {"score": "lower", "n_deviations": 0.5, "max_uncertainty": 2.0}
    for i, made in enumerate((rewards[0] - 2 * rewards[1], Ensemble([rewards[0] + rewards[1], rewards[2]], **options))):
        made.save(tmp_path / f"{i}", card={"base": "here"})
        loaded = load_reward(tmp_path / f"{i}.zip", "Pendulum-v1")
        assert type(loaded) is type(made) and type(zoo.load(tmp_path / f"{i}.zip")) is type(made)
        assert type(zoo.load_reward(tmp_path / f"{i}.zip")) is type(made)  # as every command with --reward reads it
        assert torch.equal(loaded(*events), made(*events)) and loaded.layout == made.layout
        with pytest.raises(ValueError, match="width 3, the environment has"):
            load_reward(tmp_path / f"{i}.zip", "CartPole-v1")
    rewards[0].save(tmp_path / "one")
    assert torch.equal(load_reward(tmp_path / "one")(*events), rewards[0](*events))


def test_a_planner_steers_by_sums_and_ensembles(rewards: Rewards) -> None:
    model, observation = agent(), np.zeros(3, np.float32)
    one = GuidedPlanner(model, rewards[0], scale=2.0).predict(observation, deterministic=True)[0]
    for same in (2 * rewards[0], Ensemble([rewards[0] * 2, rewards[0] + rewards[0]])):
        np.testing.assert_allclose(
            GuidedPlanner(model, same).predict(observation, deterministic=True)[0], one, rtol=1e-4
        )
    still = GuidedPlanner(model, Ensemble(rewards), max_uncertainty=1e-9).predict(observation, deterministic=True)[0]
    np.testing.assert_allclose(still, model.predict(observation, deterministic=True)[0], atol=1e-5)
    with pytest.raises(
        ValueError, match="max_uncertainty is for an Ensemble or a LaplaceReward, reward is a RelativeReward"
    ):
        GuidedPlanner(model, rewards[0], max_uncertainty=1.0)


def test_a_planner_is_saved_with_its_sum_or_ensemble(rewards: Rewards, tmp_path: Path) -> None:
    model, observation = agent(), np.zeros(3, np.float32)
    for made in (rewards[0] - 2 * rewards[1], Ensemble([rewards[0] + rewards[1], rewards[2]], "lower", 0.5, 2.0)):
        planner = GuidedPlanner(model, made, scale=2.0)
        planner.save(tmp_path / "planner")
        loaded = GuidedPlanner.load(tmp_path / "planner", "Pendulum-v1")
        assert type(loaded.reward) is type(made) and loaded.reward.normalizer == model.normalizer
        wanted = planner.predict(observation, deterministic=True)[0]
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], wanted)
        assert isinstance(zoo.load(tmp_path / "planner"), GuidedPlanner)


def test_a_planner_s_archive_has_one_reward_or_several_not_both(rewards: Rewards, tmp_path: Path) -> None:
    GuidedPlanner(agent(), 2 * rewards[0]).save(tmp_path / "planner")
    archive = read_archive(tmp_path / "planner")
    for change in ({"rewards": None}, {"reward": archive.config["rewards"]["rewards"][0]}):
        forge(archive.path, archive.kind, {**archive.config, **change}, archive.tensors)
        with pytest.raises(ValueError, match="it must have one of reward and rewards"):
            GuidedPlanner.load(archive.path)


def test_an_ensemble_takes_the_place_of_an_environment_s_reward(rewards: Rewards) -> None:
    ensemble = Ensemble(rewards, score="lower")
    env = RelativeRewardWrapper(gym.make("Pendulum-v1"), ensemble)
    observation, _ = env.reset(seed=0)
    action = np.full(1, 0.5, np.float32)
    value = env.step(action)[1]
    assert value == pytest.approx(float(ensemble.predict(observation[None], action[None])[0]), rel=1e-4)
    still = RelativeRewardWrapper(gym.make("Pendulum-v1"), ensemble, max_uncertainty=1e-9)
    still.reset(seed=0)
    assert still.step(action)[1] == pytest.approx(0, abs=1e-6) != value
    with pytest.raises(ValueError, match="max_uncertainty is for an Ensemble"):
        RelativeRewardWrapper(gym.make("Pendulum-v1"), rewards[0], max_uncertainty=1.0)


def test_what_cannot_be_added_is_refused(rewards: Rewards) -> None:
    other = reward(0, GaussianMixtureModel(torch.zeros(1, 3), process=DiffusionProcess(20)))
    with pytest.raises(ValueError, match=r"rewards differ in event_shape: \(4, 4\) and \(3,\)"):
        rewards[0] + other
    with pytest.raises(ValueError, match="an ensemble needs at least 2"):
        Ensemble(rewards[:1])
    with pytest.raises(ValueError, match="ensembles of 2 and 3 rewards cannot be added"):
        Ensemble(rewards[:2]) + Ensemble(rewards)
    with pytest.raises(ValueError, match="the factor of a reward"):
        rewards[0] * float("nan")
    with pytest.raises(TypeError):
        rewards[0] + 1.0
    with pytest.raises(ValueError, match="score is 'upper'"):
        Ensemble(rewards, score="upper")  # type: ignore[arg-type]


@pytest.mark.slow  # fits; sums of rewards are exact above
def test_extracted_rewards_add_up_along_a_chain_of_models() -> None:
    """ρ_AB + ρ_BC is ρ_AC, up to what the extractions leave."""
    process = DiffusionProcess(20)
    chain = [GaussianMixtureModel(torch.tensor([[x, 0.0]]), 0.3, process=process) for x in (-0.5, 0.0, 0.5)]
    x0 = torch.cat([model.sample(1000, torch.Generator().manual_seed(0)) for model in chain])
    sizes = {"buffer_size": 2048, "batch_size": 64, "n_epochs": 16, "window_kwargs": {"width": 32, "n_blocks": 1}}
    options = {"learning_rate": 1e-2, "seed": 0, **sizes}

    def extracted(base: int, expert: int) -> RelativeReward:
        return RewardExtractor(chain[base], chain[expert], **options).learn(x0, 150, log_interval=0).reward

    sum_of_two, whole, t = extracted(0, 1) + extracted(1, 2), extracted(0, 2), torch.zeros(3000, dtype=torch.int64)
    found, wanted = sum_of_two(x0, t), whole(x0, t)
    exact = chain[2].log_prob(x0, t) - chain[0].log_prob(x0, t)
    assert float((found - wanted).square().mean().sqrt()) < 0.15 * float(exact.std())
    assert float((found - exact).square().mean().sqrt()) < 0.15 * float(exact.std())
