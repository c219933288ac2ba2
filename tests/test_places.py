"""Environments and mazes as archives tell them: the id under which one is registered, a maze of bounded size; what no
archive can tell is refused before any work."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import pytest
from helpers.agents import SMALL, Drift, make_dataset
from test_cli import fault, run

from rrpolicy import DiffusionAgent, zoo
from rrpolicy.agents.arguments import grouped
from rrpolicy.common.kinds import MAX_CELLS
from rrpolicy.data.readers import load_dataset
from rrpolicy.data.writers import save_minari
from rrpolicy.envs import point_maze
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.experiments import Task
from rrpolicy.experiments.runs import TrainingRun

PACKAGE = """
import gymnasium as gym
gym.register("{0}", entry_point="helpers.agents:Drift")
"""
RECIPE = """
[agent]
horizon = 4
n_diffusion_steps = 6
batch_size = 4
policy_kwargs = {width = 8, n_blocks = 1, n_fourier_features = 2}
[base]
total_timesteps = 2
[expert]
total_timesteps = 2
[evaluation]
n_eval_episodes = 1
[steering]
"""
MAZE = ("#####", "#..##", "###.#", "#####")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    yield


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("env_id", ["MyEnv-v0", "Bär-v0", "My--Env-v1", "space/My_Env.x-v3"])
def test_an_environment_of_a_package_is_trained_and_enjoyed(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_package.py").write_text(PACKAGE.format(env_id), encoding="utf-8")
    (tmp_path / "r.toml").write_text(RECIPE)
    save_minari(make_dataset(), tmp_path / "data")
    rest = ("--recipe", tmp_path / "r.toml", "--no-progress")
    name = f"my_package:{env_id}"
    try:
        run("train", "--dataset", tmp_path / "data", "--env", name, "--out", tmp_path / "run", *rest)
        assert zoo.card(tmp_path / "run" / "agent.zip")["environment"] == env_id
        run("enjoy", tmp_path / "run" / "agent.zip", "--env", name, "--n-episodes", 1, *rest)
        run("enjoy", tmp_path / "run" / "agent.zip", "--n-episodes", 1, *rest)  # registered by now
        run("collect", "--env", name, "--agent", tmp_path / "run", "--n-transitions", 20, "--out", tmp_path / "c")
        assert load_dataset(tmp_path / "c").metadata["env_id"] == env_id
    finally:
        sys.modules.pop("my_package", None)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("env_id", ["a..b-v1", "x" * 101 + "-v0"])
def test_what_no_card_can_tell_is_refused_before_training(env_id: str, tmp_path: Path) -> None:
    gym.register(env_id, entry_point=Drift)
    save_minari(make_dataset(), tmp_path / "data")
    line = fault("train", "--dataset", tmp_path / "data", "--env", env_id, "--out", tmp_path / "run")
    assert "an environment is named by its registered id" in line and not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="registered id"):
        TrainingRun(Task(env_id), [make_dataset()], tmp_path / "run", {}).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env_id", ["Pendulum", "gymnasium.envs:Pendulum-v1", "Pendulum-v1"])
def test_tasks_have_the_registered_id(env_id: str) -> None:
    task = Task.create(env_id)
    assert task.env_id == "Pendulum-v1" and Task.from_card(task.to_card()) == task


class Plain(Drift):
    """Takes no render mode, and has an argument that no file can hold."""

    metadata = {}  # noqa: RUF012  as in gymnasium

    def __init__(self, worth: Callable[[float], float] = abs) -> None:
        super().__init__()
        self.worth = worth


CREATORS: dict[str, dict[str, Any]] = {
    "class": {"entry_point": Plain},
    "function": {"entry_point": lambda **rest: Plain(**rest)},
    "argument": {"entry_point": "test_places:Plain", "kwargs": {"worth": lambda x: x}},
    "text": {"entry_point": "test_places:Plain"},
}


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "creator", [pytest.param(one, marks=[pytest.mark.slow] * (one in ("class", "argument"))) for one in CREATORS]
)
def test_an_environment_that_takes_no_render_mode_goes_all_the_way(creator: str, tmp_path: Path) -> None:
    """Collected in, trained for without --env, since the data tell, enjoyed; what it cannot do is said."""
    gym.register("Plain-v0", max_episode_steps=10, **CREATORS[creator])
    (tmp_path / "r.toml").write_text(RECIPE)
    save_minari(make_dataset(), tmp_path / "data", env_spec="Plain-v0")
    rest = ("--recipe", tmp_path / "r.toml", "--no-progress")
    agent = tmp_path / "run" / "agent.zip"
    run("train", "--dataset", tmp_path / "data", "--out", tmp_path / "run", *rest)
    assert zoo.card(agent)["environment"] == "Plain-v0"
    run("enjoy", agent, "--n-episodes", 1, *rest)
    run("collect", "--env", "Plain-v0", "--agent", agent, "--n-transitions", 20, "--out", tmp_path / "again")
    assert load_dataset(tmp_path / "again").metadata["env_id"] == "Plain-v0"
    run("train", "--dataset", tmp_path / "again", "--out", tmp_path / "second", *rest)
    assert minari.MinariDataset(tmp_path / "again").total_steps == 20
    line = fault("record-video", agent, "--out", tmp_path / "v")
    assert "env 'Plain-v0' cannot be made with render_mode 'rgb_array'" in line
    assert DiffusionAgent("MlpPolicy", "Plain-v0", **grouped(SMALL)).observation_space.shape == (4,)


@pytest.mark.usefixtures("registry")
def test_data_and_agents_name_the_environment_that_is_trained_for(tmp_path: Path) -> None:
    gym.register("Plain-v0", Plain, max_episode_steps=10)
    gym.register("Other-v0", Plain, max_episode_steps=10)
    (tmp_path / "r.toml").write_text(RECIPE)
    for name, env_id in (("plain", "Plain-v0"), ("other", "Other-v0"), ("untold", None)):
        save_minari(make_dataset(), tmp_path / name, env_spec=env_id)
    rest = ("--recipe", tmp_path / "r.toml", "--no-progress")

    def train(*names: str, **options: Any) -> tuple[Any, ...]:
        data = [part for name in names for part in ("--dataset", tmp_path / name)]
        given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        return ("train", *data, "--out", tmp_path / "run", *given, *rest)

    untold = tmp_path / "untold"
    assert f"--env is needed: {untold} do not say where they were recorded" in fault(*train("untold"))
    line = fault(*train("plain", "other"))
    assert line.endswith(
        f"--env is needed: {tmp_path / 'plain'} in Plain-v0 and {tmp_path / 'other'} in Other-v0 were "
        "recorded in different environments"
    )
    run(*train("plain", "untold"))
    assert zoo.card(tmp_path / "run")["environment"] == "Plain-v0"
    shutil.move(tmp_path / "run", tmp_path / "base")
    run(*train("untold", init_from=tmp_path / "base"))  # that of the agent that is fine-tuned
    assert zoo.card(tmp_path / "run")["environment"] == "Plain-v0"
    run(*train("untold", env="Other-v0"))
    assert zoo.card(tmp_path / "run")["environment"] == "Other-v0"
    del gym.registry["Plain-v0"]
    line = fault(*train("plain"))
    assert "plain: the data's environment Plain-v0 is not registered here" in line
    assert line.endswith("--env my_package:Plain-v0")


# ---------------------------------------------------------------------- mazes


def test_large_mazes_are_refused_before_they_are_built(tmp_path: Path) -> None:
    rows = ["#" * 256, *["#" + "." * 254 + "#"] * 100, "#" * 256]
    (tmp_path / "maze.txt").write_text("\n".join(rows))
    begun = time.process_time()
    for make in (
        lambda: Task.from_card({"environment": "PointMaze_UMaze-v3", "maze": rows}),
        lambda: Task.create(maze_map=tmp_path / "maze.txt"),
    ):
        with pytest.raises(ValueError, match=f"a maze of {102 * 256} cells, wanted at most {MAX_CELLS}"):
            make()
    assert time.process_time() - begun < 1


def test_a_maze_is_checked_without_a_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    side = int(MAX_CELLS**0.5)
    rows = ["#" * side, *["#" + "." * (side - 2) + "#"] * (side - 2), "#" * side]
    monkeypatch.setattr(point_maze.gym, "make", None)
    task = Task.create(maze_map=rows, goal=(1, 1))
    assert Task.from_card(task.to_card()) == task
    assert Task.create("PointMaze_Medium-v3").maze.shape == (8, 8)


@pytest.mark.parametrize(
    ("maze", "goal", "words"),
    [
        (MAZE, (0, 0), "wall"),
        (MAZE, (9, 9), "outside"),
        (MAZE, (2, 3), "joined to a free start"),
        (("###", "#.#", "###"), None, "a start and a goal that differ"),
        (("###", "#"), None, "row"),
    ],
)
def test_faults_of_a_maze_are_those_of_the_environment(
    maze: tuple[str, ...], goal: tuple[float, float] | None, words: str
) -> None:
    messages = []
    for make in (Task.create, point_maze.make_point_maze):
        with pytest.raises(ValueError, match=words) as caught:
            make("PointMaze_UMaze-v3", maze, goal)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_the_maze_of_an_id_is_that_of_its_environment() -> None:
    env = point_maze.make_point_maze("PointMaze_Medium-v3")
    assert Task.create("PointMaze_Medium-v3").maze == MazeGeometry.from_env(env)
    env.close()
