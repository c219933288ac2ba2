"""Stochastic planning is seeded: one seed gives one evaluation, and touches nothing else."""

import numpy as np
import pytest
from helpers.agents import DATASET, KINDS, Drift, agent_of_kind, make_agent, same_tensors

from rrpolicy import GuidedPlanner, RelativeReward, evaluate
from rrpolicy.agents.blended_planner import BlendedPlanner

OBSERVATIONS = DATASET.observations[::17][:6]


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_planning_is_seeded(kind: str) -> None:
    agent = agent_of_kind(kind)
    for planner in (agent, GuidedPlanner(agent, RelativeReward.for_model(agent)), BlendedPlanner(agent, agent, 0.5)):
        drawn = []
        for seed in (3, 3, 4, np.int64(3)):
            planner.set_random_seed(seed)
            drawn.append([planner.predict(OBSERVATIONS)[1][0] for _ in range(2)])
        np.testing.assert_array_equal(drawn[0], drawn[1])
        np.testing.assert_array_equal(drawn[0], drawn[3])
        assert not np.array_equal(drawn[0], drawn[2]) and not np.array_equal(drawn[0][0], drawn[0][1])


def test_a_stochastic_evaluation_is_repeatable() -> None:
    agent = make_agent(n_action_steps=2)
    planner = GuidedPlanner(agent, RelativeReward.for_model(agent))
    for policy in (agent, planner):
        returns = [evaluate(policy, Drift, 3, seed=seed, deterministic=False).returns for seed in (1, 1, 2)]
        np.testing.assert_array_equal(returns[0], returns[1])
        assert not np.array_equal(returns[0], returns[2])


def test_a_seed_changes_neither_deterministic_planning_nor_training() -> None:
    agents = [make_agent().learn(DATASET, 1) for _ in range(2)]
    agents[0].set_random_seed(7)
    agents[0].set_random_seed(None)
    actions = [agent.predict(OBSERVATIONS, deterministic=True)[0] for agent in agents]
    np.testing.assert_array_equal(*actions)
    weights = [agent.learn(DATASET, 2, reset_num_timesteps=False).get_parameters() for agent in agents]
    assert same_tensors(*weights)
    with pytest.raises(ValueError, match="seed is '7', it must be a whole number"):
        agents[0].set_random_seed("7")  # type: ignore[arg-type]
