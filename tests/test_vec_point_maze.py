"""The vectorised PointMaze against the real one: observations, true rewards, starts, time limit, what SB3 needs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rrpolicy.envs import MazeGeometry, make_point_maze
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv, start_places

TINY = ["####", "#..#", "####"]
MARKED = ["######", "#r.cg#", "######"]


@pytest.mark.parametrize("reward_type", ["dense", "sparse"])
@pytest.mark.parametrize("action_repeat", [1, 5])
def test_episodes_equal_those_of_the_real_environment(reward_type: Any, action_repeat: int) -> None:
    goal, limit = (1, 2), 143  # the last action is cut short by the time limit
    venv = PointMazeVecEnv(TINY, goal, 3, limit, action_repeat, reward_type, seed=1)
    assert venv.reset().shape == (3, 4)
    real = make_point_maze(maze_map=TINY, goal=goal, reward_type=reward_type, max_episode_steps=limit)
    assert real.observation_space == venv.observation_space and real.action_space == venv.action_space
    start = real.get_wrapper_attr("maze").xy_to_rowcol(venv.get_attr("_states")[1][1, :2])
    real.reset(seed=0, options={"start": start})
    rng, successes, done = np.random.default_rng(0), set(), False
    while not done:
        actions = np.clip(rng.normal([0.15, 0.0], 1.0, (3, 2)), -1.5, 1.5)
        following, rewards, dones, infos = venv.step(actions)
        wanted = 0.0
        for _ in range(action_repeat):
            observation, reward, terminated, truncated, info = real.step(np.clip(actions[1], -1, 1))
            wanted += reward
            if truncated:
                break
        done = bool(dones[1])
        assert done == truncated == infos[1]["TimeLimit.truncated"] and not terminated
        reached = infos[1]["terminal_observation"] if done else following[1]
        assert reached == pytest.approx(observation, abs=1e-5)
        assert rewards[1] == pytest.approx(wanted, abs=1e-4)
        assert infos[1]["success"] == infos[1]["is_success"] == info["success"]
        successes.add(info["success"])
    assert successes == {False, True}
    assert np.abs(following[:, 2:]).max() == 0.0  # the next episodes have begun, at rest
    real.close()


@pytest.mark.parametrize(("maze", "goal"), [(TINY, (1, 1)), (MARKED, (1, 4)), (None, (2, 3)), (None, (2.8, 1.2))])
def test_starts_are_those_of_the_real_environment(maze: Any, goal: tuple[float, float]) -> None:
    real = make_point_maze(maze_map=maze, goal=goal)
    geometry: MazeGeometry = real.get_wrapper_attr("maze")
    seen = np.array([real.reset(seed=seed)[0] for seed in range(100)])
    ours = PointMazeVecEnv(geometry, goal, 400, seed=0).reset()
    cells = [np.unique(geometry.xy_to_cell(states[:, :2]), axis=0) for states in (seen, ours)]
    assert np.array_equal(*cells)
    assert np.array_equal(cells[1], np.unique(geometry.xy_to_cell(start_places(geometry, goal)), axis=0))
    for states in (seen, ours):
        offsets = np.abs(states[:, :2] - geometry.cell_to_xy(geometry.xy_to_cell(states[:, :2])))
        assert 0.2 < offsets.max() <= 0.25
        assert not states[:, 2:].any()
    real.close()


def test_a_seed_makes_it_reproducible() -> None:
    one, other = (PointMazeVecEnv(TINY, (1, 2), 2, seed=seed) for seed in (3, 4))
    first = one.reset()
    assert not np.array_equal(first, one.reset()) and not np.array_equal(first, other.reset())
    for venv in (one, other):
        venv.seed(5)
    assert np.array_equal(one.reset(), other.reset())


def test_attributes_are_shared_by_all_balls() -> None:
    venv = PointMazeVecEnv(TINY, (1, 2), 3)
    venv.set_attr("action_repeat", 2)
    assert venv.get_attr("action_repeat", [0, 2]) == [2, 2]
    assert len(venv.env_method("reset", indices=1)) == 1
    assert venv.env_is_wrapped(object) == [False] * 3 and venv.get_images() == [None] * 3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="indices must be None"):
        venv.set_attr("action_repeat", 1, 0)
    venv.close()


FAULTS: list[tuple[Callable[[], object], str]] = [
    (lambda: PointMazeVecEnv(TINY, (1, 2), 0), "n_envs is 0"),
    (lambda: PointMazeVecEnv(TINY, (1, 2), action_repeat=0), "action_repeat is 0"),
    (lambda: PointMazeVecEnv(TINY, (1, 2), max_episode_steps=0), "max_episode_steps is 0"),
    (lambda: PointMazeVecEnv(TINY, (1, 2), reward_type="rich"), "reward_type must be one of"),  # type: ignore[arg-type]
    (lambda: PointMazeVecEnv(TINY, (0, 2)), "lies in a wall"),
    (lambda: PointMazeVecEnv(["###", "#.#", "###"], (1, 1)), "joined to a free start"),
]


@pytest.mark.parametrize(("call", "said"), FAULTS)
def test_bad_arguments_are_named(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
