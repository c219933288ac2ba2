"""Pictures as environments draw them, and environments that have to be made so that they draw."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers.agents import Drift, make_agent
from stable_baselines3.common.vec_env import DummyVecEnv
from test_video import Odd, Still, read

from rrpolicy.data.collect import collect
from rrpolicy.envs import make_point_maze
from rrpolicy.evaluation import MAX_EPISODE_STEPS
from rrpolicy.evaluation.video import record_video
from rrpolicy.experiments import Task

gym.register("Drift-v0", entry_point=Drift)


class Blind(gym.Env):
    """Takes no render mode and draws nothing."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(1, np.float32), 0.0, True, False, {}


gym.register("Blind-v0", entry_point=Blind)


class Drawing(Odd):
    """Draws what it is told, one after the other."""

    def __init__(self, *pictures: Any) -> None:
        super().__init__()
        self.pictures = pictures
        self.n = 0

    def render(self) -> Any:  # type: ignore[override]
        self.n += 1
        return self.pictures[(self.n - 1) % len(self.pictures)]


COLOUR = np.zeros((32, 48, 3), np.uint8)
COLOUR[:, :24, 0] = 255  # half red, half black
GREY = np.where(np.arange(48) < 24, 200, 20) * np.ones((32, 1), int)
OPAQUE = np.full((32, 48, 1), 255, np.uint8)


