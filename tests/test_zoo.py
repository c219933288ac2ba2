"""The zoo: names and paths, faults, cards, recipes and the table; what is shipped loads and acts."""

import json
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.recipes import ENV_ID, GOAL, RECIPE, build_zoo
from helpers.stand_in_hub import stand_in
from typer.testing import CliRunner

from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward, experiments, zoo
from rrpolicy.cli import app
from rrpolicy.experiments import Task
from rrpolicy.experiments.locomotion.measure_distilled import DistillationSettings
from rrpolicy.experiments.recipes import FOLDER_VARIABLE as RECIPES_VARIABLE
from rrpolicy.experiments.recipes import read_recipe, recipe_of
from rrpolicy.experiments.zoo_build import MazeZooBuild
from rrpolicy.experiments.zoo_students import StudentZooBuild
from rrpolicy.rl import Sb3Agent
from rrpolicy.testing import check_agent, check_reward

BASE, EXPERT, REWARD = (f"{ENV_ID}/{name}" for name in ("base", "expert-3-1", "reward-3-1"))
CHECKOUT = Path(__file__).parents[1] / "zoo" / "agents"  # the wheel holds no videos and pictures
SHIPPED = [entry["name"] for entry in zoo.entries()]
ACTING = [entry["name"] for entry in zoo.entries() if not zoo.is_image(entry)]  # images: see test_zoo_images.py


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_zoo(tmp_path_factory.mktemp("built") / "zoo")


@pytest.fixture
def tiny_zoo(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(built))
    monkeypatch.setenv(RECIPES_VARIABLE, str(built / "recipes"))
    return built


# ---------------------------------------------------------------------- names and paths


def test_names_give_what_the_archive_holds(tiny_zoo: Path, tmp_path: Path) -> None:
    base, reward = zoo.load(BASE), zoo.load(REWARD)
    assert isinstance(base, DiffusionAgent) and isinstance(zoo.load(EXPERT), DiffusionAgent)
    assert isinstance(reward, RelativeReward)
    GuidedPlanner(base, reward, n_action_steps=8).save(tmp_path / "planner.zip")
    assert isinstance(zoo.load(tmp_path / "planner.zip"), GuidedPlanner)


def test_paths_with_and_without_suffix_and_folders_name_the_same_archive(tiny_zoo: Path) -> None:
    folder = tiny_zoo / "agents" / ENV_ID / "base"
    found = {zoo.find(name) for name in (folder / "agent.zip", folder / "agent", folder, BASE)}
    assert found == {folder / "agent.zip"}


def test_unknown_names_list_near_ones(tiny_zoo: Path) -> None:
    with pytest.raises(ValueError, match=r"'PointMaze_UMaze-v3/expert-3-2' is neither .*expert-3-1"):
        zoo.load(f"{ENV_ID}/expert-3-2")
    with pytest.raises(ValueError, match=r"is not in the zoo.*PointMaze_UMaze-v3/base"):
        zoo.info(f"{ENV_ID}/bas")


@pytest.mark.parametrize("name", ["../agents/base", f"{ENV_ID}/..", f"x/../{ENV_ID}/base", "", "a/b/c", "/", "."])
def test_names_do_not_lead_out_of_the_zoo(tiny_zoo: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_zoo / "recipes")
    with pytest.raises(ValueError):
        zoo.info(name)
    with pytest.raises((ValueError, FileNotFoundError)):
        zoo.load(name)


