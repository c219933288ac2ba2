"""The real PointMaze as the library offers it: goals in cells, flat observations, seeds, and other people's tools."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder

from rrpolicy.envs import MazeGeometry, WaypointController, make_point_maze
from rrpolicy.envs.point_maze import SUCCESS_RADIUS

PLUS = ["#####", "##.##", "#...#", "##.##", "#####"]
ROOMS = "#######\n#..#..#\n#######"


def wrapper(env: gym.Env) -> Any:
    return env


def test_observations_are_flat_and_goals_stay() -> None:
    env = wrapper(make_point_maze("PointMaze_Medium-v3", goal=(4.2, 3.9)))
    assert env.observation_space.shape == (4,) and env.action_space.shape == (2,)
    assert env.maze == MazeGeometry.from_env(env)
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        assert observation in env.observation_space
        assert env.get_wrapper_attr("goal_cell") == pytest.approx([4.2, 3.9])
        assert env.maze.cell_to_xy((4.2, 3.9)) == pytest.approx(env.get_wrapper_attr("goal_xy"))
        assert not info["success"] and (observation[2:] == 0).all()


def test_goals_are_random_unless_fixed() -> None:
    env = wrapper(make_point_maze())
    assert env.goal_cell is None
    goals = [tuple(env.goal_xy) for seed in range(5) if env.reset(seed=seed)]
    assert len(set(goals)) == 5
    assert not env.maze.is_wall(goals).any()


def test_starts_cover_the_free_cells_but_the_goal() -> None:
    env = wrapper(make_point_maze(maze_map=PLUS, goal=(2, 2)))
    starts = np.array([env.reset(seed=seed)[0][:2] for seed in range(60)])
    cells = {tuple(cell) for cell in env.maze.xy_to_cell(starts).tolist()}
    assert cells == {(1, 2), (2, 1), (2, 3), (3, 2)}
    offsets = starts - env.maze.cell_to_xy(env.maze.xy_to_cell(starts))
    assert np.abs(offsets).max() <= 0.25 and offsets.std() == pytest.approx(0.25 / np.sqrt(3), rel=0.15)


def test_a_seed_fixes_the_episode() -> None:
    first, second = (make_point_maze(goal=(1, 1)) for _ in range(2))
    assert (first.reset(seed=5)[0] == second.reset(seed=5)[0]).all()
    assert (first.reset(seed=5)[0] == second.reset(seed=5)[0]).all()
    assert (first.reset()[0] == second.reset()[0]).all()
    assert (first.reset(seed=5)[0] != first.reset(seed=6)[0]).any()


def test_start_and_goal_of_one_episode() -> None:
    env = wrapper(make_point_maze(goal=(1, 1)))
    observation, info = env.reset(options={"start": (3.1, 2.8), "goal": (3, 3)})
    assert env.maze.xy_to_rowcol(observation[:2]) == pytest.approx([3.1, 2.8])
    assert env.goal_cell == pytest.approx([3, 3]) and info["success"] and info["is_success"]
    env.reset()
    assert env.goal_cell == pytest.approx([1, 1])
    with pytest.raises(ValueError, match="start must be"):
        env.reset(options={"start": (3.45, 1)})
    with pytest.raises(ValueError, match=r"goal .* wall"):
        env.reset(options={"goal": (2, 2)})
    theirs = env.reset(options={"reset_cell": np.array([3, 1])})[0]
    assert theirs.shape == (4,)


def test_success_reward_and_length() -> None:
    env = wrapper(make_point_maze(goal=(1, 1.2)))
    observation, _ = env.reset(seed=1)
    controller, rng, waypoint = WaypointController(env.maze), np.random.default_rng(0), observation[None, :2]
    steps = 0
    for _ in range(400):
        waypoint = controller.advance(observation[None, :2], waypoint, env.goal_xy[None], rng)
        action = controller.action(observation[None], waypoint)[0].astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        near = np.linalg.norm(observation[:2] - env.goal_xy) <= SUCCESS_RADIUS
        assert info["success"] == info["is_success"] == near == bool(reward)
        assert not terminated
        steps += 1
        if truncated:
            break
    assert steps == 300 and near


@pytest.mark.parametrize(("side", "steps"), [(5, 300), (8, 600), (9, 800)])
def test_length_grows_with_the_maze(side: int, steps: int) -> None:
    rows = ["#" * side, *["#" + "." * (side - 2) + "#"] * 2, "#" * side]
    env = make_point_maze(maze_map=rows)
    assert env.spec is not None and env.spec.max_episode_steps == steps
    assert make_point_maze(maze_map=rows, max_episode_steps=7).spec.max_episode_steps == 7  # type: ignore[union-attr]


def test_a_maze_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "plus.txt").write_text("\n".join(PLUS))
    assert wrapper(make_point_maze(maze_map=str(tmp_path / "plus.txt"))).maze == MazeGeometry(tuple(PLUS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "PointMaze_Nowhere-v3"}, "env_id must be one of .*PointMaze_UMaze-v3.*'PointMaze_Nowhere-v3'"),
        ({"env_id": "CartPole-v1"}, "env_id must be one of"),
        ({"goal": (2, 2)}, r"goal \(2, 2\) lies in a wall(.|\n)*###\.#"),
        ({"goal": (1, 7)}, r"goal \(1, 7\) lies outside the maze of 5 rows and 5 columns"),
        ({"goal": "1,1"}, "goal must be two finite numbers"),
        ({"maze_map": ["####", "#.x#", "####"]}, "row 1, column 2"),
        ({"maze_map": ["###", "#.#", "###"]}, "must leave a start and a goal"),
        ({"maze_map": ["####", "#cg#", "####"]}, "must leave a start and a goal"),
        ({"maze_map": ["####", "#gg#", "####"]}, "must leave a start and a goal"),
        ({"maze_map": ["#####", "#r.##", "#####"], "goal": (1, 1)}, "joined to a free start cell"),
        ({"goal": (1, 1), "reset_target": True}, "reset_target must be False"),
        ({"render_mode": "human"}, "render_mode must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        make_point_maze(**arguments)
    assert error.type is ValueError


def test_starts_are_in_the_room_of_the_goal() -> None:
    env = wrapper(make_point_maze(maze_map=ROOMS, goal=(1, 2)))
    assert all(env.maze.xy_to_cell(env.reset(seed=seed)[0][:2]).tolist() == [1, 1] for seed in range(10))


def test_marks_choose_start_and_goal() -> None:
    env = wrapper(make_point_maze(maze_map=["######", "#r..g#", "######"]))
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        assert env.maze.xy_to_cell([observation[:2], env.goal_xy]).tolist() == [[1, 1], [1, 4]]


@pytest.mark.filterwarnings("ignore:.*WARN:UserWarning")
def test_gymnasium_accepts_it() -> None:
    env = make_point_maze(goal=(1, 1), render_mode="rgb_array")
    check_env(env)
    assert env.spec is not None
    again = wrapper(env.spec.make())
    assert again.goal_cell == pytest.approx([1, 1]) and again.render_mode == "rgb_array"


def test_no_files_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # of its own: other tests make mazes at the same time
    make_point_maze().close()
    assert not list(tmp_path.iterdir())


def test_vectorised_environments() -> None:
    makers = [functools.partial(make_point_maze, goal=(1, 1))] * 3
    theirs, ours = gym.vector.SyncVectorEnv(makers), DummyVecEnv(makers)
    ours.seed(4)
    assert (theirs.reset(seed=4)[0] == ours.reset()).all()
    assert np.array_equal(theirs.get_attr("goal_xy"), ours.get_attr("goal_xy"))
    actions = np.ones((3, 2), dtype=np.float32)
    assert (theirs.step(actions)[0] == ours.step(actions)[0]).all()


def test_pictures_show_ball_and_trail() -> None:
    env = wrapper(make_point_maze(goal=(1, 1), render_mode="rgb_array", render_size=120))
    env.reset(seed=0, options={"start": (3, 1)})
    empty = env.render()
    for _ in range(40):
        env.step(np.array([1.0, 0.0], dtype=np.float32))
    moved = env.render()
    assert empty.shape == (120, 120, 3) and empty.dtype == np.uint8
    start = slice(24 * 3 + 10, 24 * 3 + 14), slice(24 + 10, 24 + 14)
    assert (moved[start] != empty[start]).any()
    env.reset(options={"start": (3, 1)})
    assert (env.render() == empty).all()
    assert make_point_maze().render() is None


@pytest.mark.filterwarnings("ignore:.*Overwriting existing videos:UserWarning")
def test_video_recorders_run_unmodified(tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    settings = {"goal": (1, 1), "render_mode": "rgb_array", "render_size": 64, "max_episode_steps": 5}
    maker = functools.partial(make_point_maze, **settings)
    recorder = gym.wrappers.RecordVideo(maker(), str(tmp_path), episode_trigger=lambda episode: True)
    recorder.reset(seed=0)
    while not recorder.step(recorder.action_space.sample())[3]:
        pass
    recorder.close()
    videos = VecVideoRecorder(DummyVecEnv([maker] * 2), str(tmp_path), lambda step: step == 0, video_length=4)
    videos.reset()
    for _ in range(6):
        videos.step(np.zeros((2, 2), dtype=np.float32))
    videos.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["rl-video-episode-0.mp4", "rl-video-step-0-to-step-4.mp4"]
