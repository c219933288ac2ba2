"""Videos are complete or absent, have the promised pictures, and show the plan that is being followed."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from helpers.agents import maze_planner

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.envs import make_point_maze
from rrpolicy.envs.render import BALL, GOAL, PLAN
from rrpolicy.evaluation.video import LINE, plan_ahead, record_side_by_side, record_video


def read(path: Path) -> tuple[dict, list[np.ndarray]]:
    """Metadata and pictures of a video."""
    reader = imageio_ffmpeg.read_frames(str(path))
    metadata = next(reader)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def has(picture: np.ndarray, colour: tuple[int, ...]) -> int:
    """Pixels of about that colour."""
    return int((np.abs(picture.astype(int) - colour).max(-1) < 40).sum())


class Still:
    """Does nothing, and may be interrupted."""

    def __init__(self, n_actions: int = 2, interrupt_at: int | None = None) -> None:
        self.n_actions = n_actions
        self.interrupt_at = interrupt_at
        self.calls = 0

    def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        return np.zeros((len(observation), self.n_actions), np.float32), None


class Odd(gym.Env):
    """Draws itself, with odd sides."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((33, 47, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def maze() -> gym.Env:
    return make_point_maze(goal=(3, 1), max_episode_steps=10)


@pytest.fixture(scope="module")
def planner(maze: gym.Env) -> DiffusionAgent:
    return maze_planner(maze, columns=(1, 0))


def test_an_episode_with_the_plan_over_the_maze(maze: gym.Env, planner: DiffusionAgent, tmp_path: Path) -> None:
    info = record_video(planner, maze, tmp_path / "new" / "video", fps=25, caption="ρ")
    assert info.path == tmp_path / "new" / "video.mp4" and info.renderer == "maze drawing"
    assert [file.name for file in info.path.parent.iterdir()] == ["video.mp4"]
    metadata, pictures = read(info.path)
    assert metadata["codec"] == "h264" and metadata["fps"] == 25 and metadata["size"] == (480, 480)
    assert info.n_frames == len(pictures) == 11  # before each of ten steps, and the end
    assert all(has(picture, PLAN) > 20 and has(picture, GOAL) > 20 for picture in pictures)
    assert maze.reset()[0].shape == (4,)  # still open


def test_without_overlay_there_is_no_plan(maze: gym.Env, planner: DiffusionAgent, tmp_path: Path) -> None:
    _, plain = read(record_video(planner, maze, tmp_path / "a.mp4", 3, overlay=False).path)
    _, full = read(record_video(planner, maze, tmp_path / "b.mp4", 3, caption="name").path)
    assert all(has(picture, PLAN) < 5 and has(picture, GOAL) > 20 for picture in plain)
    assert has(full[0][:48], (255, 255, 255)) > 100 and has(plain[0][:48], (255, 255, 255)) == 0  # the caption


def test_the_plan_ahead_loses_what_has_been_executed(planner: DiffusionAgent) -> None:
    plans = np.random.default_rng(0).normal(size=(1, 4, 2)).astype(np.float32) * 0.1
    positions = planner.planned_observations(plans[0])[:, ::-1]
    for age, first in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3), (9, 3)):
        ahead = plan_ahead(planner, (plans, np.array([age])))
        assert ahead is not None
        np.testing.assert_array_equal(ahead, positions[first:])
    assert plan_ahead(planner, None) is None and plan_ahead(Still(), (plans, np.array([1]))) is None


def test_agents_side_by_side_have_one_start(maze: gym.Env, planner: DiffusionAgent, tmp_path: Path) -> None:
    agents = {"left": Still(), "ρ": planner}
    info = record_side_by_side(agents, maze, tmp_path / "two", seed=3, size=480, steps_per_frame=2)
    metadata, pictures = read(info.path)
    assert info.path == tmp_path / "two.mp4" and info.renderer == "maze drawing"
    assert metadata["size"] == (960, 480 + LINE) and info.n_frames == len(pictures) == 6
    assert has(pictures[0][:LINE], (0, 0, 0)) > 20  # names
    left, right = ([one[LINE:, side] for one in pictures] for side in (slice(0, 480), slice(480, None)))
    assert all(has(one, PLAN) > 20 for one in right) and all(has(one, PLAN) < 5 for one in left)
    _, alone = read(record_video(Still(), maze, tmp_path / "one", 10, seed=3, steps_per_frame=2).path)
    assert np.abs(np.stack(left).astype(int) - alone).mean() < 2  # but for what encoding leaves of it
    first, other = (np.abs(one[0].astype(int) - BALL).max(axis=-1) < 40 for one in (left, right))
    assert (first & other).sum() > 20  # one start
    with pytest.raises(ValueError, match="agents is empty"):
        record_side_by_side({}, maze, tmp_path / "none")


