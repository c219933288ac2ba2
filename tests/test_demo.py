"""The demo: from scratch in a maze that nobody has seen, and with a pair from the zoo, at the smallest size."""

from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
from helpers.recipes import ENV_ID, GOAL, RECIPE, build_zoo, recipe
from PIL import Image

from rrpolicy import zoo
from rrpolicy.common.jobs import Jobs
from rrpolicy.evaluation import read_results
from rrpolicy.experiments import Task
from rrpolicy.experiments.demos import Demo, maze
from rrpolicy.experiments.demos.maze import with_default_goal, with_zoo_goal
from rrpolicy.experiments.demos.stage import AGENTS
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE

MAZE = "######\n#...g#\n#.##.#\n#....#\n######\n"
PICTURES = {"heat_map.png", "hero.png", *(f"{name}.mp4" for name in AGENTS)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(tmp_path_factory.mktemp("built") / "zoo")


@pytest.fixture(autouse=True)
def tiny_zoo(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(built))
    monkeypatch.setenv(RECIPES_VARIABLE, str(built / "recipes"))
    monkeypatch.setattr(maze, "STEPS_PER_FRAME", 60)


def run(task: Task, out: Path, **arguments: Any) -> list[str]:
    said: list[str] = []
    Demo(task, out, RECIPE, n_episodes=2, log=said.append, **arguments).run()
    return said


def test_an_unseen_maze(tmp_path: Path) -> None:
    (tmp_path / "maze.txt").write_text(MAZE)
    out = tmp_path / "out"
    said = run(Task.create(ENV_ID, tmp_path / "maze.txt"), out)  # the maze implies from scratch, its mark the goal
    files = {path.name for path in out.iterdir()}
    assert files == PICTURES | {"results.json", "base.zip", "expert.zip", "reward.zip", "discriminator.zip"}
    rows = read_results(out)
    wanted = [(name, metric) for name in AGENTS for metric in ("success_rate", "return")]
    assert [(row["agent"], row["metric"]) for row in rows] == [*wanted, ("reward", "goal_error_cells")]
    assert {row["n"] for row in rows[:-1]} == {2}
    assert zoo.card(out / "expert.zip")["goal"] == [1.0, 4.0] and zoo.card(out / "base.zip")["goal"] is None
    assert zoo.card(out / "reward.zip")["maze"] == MAZE.split()
    assert any("maze drawing (needs no OpenGL)" in line for line in said)
    with Image.open(out / "hero.png") as hero:
        assert min(hero.size) > 300
    for name in AGENTS:
        frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(out / f"{name}.mp4"))
        assert frames >= 5 and seconds > 0


@pytest.mark.slow  # its pictures and films are those above; the rest is in a demo that is stopped, below
def test_the_zoo_in_the_same_folder(tmp_path: Path) -> None:
    for name in ("base.zip", "expert.zip"):
        (tmp_path / name).write_bytes(b"")
    said = run(Task.create(ENV_ID), tmp_path)
    assert f"base and expert from the zoo: {ENV_ID}/base, {ENV_ID}/expert-3-1" in said
    files = {path.name for path in tmp_path.iterdir()}
    assert files == PICTURES | {"results.json", "reward.zip", "discriminator.zip"}
    assert zoo.card(tmp_path / "reward.zip")["goal"] == list(GOAL)


@pytest.mark.slow  # a process that imports torch; test_jobs has what it does
def test_two_processes_leave_what_one_does(tmp_path: Path) -> None:
    for name, n in (("one", 1), ("two", 2)):
        said = run(Task.create(ENV_ID), tmp_path / name, jobs=Jobs(n))
        assert any(line.startswith("training the discriminator: ") for line in said)
    assert read_results(tmp_path / "one") == read_results(tmp_path / "two")


def test_what_is_finished_is_kept_when_it_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    for name in ("base.zip", "expert.zip", "hero.png"):
        (tmp_path / name).write_bytes(b"")  # of a demo before, in an unseen maze
    monkeypatch.setattr(maze, "plot_hero", stop)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Demo(Task.create(ENV_ID), tmp_path, RECIPE, n_episodes=2, log=said.append).run()
    assert f"base and expert from the zoo: {ENV_ID}/base, {ENV_ID}/expert-3-1" in said
    assert zoo.card(tmp_path / "reward.zip")["goal"] == list(GOAL)
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "heat_map.png",
        "reward.zip",
        "discriminator.zip",
    }
    assert len(read_results(tmp_path)) == 9


def test_bad_wishes_are_refused_before_anything_is_removed(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"no expert for PointMaze_UMaze-v3 with the goal 1,1, it has 3,1; pass"):
        run(Task.create(ENV_ID, goal=(1, 1)), tmp_path)
    with pytest.raises(ValueError, match=r"the zoo has no expert for PointMaze_Open-v3; pass --from-scratch"):
        run(Task.create("PointMaze_Open-v3"), tmp_path)
    with pytest.raises(ValueError, match="n_episodes is 0"):
        Demo(Task.create(ENV_ID), tmp_path, RECIPE, n_episodes=0).run()
    assert (tmp_path / "results.json").exists()


def test_goals_are_chosen_when_none_is_given() -> None:
    assert with_zoo_goal(Task.create(ENV_ID)).goal == GOAL
    rows = ["#####", "#...#", "#####"]
    assert with_default_goal(Task.create(ENV_ID, rows)).goal == (1, 3)
    assert with_default_goal(Task.create(ENV_ID, ["#####", "#g..#", "#####"])).goal == (1, 1)
    assert with_default_goal(Task.create(ENV_ID, rows, (1, 2))).goal == (1, 2)


def test_the_mode_of_acting_comes_from_the_recipe(tmp_path: Path) -> None:
    task = Task.create(ENV_ID)
    assert Demo(task, tmp_path, RECIPE).deterministic
    assert not Demo(task, tmp_path, recipe(evaluation={"deterministic": False})).deterministic