def test_missing_files_and_folders_are_named(tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.zip"):
        zoo.load(tmp_path / "gone.zip")
    with pytest.raises(ValueError, match=r"holds 0 of agent\.zip"):
        zoo.load(tmp_path)
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no zoo"):
        zoo.folder()


# ---------------------------------------------------------------------- faults


def test_damaged_and_foreign_archives_are_refused(tiny_zoo: Path, tmp_path: Path) -> None:
    content = zoo.find(BASE).read_bytes()
    (tmp_path / "short.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"short\.zip.*truncated"):
        zoo.load(tmp_path / "short.zip")
    with zipfile.ZipFile(tmp_path / "sb3.zip", "w") as archive:
        archive.writestr("policy.pth", b"")
    with pytest.raises(ValueError, match=r"sb3\.zip.*pickle"):
        zoo.load(tmp_path / "sb3.zip")


def test_kinds_are_not_mixed_up(tiny_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a 'reward', wanted 'agent'"):
        zoo.load_agent(REWARD)
    with pytest.raises(ValueError, match=r"holds a 'agent', wanted 'reward'"):
        zoo.load_reward(BASE)
    extractor = experiments.new_extractor(zoo.load_agent(BASE), zoo.load_agent(EXPERT), RECIPE)
    extractor.save(tmp_path / "extractor.zip")
    with pytest.raises(ValueError, match=r"holds a 'extractor'"):
        zoo.load(tmp_path / "extractor.zip")


def test_damaged_cards_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(RECIPES_VARIABLE, str(tmp_path / "recipes"))
    card = tmp_path / "agents" / ENV_ID / "base" / "card.json"
    card.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"name": "x"}'):
        card.write_text(text)
        with pytest.raises(ValueError, match=r"card\.json: not a card"):
            zoo.entries()


# ---------------------------------------------------------------------- the hub


def test_hub_files_are_downloaded_and_checked(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        if file == "none.zip":
            raise FileNotFoundError("no such file")
        return str(zoo.find(BASE))

    stand_in(monkeypatch, download)
    assert isinstance(zoo.load("hub:somebody/agents/umaze/base.zip"), DiffusionAgent)
    assert asked == [("somebody/agents", "umaze/base.zip")]
    with pytest.raises(ValueError, match="could not be downloaded: no such file"):
        zoo.load("hub:somebody/agents/none.zip")
    with pytest.raises(ValueError, match=r"hub:<owner>/<repository>\[@<revision>\]/<file>"):
        zoo.load("hub:somebody/agents")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"rrpolicy\[hub\]"):
        zoo.load("hub:somebody/agents/base.zip")


def test_a_hub_name_tells_its_revision_and_gets_it_where_it_does_not(
    tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit, asked = "0123456789abcdef0123456789abcdef01234567", []
    cached = tmp_path / "models--somebody--agents" / "snapshots" / commit / "base.zip"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(zoo.find(BASE).read_bytes())

    def download(repository: str, file: str, **revision: str) -> str:
        asked.append((repository, file, revision))
        return str(cached)

    stand_in(monkeypatch, download)
    assert isinstance(zoo.load("hub:somebody/agents@v1.0/base.zip"), DiffusionAgent)
    assert asked == [("somebody/agents", "base.zip", {"revision": "v1.0"})]
    assert zoo.hub.with_revision("hub:somebody/agents/base.zip") == f"hub:somebody/agents@{commit}/base.zip"
    assert zoo.hub.with_revision(BASE) == BASE
    for name in ("hub:a/b@/c.zip", "hub:a/b@x y/c.zip", "hub:a/b/../c.zip", "hub:a/b@v1", "hub:a\x1b/b/c.zip"):
        with pytest.raises(ValueError, match="must have the form hub:"):
            zoo.find(name)


@pytest.mark.parametrize("name", ["", "a" * 5000, "a/" * 3000])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of an archive has"):
        zoo.load(name)


# ---------------------------------------------------------------------- recipes, cards, table


def test_recipes_by_environment_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_of(ENV_ID) == recipe_of("point_maze") == recipe_of("PointMaze_Large-v3")
    assert recipe_of(ENV_ID)["agent"]["observation_columns"] == [0, 1]
    with pytest.raises(ValueError, match=r"no recipe for 'Ant-v5', there are .*point_maze"):
        recipe_of("Ant-v5")
    assert recipe_of("Ant-v5", experiments.DEFAULT_RECIPE) is experiments.DEFAULT_RECIPE
    with pytest.raises(FileNotFoundError, match=r"gone\.toml"):
        read_recipe(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ValueError, match=r"bad\.toml: not a TOML file"):
        read_recipe(tmp_path / "bad.toml")


def test_the_helper_recipe_reads_back(tiny_zoo: Path) -> None:
    assert recipe_of(ENV_ID) == RECIPE


def test_cards_say_what_was_made_and_measured(tiny_zoo: Path) -> None:
    base, expert, reward = (zoo.info(name) for name in (BASE, EXPERT, REWARD))
    assert [entry["name"] for entry in zoo.entries()] == [BASE, EXPERT, REWARD]
    assert {row["agent"] for row in base["results"]} == {"base-3-1"}
    assert {row["agent"] for row in expert["results"]} == {"agent"}
    agents = {row["agent"] for row in reward["results"]}
    assert agents == {"reward", "steered-1", "steered-2", "discriminator"}
    metrics = {row["metric"] for row in reward["results"]}
    assert {"goal_error_cells", "success_rate", "return", "r2_guided_t9", "r2_window_noised_t0"} <= metrics
    for card in (base, expert, reward):
        assert card["date"] == "2026-01-02" and card["seed"] == 0 and card["recipe"] == "tiny"
        assert card["bytes"] == zoo.find(card["name"]).stat().st_size
    assert zoo.card(EXPERT)["goal"] == list(GOAL) == expert["goal"]


def test_the_table_has_a_row_for_each_entry(tiny_zoo: Path) -> None:
    lines = zoo.table().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [BASE, EXPERT, REWARD]
    assert all(row.count("|") == len(zoo.COLUMNS) + 1 for row in rows)
    assert "3-1: 0." in rows[0]
    assert (tiny_zoo / "README.md").read_text() == zoo.table()


# ---------------------------------------------------------------------- building


def test_a_stopped_build_goes_on(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "zoo")
    entry = folder / "agents" / ENV_ID
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in entry.rglob("*.*")}
    (entry / "expert-3-1" / "card.json").unlink()  # as if stopped while the expert was being made
    said: list[str] = []
    build = MazeZooBuild(Task.create(ENV_ID), [GOAL], RECIPE, folder=folder, date="2026-01-02", log=said.append)
    cards = build.run()
    assert [card["name"] for card in cards] == [BASE, EXPERT, REWARD]
    assert [line for line in said if "building" in line] == [f"{EXPERT}: building"]
    for path, (modified, content) in before.items():
        assert path.read_bytes() == content  # the expert is the same again
        assert path.parent.name == "expert-3-1" or path.stat().st_mtime_ns == modified


def test_a_build_with_a_bad_goal_builds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"goal \(2, 2\) lies in a wall"):
        MazeZooBuild(Task.create(ENV_ID), [GOAL, (2.0, 2.0)], RECIPE, folder=tmp_path).run()
    assert not list(tmp_path.iterdir())


def test_students_are_built_beside_what_is_there(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "zoo")
    before = {path: path.read_bytes() for path in (folder / "agents").rglob("*.*")}
    sizes = {"n_envs": 2, "first_steps": 4, "round_steps": 4}
    small = partial(DistillationSettings, n_rounds=1, visits=sizes, fast=False)
    given: dict[str, Any] = {"tasks": [Task.create(ENV_ID, goal=GOAL)], "recipe": RECIPE, "seed": 1, "folder": folder}
    given["n_episodes"] = 2
    said: list[str] = []
    build = StudentZooBuild(**given, settings=small(4), log=said.append)
    (card,) = build.run()
    assert card["name"] == f"{ENV_ID}/student-3-1" and card["goal"] == list(GOAL) and card["bytes"] < 2e6
    assert card["teacher"] == f"{ENV_ID}/base steered by {ENV_ID}/reward-3-1 at scale 1"
    assert {(row["agent"], row["n"]) for row in card["results"]} == {("agent", 2), ("steered-1", 2)}
    student = zoo.load(folder / "agents" / ENV_ID / "student-3-1")
    assert isinstance(student, Sb3Agent) and student.predict(np.zeros(4))[0].shape == (2,)
    assert card["name"] in (folder / "README.md").read_text()
    assert build.run() == [card] and "there already" in said[-1]
    assert {path: path.read_bytes() for path in before} == before
    StudentZooBuild(**given, settings=small(5), log=said.append).run()  # another student
    assert "building" in [line for line in said if "student-3-1" in line][-1]


def test_students_need_a_reward(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "zoo")
    build = StudentZooBuild(tasks=[Task.create(ENV_ID, goal=(1, 1))], recipe=RECIPE, seed=1, folder=folder)
    with pytest.raises(FileNotFoundError, match=r"reward-1-1.*no such archive"):
        build.run()
    assert not (folder / "agents" / ENV_ID / "student-1-1").exists()
    result = CliRunner().invoke(app, ["zoo", "distill", ENV_ID])
    assert result.exit_code == 2 and "--goals" in result.output


# ---------------------------------------------------------------------- what is shipped


def check(name: str, contracts: bool = True) -> None:
    """Load an entry, hold it against the contracts, act once, a reward by steering its base."""
    task = Task.from_card(zoo.info(name))
    assert task is not None
    loaded = zoo.load(name)
    env = task.make()
    if isinstance(loaded, RelativeReward):
        assert not contracts or check_reward(loaded)
        if contracts and task.is_maze:
            assert np.isfinite(experiments.map_reward(loaded, task.maze, recipe_of(task.env_id)).values).all()
        loaded = experiments.steer(zoo.load_agent(f"{task.env_id}/base"), loaded, recipe_of(task.env_id))
    else:
        assert not contracts or check_agent(loaded, env)
    action, _ = loaded.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.action_space.contains(action)
    env.step(action)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTING)
def test_all_shipped_entries_keep_the_contracts(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", ACTING)
def test_shipped_entries_load_and_work(name: str) -> None:
    check(name, contracts=name in (BASE, EXPERT, REWARD) or name.startswith("Hopper-v5/"))  # of all: above
    card = zoo.info(name)
    assert card["bytes"] < 2e6
    if "video" in card:
        assert 1e3 < (CHECKOUT / name / card["video"]).stat().st_size <= 3e5


@pytest.mark.parametrize("name", [BASE, EXPERT, REWARD])
def test_what_a_build_leaves_loads_and_works(tiny_zoo: Path, name: str) -> None:
    check(name)


def test_the_shipped_page_is_up_to_date() -> None:
    page = zoo.folder() / "README.md"
    assert page.read_text(encoding="utf-8") == zoo.table()


def test_shipped_cards_are_those_in_the_archives() -> None:
    for name in SHIPPED:
        card = zoo.info(name)
        card.pop("bytes")
        assert json.loads(json.dumps(zoo.card(name))) == card
