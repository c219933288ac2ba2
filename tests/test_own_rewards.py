"""Rewards of the user's own: any function or module of (x_t, t) steers, what scores steps is mapped and used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, NARROW, Drift, make_agent
from torch import Tensor, nn

from rrpolicy import DiscriminatorReward, GuidedPlanner, RelativeReward
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.rewards.guidance import guided
from rrpolicy.rewards.maps import reward_map
from rrpolicy.rewards.metrics import explained_fraction
from rrpolicy.rewards.protocol import reward_gradient
from rrpolicy.rewards.transforms import BoundedReward
from rrpolicy.rewards.wrappers import RelativeRewardWrapper
from rrpolicy.testing import check_agent

OBSERVATIONS = np.random.default_rng(0).normal(size=(3, 4))
BASE = GaussianMixtureModel(torch.tensor([[0.0, 0.0]]), 1.0)
EXPERT = GaussianMixtureModel(torch.tensor([[0.0, 0.0]]), 0.25)


def log_ratio(x_t: Tensor, t: Tensor) -> Tensor:
    """The exact ρ of the pair of Gaussians."""
    return EXPERT.log_prob(x_t, t) - BASE.log_prob(x_t, t)


def rightward(x_t: Tensor, t: Tensor) -> Tensor:
    return x_t[:, :, 0].sum(dim=1)


def test_a_function_is_differentiated_and_steers_the_base_to_the_expert() -> None:
    x_t, t = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), torch.full((64,), 10)
    assert explained_fraction(log_ratio, BASE, EXPERT, x_t, t) == pytest.approx(1, abs=1e-5)
    assert not x_t.requires_grad and reward_gradient(log_ratio, x_t, t).shape == x_t.shape
    steered = guided(BASE.eps, log_ratio, BASE.process, 1.0)
    drawn = sample_model(BASE, 4000, generator=torch.Generator().manual_seed(1), denoiser=steered, n_sampling_steps=50)
    torch.testing.assert_close(drawn.std(dim=0), torch.full((2,), 0.5), rtol=0, atol=0.03)


class Module(nn.Module):
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return rightward(x_t, t)


@pytest.mark.parametrize("reward", [rightward, Module()])
def test_a_planner_takes_any_reward_of_events(reward: Any, tmp_path: Path) -> None:
    agent = make_agent(clip=None)
    planner = GuidedPlanner(agent, reward, scale=50.0, n_candidates=2, max_shift=0.5)
    actions, base_actions = (one.predict(OBSERVATIONS, deterministic=True)[0] for one in (planner, agent))
    assert (actions[:, 0] > base_actions[:, 0]).all() and 0 < planner.share_bound <= 1
    assert check_agent(planner, Drift()) == ["predict", "units", "one normaliser"]
    with pytest.raises(
        ValueError, match=r"reward is a \w+, which no archive holds: save the agent, planner\.agent\.save"
    ):
        planner.save(tmp_path / "planner")
    assert not list(tmp_path.iterdir())


def test_pinned_entries_are_not_steered() -> None:
    agent = make_agent()
    x_t, t = torch.randn(4, *agent.event_shape), torch.full((4,), 5)

    def outward(x: Tensor, level: Tensor) -> Tensor:
        return x.square().flatten(1).sum(dim=1)

    change = guided(agent.eps, outward, agent.process, 3.0, pinned=agent.pinned)(x_t, t) - agent.eps(x_t, t)
    assert (change[:, agent.pinned] == 0).all() and (change[:, ~agent.pinned] != 0).any()


def test_what_cannot_steer_is_refused() -> None:
    agent = make_agent()
    for reward, told in (
        (3, "reward is a int, wanted a function or module of"),
        (DiscriminatorReward(agent, agent, window_kwargs=NARROW), r"is a DiscriminatorReward, wanted its \.reward"),
        (lambda x_t, t: x_t[:, 0, :1], r"the reward returned \(2, 1\) for 2 events, wanted one number for each"),
        (lambda x_t, t: 0.0, "the reward returned a float for 2 events"),
        (lambda x_t, t: rightward(x_t.detach(), t), "the reward has no gradient at x_t"),
    ):
        with pytest.raises(ValueError, match=told):
            GuidedPlanner(agent, reward)  # type: ignore[arg-type]


class Nearness:
    """Nearness to a place, of observations alone."""

    layout = TrajectoryLayout(observation_dim=4, action_dim=2, horizon=1, plan_actions=False)

    def predict(self, observations: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        return -np.square(observations[:, :2]).sum(axis=1)


def test_a_step_reward_of_the_user_s_own_is_mapped_bounded_and_learned_from() -> None:
    drawn = reward_map(Nearness(), ("#####", "#...#", "#####"), points_per_cell=5, wall_margin=0.0)
    assert np.linalg.norm(drawn.maximum) < 0.2
    bounded = BoundedReward.fit(Nearness(), DATASET)
    env = RelativeRewardWrapper(Drift(), Nearness(), transform=bounded)
    env.reset(seed=0)
    observation, reward, _, _, info = env.step(np.zeros(2, np.float32))
    assert reward == pytest.approx(float(bounded(Nearness().predict(observation[None]))[0]))
    assert info["original_reward"] == 0.0


def test_a_reward_without_steps_is_told() -> None:
    reward = RelativeReward.for_model(make_agent(), heads=("window",), window_kwargs=NARROW)
    with pytest.raises(ValueError, match="single transitions need a layout and a step head"):
        RelativeRewardWrapper(Drift(), reward)
