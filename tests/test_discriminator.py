"""The baseline classifier: at its optimum the logit is the log density ratio, and it steers like any other reward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, NARROW, Lines, make_agent
from stable_baselines3.common.logger import Logger

from rrpolicy import DiscriminatorReward, GuidedPlanner, Normalizer, RelativeReward
from rrpolicy.diffusion.analytic import GaussianMixtureModel

BASE, EXPERT = make_agent(), make_agent(seed=1)


def make_discriminator(**kwargs: object) -> DiscriminatorReward:
    return DiscriminatorReward(BASE, EXPERT, **{"window_kwargs": NARROW, "batch_size": 32, "seed": 0, **kwargs})


def test_the_logit_tends_to_the_log_density_ratio() -> None:
    base = GaussianMixtureModel(torch.tensor([[-0.5, 0.0]]), 0.3)
    expert = GaussianMixtureModel(torch.tensor([[0.5, 0.0]]), 0.3)
    generator = torch.Generator().manual_seed(0)
    data = [model.sample(4000, generator) for model in (base, expert)]
    learned = DiscriminatorReward(base, expert, window_kwargs=NARROW, learning_rate=5e-3, seed=0).learn(data, 400)
    x0 = torch.cat([model.sample(500, generator) for model in (base, expert)])
    for level in (0, 15, 30):
        t = torch.full((1000,), level)
        x_t = base.process.q_sample(x0, t, torch.randn(x0.shape, generator=generator))
        exact = expert.log_prob(x_t, t) - base.log_prob(x_t, t)
        got = learned.reward(x_t, t)
        assert float(torch.corrcoef(torch.stack([exact, got]))[0, 1]) > 0.95
        assert float((got - exact).mean().abs()) < 0.4 * float(exact.std())


def test_swapped_data_flip_the_sign() -> None:
    scores = []
    for data in ([DATASET, EXPERT_DATASET], [EXPERT_DATASET, DATASET]):
        reward = make_discriminator(learning_rate=5e-3).learn(data, 80).reward
        windows = [set_.windows(BASE.layout, np.arange(0, 40)) for set_ in (DATASET, EXPERT_DATASET)]
        scores.append([float(reward.predict(one.observations, one.actions).mean()) for one in windows])
    assert scores[0][1] > scores[0][0] and scores[1][1] < scores[1][0]


def test_without_data_the_models_are_sampled() -> None:
    base, expert = (GaussianMixtureModel(torch.full((1, 2), mean), 0.1) for mean in (-1.0, 1.0))
    reward = DiscriminatorReward(base, expert, window_kwargs=NARROW, seed=0).learn(None, 20).reward
    at_base, at_expert = reward(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), torch.zeros(2, dtype=torch.int64)).tolist()
    assert at_base < at_expert


def test_the_result_is_a_reward_that_says_where_it_is_from(tmp_path: Path) -> None:
    discriminator = make_discriminator().learn([DATASET, EXPERT_DATASET], 2)
    reward = discriminator.reward
    assert isinstance(reward, RelativeReward) and reward.source == "discriminator" and reward.heads == ("window",)
    GuidedPlanner(BASE, reward, scale=1.0).predict(DATASET.observations[:2])
    reward.save(tmp_path / "reward")
    assert RelativeReward.load(tmp_path / "reward").source == "discriminator"


def test_the_accuracy_is_logged() -> None:
    discriminator, log = make_discriminator(), Lines()
    discriminator.set_logger(Logger(None, [log]))
    discriminator.learn([DATASET, EXPERT_DATASET], 2, log_interval=1)
    assert len(log.seen) == 2 and all(0 <= line["train/accuracy"] <= 1 for _, line in log.seen)


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"learn\(\[dataset, expert_dataset\], 3_000\)"):
        make_discriminator().learn(10_000)
    for data in (DATASET, [DATASET], [DATASET] * 3):
        with pytest.raises(ValueError, match="data must hold two sources"):
            make_discriminator().learn(data, 1)
    with pytest.raises(ValueError, match="batch_size is 1, it must be at least 2"):
        make_discriminator(batch_size=1)
    make_discriminator().save(tmp_path / "discriminator")
    with pytest.raises(ValueError, match="a discriminator needs its two models"):
        DiscriminatorReward.load(tmp_path / "discriminator")


def test_models_of_different_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"base and expert differ in .*normalizer="):
        DiscriminatorReward(BASE, make_agent(normalizer=Normalizer.fit(DATASET)))
