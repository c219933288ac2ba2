"""What agents and rewards are given while they act: a finite answer, or one ``ValueError`` that names the argument."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from fuzz.archives import SMALL
from small import DATASET, make_agent

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


STATES: dict[str, Callable[[Any, Any], Any]] = {
    "NaN plans": lambda plans, age: (np.full_like(plans, np.nan), age),
    "infinite plans": lambda plans, age: (np.full_like(plans, np.inf), age),
    "lists": lambda plans, age: (plans.tolist(), age.tolist()),
    "a list of lists": lambda plans, age: [plans.tolist(), age],
    "plans alone": lambda plans, age: (plans,),
    "three things": lambda plans, age: (plans, age, age),
    "an array": lambda plans, age: plans,
    "texts": lambda plans, age: (np.full(plans.shape, "x"), age),
    "complex plans": lambda plans, age: (plans.astype(np.complex64), age),
    "objects": lambda plans, age: (plans.astype(object), age),
    "NaN ages": lambda plans, age: (plans, np.full(len(age), np.nan)),
    "ages that are texts": lambda plans, age: (plans, np.array(["1"] * len(age))),
    "ages far below zero": lambda plans, age: (plans, np.full(len(age), -(10**9))),
    "ages of another width": lambda plans, age: (plans, age[:, None]),
}


@pytest.mark.parametrize("what", STATES)
def test_states_of_something_else_are_refused_or_acted_upon(what: str) -> None:
    observations = DATASET.observations[:2]
    for agent in agents():
        _, (plans, age) = agent.predict(observations, deterministic=True)
        try:
            action, _ = agent.predict(observations, STATES[what](plans, age), deterministic=True)
        except ValueError as error:
            assert str(error).isprintable() and "state" in str(error)
        else:
            assert action.shape == (2, 2) and np.isfinite(action).all()
            assert what not in ("NaN plans", "NaN ages", "complex plans")


@pytest.mark.parametrize("levels", [[], [-1], [10**9], [6], [1.5], ["a"], [None], [True], [np.nan], 3, [[0]]])
def test_levels_that_there_are_not_are_refused(levels: Any) -> None:
    reward = small_reward()
    for arrays in ((DATASET.observations[:3], DATASET.actions[:3]),
                   (DATASET.observations[:4][None], DATASET.actions[:4][None])):  # fmt: skip
        with pytest.raises(ValueError, match="levels"):
            reward.predict(*arrays, levels=levels)


@cache
def small_reward() -> RelativeReward:
    agent = agents()[0]
    small = SMALL["policy_kwargs"]
    return RelativeReward.for_model(agent, window_kwargs=small, step_kwargs=small)