class Counted(Odd):
    """Grows darker with each step; an action above zero ends it after two, others after five."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        self.count = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        return np.zeros(1, np.float32), 0.0, self.count == (2 if action[0] > 0 else 5), False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((64, 64, 3), 240 - 40 * self.count, np.uint8)


class Pushing(Still):
    def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return np.ones((len(observation), 1), np.float32), None


def test_one_that_is_done_stands_still(tmp_path: Path) -> None:
    agents = {"short": Pushing(), "long": Still(1)}
    info = record_side_by_side(agents, Counted, tmp_path / "two")
    _, pictures = read(info.path)
    assert info.renderer == "environment"
    for side, wanted in ((pictures, [0, 1, 2, 2, 2, 2]), ([one[:, 64:] for one in pictures], [0, 1, 2, 3, 4, 5])):
        shades = [float(one[LINE + 8 : -8, 8:56].mean()) for one in side]
        np.testing.assert_allclose(shades, [240 - 40 * count for count in wanted], atol=6)
    assert record_side_by_side({"a": Still(1)}, Counted, tmp_path / "one", n_steps=3).n_frames == 4


def test_steps_run_over_several_episodes(maze: gym.Env, tmp_path: Path) -> None:
    info = record_video(Still(), maze, tmp_path / "video.mp4", n_steps=24, size=64, seed=3)
    _, pictures = read(info.path)
    assert info.n_frames == len(pictures) == 11 + 11 + 5
    assert np.abs(pictures[0].astype(int) - pictures[12]).max() > 50  # another episode, another start
    fewer = record_video(Still(), maze, tmp_path / "video.mp4", n_steps=24, size=64, seed=3, steps_per_frame=4)
    assert fewer.n_frames == 4 + 4 + 2  # steps 0 4 8 10, then 0 2 6 10, then 0 4


def test_numbers_may_be_numpys(maze: gym.Env, tmp_path: Path) -> None:
    paths = [tmp_path / f"{kind.__name__}.mp4" for kind in (int, np.int64)]
    for kind, flag, path in zip((int, np.int64), (True, np.bool_(True)), paths, strict=True):
        numbers = {"n_steps": kind(5), "seed": kind(3), "fps": kind(7), "size": kind(64), "steps_per_frame": kind(2)}
        assert record_video(Still(), maze, path, deterministic=flag, overlay=flag, **numbers).n_frames == 4
    (metadata, one), (_, other) = map(read, paths)
    assert metadata["fps"] == 7 and np.array_equal(one, other)


def test_an_interrupted_video_leaves_what_was_there(maze: gym.Env, tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        record_video(Still(interrupt_at=6), maze, tmp_path / "video.mp4", size=64)
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_bytes() == b"old"


def test_other_simulations_are_drawn_without_a_gl_library(tmp_path: Path) -> None:
    info = record_video(Still(3), "Hopper-v5", tmp_path / "hopper.mp4", n_steps=4, size=96)
    assert info.renderer == "scene drawing" and info.n_frames == 5
    _, pictures = read(info.path)
    assert pictures[0].shape == (96, 96, 3) and len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 50


def test_the_rest_draw_themselves(tmp_path: Path) -> None:
    info = record_video(Still(1), Odd, tmp_path / "odd.mp4", n_steps=2)
    metadata, pictures = read(info.path)
    assert info.renderer == "environment" and metadata["size"] == (46, 32) and len(pictures) == 3
    assert np.abs(pictures[0].astype(int) - 200).max() < 10


@pytest.mark.parametrize(
    ("env", "arguments", "message"),
    [
        (Odd, {"n_steps": 0}, "n_steps is 0"),
        (Odd, {"n_steps": 2.5}, "n_steps is 2.5, it must be a whole number of at least 1"),
        (Odd, {"n_steps": float("nan")}, "n_steps is nan, it must be a whole number"),
        (Odd, {"fps": 0}, "fps is 0"),
        (Odd, {"fps": float("nan")}, "fps is nan, it must be a finite number of at least 1"),
        (Odd, {"fps": "30"}, "fps is '30', it must be a number"),
        (Odd, {"steps_per_frame": 1.5}, "steps_per_frame is 1.5, it must be a whole number"),
        (Odd, {"size": 64.0}, "size is 64.0, it must be a whole number"),
        (Odd, {"seed": 1.5}, "seed is 1.5, it must be a whole number"),
        (Odd, {"seed": -1}, "seed is -1, it must be a whole number of at least 0"),
        (Odd, {"deterministic": "False"}, "deterministic is 'False', it must be True or False"),
        (Odd, {"overlay": "False"}, "overlay is 'False', it must be True or False"),
        (Odd, {"steps_per_frame": -1}, "steps_per_frame is -1"),
        (Odd, {"size": 33}, "size is 33"),
        (Odd, {"path": "video.avi"}, r"path must end in \.mp4"),
        (Odd, {"renderer": "maze drawing"}, "env must be made by make_point_maze"),
        (Odd, {"renderer": "scene drawing"}, "env must be a MuJoCo environment"),
        (Odd, {"renderer": "crayon"}, "renderer must be None or one of"),
        (lambda: Odd(None), {}, "render_mode 'rgb_array' to draw itself, got None"),
    ],
)
def test_bad_arguments_are_named(env: Any, arguments: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / arguments.pop("path", "video.mp4")
    with pytest.raises(ValueError, match=message):
        record_video(Still(1), env, path, **arguments)
    assert list(tmp_path.iterdir()) == []
