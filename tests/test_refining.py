"""Rounds in closed loop continue an extraction where the steered base goes."""

import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, NARROW, Drift, make_agent
from helpers.mixtures import PATHS, exact

from rrpolicy import GuidedPlanner, RelativeReward, RewardExtractor
from rrpolicy.agents import Rounds, refine

AGENT, EXPERT, DATA = make_agent(), make_agent(seed=1), [DATASET, EXPERT_DATASET]
SMALL = Rounds(n_plans=32, n_visited=40, n_envs=2)


def extracted() -> RewardExtractor:
    networks = {"window_kwargs": NARROW, "step_kwargs": NARROW}
    extractor = RewardExtractor(AGENT, EXPERT, batch_size=16, buffer_size=64, seed=0, **networks)
    return extractor.learn(DATA, 6, log_interval=0)


def test_rounds_go_on_from_the_extraction_and_repeat() -> None:
    x_t, t = torch.randn(4, *AGENT.event_shape), torch.arange(4)
    alone = extracted()
    offline, closed, again = (
        refine(extracted(), DATA, env, n_rounds=2, rounds=SMALL, seed=3) for env in (None, Drift, Drift)
    )
    assert closed.num_timesteps == 6 + 2 * (6 // 3)
    assert torch.equal(closed.reward(x_t, t), again.reward(x_t, t))
    for other in (offline, closed):
        assert not torch.equal(other.reward(x_t, t), alone.reward(x_t, t))
    assert not torch.equal(offline.reward(x_t, t), closed.reward(x_t, t))


def test_the_steered_base_of_each_round_has_the_reward_of_the_round_before() -> None:
    seen: list[torch.Tensor] = []
    x_t, t = torch.randn(2, *AGENT.event_shape), torch.tensor([0, 3])

    def steer(reward: RelativeReward) -> GuidedPlanner:
        seen.append(reward(x_t, t).detach())
        return GuidedPlanner(AGENT, reward)

    extractor = extracted()
    refine(extractor, DATA, n_rounds=2, total_timesteps=3, rounds=SMALL, steer=steer)
    assert torch.equal(seen[0], extracted().reward(x_t, t)) and not torch.equal(seen[0], seen[1])


def test_other_models_and_numbers_are_refused() -> None:
    mixtures = RewardExtractor(exact(PATHS["vp"]), exact(PATHS["vp"]), window_kwargs={"width": 8}, seed=0)
    with pytest.raises(ValueError, match="compares a GaussianMixtureModel, wanted two DiffusionAgent"):
        refine(mixtures, DATA)
    with pytest.raises(ValueError, match="n_rounds is -1"):
        refine(extracted(), DATA, n_rounds=-1)
    with pytest.raises(ValueError, match="n_plans is 1"):
        Rounds(n_plans=1)
