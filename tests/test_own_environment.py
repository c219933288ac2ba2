"""An environment of one's own is a recipe file: data of a SAC run, then demo, zoo and experiment, all tiny."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.pictures import small_pictures
from helpers.program import invoke
from helpers.recipes import NETWORK, toml
from helpers.robots import RECIPE as ROBOT_RECIPE

from rrpolicy import zoo
from rrpolicy.evaluation import read_results as read_rows
from rrpolicy.experiments.locomotion import known_robots, read_results, select
from rrpolicy.experiments.recipes import FOLDER_VARIABLE, cases_of, environment_of, read_recipe

ENV_ID = "InvertedDoublePendulum-v5"
SMALL = {"total_timesteps": 4, "batch_size": 16, "window_kwargs": NETWORK}
RECIPE: dict[str, Any] = {
    "environments": [ENV_ID],
    "agent": ROBOT_RECIPE["agent"],
    "base": {"total_timesteps": 4},
    "expert": {"total_timesteps": 4},
    "extraction": {**SMALL, "heads": ["window"], "buffer_size": 64, "value_coef": 0.0},
    "rounds": {"n_rounds": 1, "n_plans": 8, "n_visited": 20, "n_envs": 2},
    "discriminator": SMALL,
    "steering": {"scale": 1.0},
    "cloning": {"n_steps": 5},
    "scores": {"n_groups": 2, "group_size": 16},
    "evaluation": {"n_eval_episodes": 2},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder: data and policy of a short SAC run, made by one command, and a recipe that names them."""
    folder = tmp_path_factory.mktemp("home")
    agents = f'agents = {{ "{folder / "sac.zip"}" = 1.0 }}\nn_transitions = 60\n'
    data = f'[data.trained.base]\ndataset = "{folder / "replay"}"\n[data.trained.expert]\n{agents}'
    (folder / "recipes").mkdir()
    (folder / "recipes" / "pendulum.toml").write_text(toml(RECIPE) + data, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, str(folder / "recipes"))
        patch.setenv(zoo.FOLDER_VARIABLE, str(folder / "zoo"))
        small_pictures(patch, 0.2, (0.0, 0.1))
        (folder / "zoo").mkdir()
        given = ["collect", "--from-training", "--env", ENV_ID, "--total-timesteps", "120", "--no-progress"]
        run(*given, "--out", folder / "replay", "--policy-out", folder / "sac.zip")
        yield folder


def run(*arguments: object) -> str:
    result = invoke(arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_recipe_names_its_environment_and_its_data(home: Path) -> None:
    recipe = read_recipe(home / "recipes" / "pendulum.toml")
    assert environment_of(recipe) == ENV_ID and cases_of(recipe) == ["trained"]
    assert known_robots() == ["hopper", "halfcheetah", "walker2d", "pendulum"]
    assert [unit.env_id for unit in select(["hopper", "pendulum"], quick=True)] == ["Hopper-v5", ENV_ID]
    assert [str(unit) for unit in select(["pendulum"], quick=True)] == ["pendulum trained seed 1"]
    assert {unit.robot for unit in select()} == {"hopper", "halfcheetah", "walker2d"}  # the paper's
    assert environment_of({"environments": ["my_package:MyEnv-v0"]}) == "my_package:MyEnv-v0"
    with pytest.raises(ValueError, match=r"recipe 'a': environments are \['Nothing-\*'\], none of them is registered"):
        environment_of({"name": "a", "environments": ["Nothing-*"]})


@pytest.mark.slow  # from the zoo: test_demo_robot; from scratch in a maze: test_demo
def test_the_demo_trains_what_the_zoo_has_not(home: Path) -> None:
    said = run("demo", "--env", ENV_ID, "--n-episodes", 2, "--out", home / "demo", "--no-progress")
    assert "base, expert and reward from scratch, trained data" in said
    rows = {(row["agent"], row["metric"]) for row in read_rows(home / "demo")}
    assert {(name, "return") for name in ("base", "steered", "expert", "steered-base")} <= rows
    files = {path.name for path in (home / "demo").iterdir()}
    assert {"hero.png", "base.zip", "expert.zip", "reward.zip", "steered.mp4"} <= files


def test_the_experiment_measures_it(home: Path) -> None:
    given = ["reproduce", "locomotion", "--robot", "pendulum", "--out", home / "r.csv", "--work", home / "work"]
    said = run(*given, "--quick", "--no-progress")
    results = read_results(home / "r.csv")
    assert {one.agent for one in results} >= {"base", "discriminator", "steered", "exact-1", "expert", "demonstrator"}
    assert {one.unit for one in results} == {("pendulum", "trained", 1)}
    assert "| robot | data | agent | return | more than the base |" in said and "| pendulum | trained | base |" in said
    assert (home / "r" / "scores.png").exists()


@pytest.mark.slow  # as any robot: test_zoo_robots, test_demo_robot; the recipe is measured above
def test_the_zoo_gets_it_and_the_demo_takes_it_from_there(home: Path) -> None:
    run("zoo", "build", ENV_ID, "--work", home / "work", "--n-episodes", 2, "--out", home / "zoo", "--no-progress")
    assert {card["name"] for card in zoo.entries()} == {f"{ENV_ID}/{name}" for name in ("base", "expert", "reward")}
    assert zoo.info(f"{ENV_ID}/base")["case"] == "trained"
    assert f"| `{ENV_ID}/base` | trained |" in zoo.table()
    said = run("demo", "--env", ENV_ID, "--n-episodes", 2, "--out", home / "again", "--no-progress")
    assert f"{ENV_ID}/reward from the zoo" in said
