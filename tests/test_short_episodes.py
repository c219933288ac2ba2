"""Episodes that are shorter than a window: what the error advises works for whoever raises it."""

from typing import Any

import pytest
from helpers.agents import NARROW, Drift, make_agent, make_dataset

from rrpolicy import DiffusionAgent, RewardExtractor
from rrpolicy.rewards.discriminator import DiscriminatorReward

SHORT = make_dataset(length=5)  # horizon 8
LONG = make_dataset()


def test_an_agent_is_to_pad_or_to_look_less_far() -> None:
    with pytest.raises(ValueError, match=r"spans 8 environment steps .*longest episode has 5: make the agent with"):
        make_agent(padding=False).learn(SHORT, 1)
    make_agent(padding=True).learn(SHORT, 1)
    make_agent(padding=False, horizon=5, n_action_steps=2).learn(SHORT, 1)


@pytest.mark.parametrize("data", [SHORT, [LONG, SHORT]])
def test_an_extractor_is_to_ask_the_models_themselves(data: Any) -> None:
    agents = [make_agent(seed=seed).learn(SHORT, 1) for seed in (0, 1)]
    extractor = RewardExtractor(*agents, buffer_size=32, batch_size=8, window_kwargs=NARROW, step_kwargs=NARROW)
    with pytest.raises(ValueError, match="has 5: compare the models at their own samples, data=None") as told:
        extractor.learn(data, 1)
    assert ("longest episode of dataset 1 has" in str(told.value)) == isinstance(data, list)
    extractor.learn(None, 1)
    shorter = [make_agent(seed=seed, horizon=5, n_action_steps=2).learn(SHORT, 1) for seed in (0, 1)]
    RewardExtractor(*shorter, buffer_size=32, batch_size=8, window_kwargs=NARROW, step_kwargs=NARROW).learn(data, 1)


def test_so_is_a_discriminator() -> None:
    agents = [make_agent(seed=seed).learn(SHORT, 1) for seed in (0, 1)]
    discriminator = DiscriminatorReward(*agents, batch_size=8, window_kwargs=NARROW)
    with pytest.raises(ValueError, match="at their own samples, data=None"):
        discriminator.learn([LONG, SHORT], 1)
    discriminator.learn(None, 1)


def test_inverse_dynamics_need_rows_apart_whatever_the_padding() -> None:
    def learned(stride: int) -> DiffusionAgent:
        agent = make_agent(env=Drift(), controller="inverse-dynamics", stride=stride, padding=True)
        return agent.learn(SHORT, 1)

    with pytest.raises(ValueError, match="from rows 5 steps apart, make the stride smaller"):
        learned(5)
    learned(4)
