"""The demo with a robot: what it leaves with a tiny zoo, its faults, and pictures of one that falls."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from helpers import robots
from helpers.program import invoke
from helpers.robots import ENV_ID, RECIPE
from PIL import Image

from rrpolicy import zoo
from rrpolicy.cli.options import recipe_for
from rrpolicy.evaluation import read_results
from rrpolicy.evaluation.video import CannotDraw
from rrpolicy.experiments import DEFAULT_RECIPE, Task
from rrpolicy.experiments.demos import Demo
from rrpolicy.experiments.locomotion.film import film, moments
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE

AGENTS = ("base", "steered", "expert")


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with robots.built_zoo(tmp_path_factory.mktemp("built") / "zoo") as folder:
        yield folder


def test_the_command_leaves_numbers_a_picture_and_videos(tmp_path: Path) -> None:
    (tmp_path / "heat_map.png").write_bytes(b"")  # of an earlier demo, in a maze
    given = ["demo", "--env", ENV_ID, "--n-episodes", "3", "--seed", "4", "--out", str(tmp_path), "--no-progress"]
    result = invoke(given)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "hero.png",
        *(f"{name}.mp4" for name in AGENTS),
    }
    rows = {(row["agent"], row["metric"]): row for row in read_results(tmp_path)}
    assert {(name, metric) for name in AGENTS for metric in ("return", "normalized_score")} <= set(rows)
    assert {row["n"] for row in rows.values()} == {3}
    assert rows["steered-base", "normalized_score"]["mean"] == pytest.approx(
        rows["steered", "normalized_score"]["mean"] - rows["base", "normalized_score"]["mean"]
    )
    assert "scene drawing (needs no OpenGL)" in result.output and "Everything is in" in result.output
    with Image.open(tmp_path / "hero.png") as hero:
        assert len(hero.convert("L").getcolors() or ()) > 50
    for name in AGENTS:
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / f"{name}.mp4"))
        assert frames > 10 and 0.3 < seconds < 0.7


def test_commands_steer_robots_by_their_own_recipe() -> None:
    assert recipe_for(Task(ENV_ID), None) == RECIPE
    assert recipe_for(Task("Ant-v5"), None) == recipe_for(None, None) == DEFAULT_RECIPE


def test_robots_act_with_noise_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    assert not Demo(Task(ENV_ID), tmp_path, RECIPE).deterministic
    assert Demo(Task(ENV_ID), tmp_path, {**RECIPE, "evaluation": {"deterministic": True}}).deterministic


def test_bad_wishes_are_refused_before_anything_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"the zoo has Hopper-v5\) or a recipe with data, env is 'Ant-v5'"):
        Demo(Task("Ant-v5"), tmp_path, DEFAULT_RECIPE).run()
    with pytest.raises(ValueError, match="or a recipe with data, env is 'Hopper-v5'"):
        Demo(Task(ENV_ID), tmp_path, DEFAULT_RECIPE, from_scratch=True).run()
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(RECIPES_VARIABLE, str(tmp_path / "recipes"))
    with pytest.raises(ValueError, match="the zoo has none"):
        Demo(Task(ENV_ID), tmp_path, DEFAULT_RECIPE).run()
    assert (tmp_path / "results.json").exists()


class Painter(gym.Env):
    """No simulation of MuJoCo: it paints itself."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, **arguments: Any) -> Any:
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        return np.full((32, 32, 3), 9, np.uint8)


def test_what_is_no_mujoco_simulation_draws_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "make", lambda self, render_mode=None: Painter(render_mode))
    strip = moments(Kicking(), Task("Painter-v0"), (0.0, 0.1))
    assert [one.travelled for one in strip] == [None, None] and strip[1].picture.shape == (32, 32, 3)
    assert film(Kicking(), Task("Painter-v0"), tmp_path / "a.mp4").n_frames > 5


def test_numbers_are_kept_where_an_environment_cannot_draw_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_pygame(self: Painter) -> Any:
        raise gym.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(Painter, "render", without_pygame)
    monkeypatch.setattr(Task, "make", lambda self, render_mode=None: Painter(render_mode))
    with pytest.raises(CannotDraw, match=r"Painter.* cannot draw itself: pygame is not installed"):
        moments(Kicking(), Task("Painter-v0"), (0.0, 0.1))
    with pytest.raises(CannotDraw, match="pygame"):
        film(Kicking(), Task("Painter-v0"), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_demo_without_pictures_has_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Task.make

    def blind(self: Task, render_mode: str | None = None) -> gym.Env:
        return Blind(make(self), render_mode)

    monkeypatch.setattr(Task, "make", blind)
    result = invoke(["demo", "--env", ENV_ID, "--n-episodes", "2", "--out", str(tmp_path), "--no-progress"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"results.json"}
    assert "warning: no pictures and no videos: " in result.stderr and "pygame is not installed" in result.stderr
    assert "steered-base" in result.stdout


class Blind(gym.Wrapper):
    """A simulation that says it is none of MuJoCo, and lacks the library to draw itself."""

    def __init__(self, env: gym.Env, mode: str | None) -> None:
        super().__init__(env)
        self.mode = mode

    @property
    def unwrapped(self) -> Any:
        return self

    @property
    def render_mode(self) -> str | None:
        return self.mode

    def render(self) -> Any:
        raise gym.error.DependencyNotInstalled("pygame is not installed")


class Kicking:
    """Every motor at full power: the hopper falls at once."""

    def predict(self, observation: Any, *more: Any) -> Any:
        return np.ones((len(observation), 3), np.float32), None


def test_pictures_of_an_episode_end_where_the_robot_has_fallen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "make", lambda self: gym.make(ENV_ID, max_episode_steps=1000))
    strip = moments(Kicking(), Task(ENV_ID), (0.0, 0.04, 4.0), size=64)
    assert [one.fallen for one in strip] == [False, False, True]
    assert [one.seconds for one in strip[:2]] == [0.0, 0.04] and 0.04 < strip[2].seconds < 2.0
    assert strip[0].travelled == 0 and strip[2].travelled != 0
    assert all(one.picture.shape == (64, 64, 3) for one in strip)