@pytest.mark.parametrize(
    ("drawn", "left", "right"),
    [
        (COLOUR, (255, 0, 0), (0, 0, 0)),
        (COLOUR / 255, (255, 0, 0), (0, 0, 0)),
        ((COLOUR / 255).astype(np.float32), (255, 0, 0), (0, 0, 0)),
        (COLOUR.astype(np.int64), (255, 0, 0), (0, 0, 0)),
        (COLOUR > 0, (255, 0, 0), (0, 0, 0)),
        (np.concatenate([COLOUR, OPAQUE], axis=2), (255, 0, 0), (0, 0, 0)),
        (np.concatenate([COLOUR, 0 * OPAQUE], axis=2), (255, 255, 255), (255, 255, 255)),
        (GREY.astype(np.uint8), (200, 200, 200), (20, 20, 20)),
        (GREY[..., None].astype(np.uint8), (200, 200, 200), (20, 20, 20)),
        (GREY / 255, (200, 200, 200), (20, 20, 20)),
        (np.asfortranarray(COLOUR), (255, 0, 0), (0, 0, 0)),
    ],
)
def test_pictures_of_every_kind_are_what_they_show(drawn: Any, left: Any, right: Any, tmp_path: Path) -> None:
    info = record_video(Still(1), Drawing(drawn), tmp_path / "a.mp4", n_steps=4)
    metadata, pictures = read(info.path)
    assert metadata["size"] == (48, 32) and info.n_frames == len(pictures) == 5
    for picture in pictures:
        assert np.abs(picture[16, 8].astype(int) - left).max() < 12
        assert np.abs(picture[16, 40].astype(int) - right).max() < 12


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ([COLOUR.astype(np.float64)], r"shape \(32, 48, 3\) and dtype float64 from 0\.0 to 255\.0, wanted a picture"),
        ([COLOUR / 255 - 1], r"from -1\.0 to 0\.0"),
        ([np.full((32, 48, 3), np.nan)], "from nan to nan"),
        ([COLOUR.astype(int) * 2], r"dtype int64 from 0 to 510"),
        ([np.moveaxis(COLOUR, 2, 0)], r"shape \(3, 32, 48\)"),
        ([np.zeros((32, 48, 2), np.uint8)], r"shape \(32, 48, 2\)"),
        ([np.zeros((1, 32, 48, 3), np.uint8)], r"shape \(1, 32, 48, 3\)"),
        ([None], "gave a NoneType"),
        ([[COLOUR]], "gave a list"),
        (["#"], "gave a str"),
        ([np.zeros((32, 0, 3), np.uint8)], r"shape \(32, 0, 3\)"),
        ([np.zeros((1, 48, 3), np.uint8)], "at least 2 pixels a side"),
        ([COLOUR, COLOUR, COLOUR[:, :40]], r"picture 2 has shape \(32, 40, 3\), the first had \(32, 48, 3\)"),
    ],
)
def test_what_is_no_picture_is_refused(drawn: list[Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        record_video(Still(1), Drawing(*drawn), tmp_path / "a.mp4", n_steps=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "env", ["Drift-v0", Drift, partial(gym.make, "Drift-v0"), lambda render_mode=None: Drift(render_mode=render_mode)]
)
def test_environments_that_are_made_here_are_made_to_draw(env: Any, tmp_path: Path) -> None:
    info = record_video(Still(2), env, tmp_path / "a.mp4")
    assert info.renderer == "environment" and info.n_frames == len(read(info.path)[1]) == 11


def test_tasks_make_environments_that_draw(tmp_path: Path) -> None:
    assert record_video(Still(2), Task("Drift-v0").make, tmp_path / "a.mp4").n_frames == 11


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("Blind-v0", "env 'Blind-v0' cannot be made with render_mode 'rgb_array'"),
        (Blind, "render_mode 'rgb_array' to draw itself, got None"),
        (lambda: Drift(), "render_mode 'rgb_array' to draw itself, got None"),
        (Drift(), "render_mode 'rgb_array' to draw itself, got None"),
        ("Nowhere-v0", "env 'Nowhere-v0' cannot be made: .*doesn't exist"),
        (DummyVecEnv([Drift]), "env must be an environment, its id or a function"),
    ],
)
def test_what_cannot_draw_itself_is_told_how(env: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        record_video(Still(2), env, tmp_path / "a.mp4")


def test_a_missing_library_is_named_in_one_line(tmp_path: Path) -> None:
    class Missing(Odd):
        def render(self) -> Any:  # type: ignore[override]
            raise gym.error.DependencyNotInstalled("pygame is not installed")

    with pytest.raises(ValueError, match="cannot draw itself: pygame is not installed"):
        record_video(Still(1), Missing, tmp_path / "a.mp4", n_steps=2)


def test_the_users_own_environment_stays_open(tmp_path: Path) -> None:
    class Closing(Odd):
        closed = False

        def close(self) -> None:
            self.closed = True

    env = Closing()
    with pytest.raises(ValueError, match="one and the same environment several times"):
        record_video(Still(1), lambda: env, tmp_path / "a.mp4", n_steps=2)
    assert record_video(Still(1), env, tmp_path / "a.mp4", n_steps=2).n_frames == 3 and not env.closed


def test_an_episode_without_an_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EPISODE_STEPS == 100_000
    monkeypatch.setattr("rrpolicy.evaluation.video.MAX_EPISODE_STEPS", 6)
    with pytest.raises(ValueError, match="has not ended after 6 steps: wanted n_steps"):
        record_video(Still(1), Odd, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == [] and record_video(Still(1), Odd, tmp_path / "a.mp4", 8).n_frames == 9


class Reusing(gym.ObservationWrapper):
    """Gives the same array each time."""

    buffer = np.zeros(4)

    def observation(self, observation: Any) -> Any:
        self.buffer[:] = observation
        return self.buffer


def test_the_trail_over_a_maze_is_where_the_ball_was(tmp_path: Path) -> None:
    class Push:
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return np.ones((len(observation), 2), np.float32), None

    maze = make_point_maze(goal=(3, 1), max_episode_steps=30)
    fresh, reused = (
        read(record_video(Push(), env, tmp_path / "a.mp4", size=96).path)[1] for env in (maze, Reusing(maze))
    )
    assert all(np.array_equal(one, other) for one, other in zip(fresh, reused, strict=True))
    assert not np.array_equal(fresh[0], fresh[-1])


def test_normalised_observations_are_refused(tmp_path: Path) -> None:
    env = gym.wrappers.NormalizeObservation(Drift(render_mode="rgb_array"))
    with pytest.raises(ValueError, match="wrapped in NormalizeObservation"):
        record_video(make_agent(), env, tmp_path / "a.mp4")


def test_agents_that_draw_from_global_generators_are_filmed_alike(tmp_path: Path) -> None:
    acted: list[float] = []

    class Whim(Still):
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            acted.append(float(np.random.rand()))
            return np.zeros((len(observation), 1), np.float32), None

    for _ in range(2):
        record_video(Whim(1), Odd, tmp_path / "a.mp4", n_steps=3, seed=5)
    assert acted[:3] == acted[3:] and len(set(acted)) == 3
    collect(Whim(1), Odd(), 3, seed=5)
    assert acted[6:] == acted[:3]
