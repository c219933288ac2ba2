"""What agents and rewards are given while they act: a finite answer, or one ``ValueError`` that names the argument."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from fuzz.archives import SMALL
from helpers.agents import DATASET, make_agent

from rrpolicy import DiffusionAgent, RelativeReward


@cache
def agents() -> list[DiffusionAgent]:
    return [make_agent(**SMALL), make_agent(**SMALL, warm_start=3)]


@pytest.mark.parametrize("value", [1e10, 1e20, -1e20, 1e30, 1e38, -3.4e38])
def test_actions_are_finite_however_large_an_observation_is(value: float) -> None:
    for agent in agents():
        for column in range(4):
            observation = DATASET.observations[0].astype(np.float64)
            observation[column] = value
            try:
                action, _ = agent.predict(observation, deterministic=True)
            except ValueError as error:
                assert str(error).isprintable() and "observation" in str(error)
            else:
                assert np.isfinite(action).all(), (column, action)


STATES: dict[str, Callable[[Any], Any]] = {
    "NaN plans": lambda state: state._replace(plans=np.full_like(state.plans, np.nan)),
    "infinite plans": lambda state: state._replace(plans=np.full_like(state.plans, np.inf)),
    "lists": lambda state: tuple(array.tolist() for array in state),
    "a list of lists": lambda state: [state.plans.tolist(), *state[1:]],
    "plans alone": lambda state: (state.plans,),
    "plans and ages": lambda state: (state.plans, state.age),
    "five things": lambda state: (*state, state.age),
    "an array": lambda state: state.plans,
    "texts": lambda state: state._replace(plans=np.full(state.plans.shape, "x")),
    "complex plans": lambda state: state._replace(plans=state.plans.astype(np.complex64)),
    "objects": lambda state: state._replace(plans=state.plans.astype(object)),
    "NaN ages": lambda state: state._replace(age=np.full(len(state.age), np.nan)),
    "ages that are texts": lambda state: state._replace(age=np.array(["1"] * len(state.age))),
    "ages far below zero": lambda state: state._replace(age=np.full(len(state.age), -(10**9))),
    "ages of another width": lambda state: state._replace(age=state.age[:, None]),
    "negative noise": lambda state: state._replace(noise=-1 - state.noise),
    "noise that is no number": lambda state: state._replace(noise=state.noise * np.nan),
    "noise of another width": lambda state: state._replace(noise=state.noise[:, :1]),
    "a history that there is not": lambda state: state._replace(history=np.zeros((2, 1, 4), np.float32)),
}


@pytest.mark.parametrize("what", STATES)
def test_states_of_something_else_are_refused(what: str) -> None:
    observations = DATASET.observations[:2]
    for agent in agents():
        _, state = agent.predict(observations, deterministic=True)
        with pytest.raises(ValueError, match=r"^state ") as caught:
            agent.predict(observations, STATES[what](state), deterministic=True)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("levels", [[], [-1], [10**9], [6], [1.5], ["a"], [None], [True], [np.nan], 3, [[0]]])
def test_levels_that_there_are_not_are_refused(levels: Any) -> None:
    reward = small_reward()
    for arrays in (
        (DATASET.observations[:3], DATASET.actions[:3]),
        (DATASET.observations[:4][None], DATASET.actions[:4][None]),
    ):
        with pytest.raises(ValueError, match="levels"):
            reward.predict(*arrays, levels=levels)


@cache
def small_reward() -> RelativeReward:
    agent = agents()[0]
    small = SMALL["policy_kwargs"]
    return RelativeReward.for_model(agent, window_kwargs=small, step_kwargs=small)
