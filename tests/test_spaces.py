"""Spaces become vectors by one rule; what cannot become one is refused with what would help."""

import json
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import pytest
from gymnasium import spaces
from helpers.agents import Drift, make_agent
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from rrpolicy.common.boxes import box_from_dict, box_to_dict
from rrpolicy.common.spaces import (
    FlatSpaces,
    flat_box,
    flattened,
    flattened_box,
    refuse_normalised,
    unflattened,
    unnormalised,
)
from rrpolicy.evaluation import evaluate

gym.register_envs(gymnasium_robotics)
LINE = spaces.Box(-1.0, np.array([1.0, 2.0], np.float32), dtype=np.float32)
GRID = spaces.Box(0.0, 1.0, (2, 3), np.float64)
IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
GOALS = spaces.Dict({"achieved_goal": LINE, "desired_goal": LINE, "observation": spaces.Box(-5, 5, (4,), np.float64)})


def test_boxes_are_read_row_by_row_and_dictionaries_in_their_order() -> None:
    space = spaces.Dict(OrderedDict(z=LINE, a=spaces.Tuple([GRID, spaces.Box(0, 9, (), np.float32)])))
    box = flattened_box(space, "observation")
    assert box.shape == (9,) and box.dtype == np.float64
    assert box.high.tolist() == [1, 2, *[1] * 6, 9] and box.low.tolist() == [-1, -1, *[0] * 7]
    element = space.sample()
    vector = flattened(space, element)
    assert box.contains(vector)
    assert vector.tolist() == [*element["z"], *element["a"][0].ravel(), float(element["a"][1])]
    again = unflattened(space, vector)
    assert np.array_equal(again["a"][0], element["a"][0]) and np.array_equal(again["z"], element["z"])
    assert np.array_equal(vector, spaces.flatten(space, element))  # gymnasium's own order


def test_a_batch_is_flattened_row_by_row() -> None:
    goal = np.ones((5, 2))
    batch = {"achieved_goal": goal, "desired_goal": goal, "observation": np.arange(20).reshape(5, 4)}
    assert np.array_equal(flattened(GOALS, batch), np.arange(20).reshape(5, 4))
    grids = np.arange(30.0).reshape(5, 2, 3)
    flat = flattened(GRID, grids)
    assert np.array_equal(flat, grids.reshape(5, 6))
    flat[:] = 0
    assert grids.max() == 29  # an array of its own


def test_of_goal_conditioned_dictionaries_the_observation_is_taken_as_readers_of_data_do() -> None:
    assert flattened_box(GOALS, "observation").shape == (4,)
    more = spaces.Dict({**GOALS.spaces, "camera_angle": LINE})  # no longer that convention: nothing is left out
    assert flattened_box(more, "observation").shape == (10,)
    assert flattened_box(spaces.Dict({"observation": LINE}), "observation").shape == (2,)
    env = FlatSpaces(gym.make("PointMaze_UMaze-v3", max_episode_steps=3))
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and observation.shape == (4,)
    env.close()


@pytest.mark.parametrize(
    ("space", "name", "words"),
    [
        (spaces.Discrete(3), "action", "Discrete actions are not supported, diffusion plans are continuous"),
        (spaces.MultiDiscrete([2, 3]), "action", "MultiDiscrete actions are not supported"),
        (spaces.MultiBinary(2), "action", "MultiBinary actions are not supported"),
        (spaces.Discrete(16), "observation", "one-hot ones by gymnasium.wrappers.FlattenObservation"),
        (IMAGE, "observation", "images are not supported, encode them"),
        (spaces.Dict({"camera": IMAGE, "joints": LINE}), "observation", "images are not supported"),
        (spaces.Dict({"grip": spaces.Discrete(2), "arm": LINE}), "action", "Discrete actions are not supported"),
        (spaces.Text(5), "observation", "write a wrapper that makes a Box of a Text"),
        (spaces.Dict({}), "observation", "write a wrapper that makes a Box of a Dict"),
    ],
)
def test_the_rest_is_refused_with_what_would_help(space: Any, name: str, words: str) -> None:
    for check in (flattened_box, flat_box):
        with pytest.raises(ValueError, match=f"the {name} space is .*{words}"):
            check(space, name)


def test_where_a_vector_is_needed_the_wrapper_is_named() -> None:
    assert flat_box(LINE, "observation") is LINE
    for space in (GRID, GOALS, spaces.Tuple([LINE, LINE]), spaces.Box(0, 1, (), np.float32)):
        with pytest.raises(ValueError, match=r"wrap the environment in rrpolicy\.common\.spaces\.FlatSpaces"):
            flat_box(space, "observation")


class Shapes(gym.Env):
    """Dictionaries and grids: the position moves by the action's first column, given as a grid."""

    observation_space = spaces.Dict({"grid": spaces.Box(-9, 9, (2, 1), np.float64), "more": spaces.Box(-9, 9, (2,))})
    action_space = spaces.Box(-1.0, 1.0, (2, 1), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.at, self.n = self.np_random.uniform(-1, 1, (2, 1)), 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if action.shape != (2, 1):
            raise TypeError(f"action of shape {action.shape}")
        self.at, self.n = self.at + 0.1 * action, self.n + 1
        return self._shown(), float(self.at.sum()), False, self.n == 5, {}

    def _shown(self) -> Any:
        return {"grid": self.at, "more": np.array([0.0, 3.0], np.float32)}


def test_agents_of_vectors_act_in_such_environments_one_or_many() -> None:
    agent = make_agent()
    flat = evaluate(agent, lambda: FlatSpaces(Shapes()), 4, record_observations=True)
    assert flat.observations is not None and flat.observations[0].shape == (6, 4)
    for env in (Shapes, gym.vector.SyncVectorEnv([Shapes] * 2), DummyVecEnv([Shapes] * 4)):
        assert evaluate(agent, env, 4).returns == pytest.approx(flat.returns, abs=1e-5)


def test_bounds_survive_json() -> None:
    box = spaces.Box(np.array([-np.inf, -2.0]), np.array([2.0, np.inf]), dtype=np.float64)
    assert box_from_dict(box_to_dict(box)) == box


def test_normalised_environments_are_told() -> None:
    plain = DummyVecEnv([lambda: FlatSpaces(Shapes())])
    refuse_normalised(VecNormalize(plain, norm_obs=False))  # rewards alone
    assert unnormalised(VecNormalize(plain)) is plain and unnormalised(plain) is plain
    for env in (VecMonitor(VecNormalize(plain)), gym.wrappers.NormalizeObservation(FlatSpaces(Shapes()))):
        with pytest.raises(ValueError, match=r"own units, and env is wrapped in (VecNormalize|NormalizeObservation)"):
            unnormalised(env)


@pytest.mark.parametrize("dtype", [np.uint64, np.bool_, np.longdouble])
def test_spaces_that_no_archive_can_tell_are_refused(dtype: Any) -> None:
    strange = gym.spaces.Box(0, 1, (4,), dtype)
    for name in ("observation", "action"):
        env = Drift()
        setattr(env, f"{name}_space", strange)
        with pytest.raises(ValueError, match=f"the {name} space is a Box of {np.dtype(dtype)}, wanted one of float16"):
            make_agent(env=env)


def test_the_widest_integers_are_kept() -> None:
    box = gym.spaces.Box(-(2**63), 2**63 - 1, (4,), np.int64)
    assert box_from_dict(json.loads(json.dumps(box_to_dict(box)))) == box
