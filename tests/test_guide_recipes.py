"""An own environment by a recipe file, as the guide has it: data of a SAC run, then all that is measured."""

from pathlib import Path

import gymnasium as gym
import pytest
from helpers import markdown
from helpers.agents import shorten
from helpers.program import invoke
from helpers.recipes import toml
from helpers.robots import RECIPE

from rrpolicy.experiments.locomotion import read_results
from rrpolicy.experiments.locomotion.report import AGENTS
from rrpolicy.experiments.recipes import FOLDER_VARIABLE, cases_of, environment_of, read_recipe

ROOT = Path(__file__).resolve().parents[1]
ENV_ID = "Pendulum-v1"  # whose torques reach from -2 to 2


@pytest.mark.slow  # as test_own_environment; actions beyond one: test_finetune
def test_a_recipe_adds_an_environment_whose_actions_are_not_within_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch, ENV_ID, 12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, "recipes")
    training = ["collect", "--from-training", "--env", ENV_ID, "--total-timesteps", 200, "--no-progress"]
    result = invoke([*training, "--policy-out", "runs/sac.zip", "--out", "data/replay"])
    assert result.exit_code == 0, result.output
    data = {
        "trained": {
            "base": {"dataset": "data/replay"},
            "expert": {"agents": {"runs/sac.zip": 1.0}, "n_transitions": 200},
        }
    }
    Path("recipes").mkdir()
    Path("recipes/swingup.toml").write_text(toml({**RECIPE, "environments": [ENV_ID], "data": data}))
    given = ["reproduce", "locomotion", "--robot", "swingup", "--seed", 7, "--out", "runs/swingup.csv"]
    result = invoke([*given, "--work", "runs/work", "--no-progress"])
    assert result.exit_code == 0, result.output
    rows = read_results(Path("runs/swingup.csv"))
    assert gym.make(ENV_ID).action_space.high == 2
    assert {one.agent for one in rows if one.metric == "return"} >= {*AGENTS, "base-data", "expert-data"}
    assert "| swingup | trained | cloning |" in result.output


def test_the_recipes_of_the_guide_differ_in_their_data_alone() -> None:
    recipes = {path.stem: read_recipe(path) for path in (ROOT / "examples" / "recipes").glob("*.toml")}
    assert {name: environment_of(recipe) for name, recipe in recipes.items()} == {
        "swingup": ENV_ID,
        "pendulum": "InvertedDoublePendulum-v5",
        "reacher": "Reacher-v5",
    }
    assert {name: cases_of(recipe) for name, recipe in recipes.items()} == {
        "swingup": ["trained", "checkpoint"],
        "pendulum": ["trained"],
        "reacher": ["trained"],
    }
    own = ("name", "environments", "data")
    common = [{key: value for key, value in recipe.items() if key not in own} for recipe in recipes.values()]
    assert common[0]["rounds"] and common[1:] == common[:1] * 2
    shown = [block.text for block in markdown.blocks(ROOT / "docs" / "guides" / "own_environment.md")]
    assert (ROOT / "examples" / "recipes" / "pendulum.toml").read_text(encoding="utf-8") in shown
