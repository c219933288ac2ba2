"""Command lines of the docs at tiny sizes: the data, models and recipe that they name, and what else they are given."""

import re
import shlex
from pathlib import Path

import pytest

from helpers.pipelines import write_ddpm
from helpers.recipes import ENV_ID, GOAL, RECIPE, toml
from rrpolicy.cli import main
from rrpolicy.experiments import Task, collect_base, collect_expert
from rrpolicy.experiments.runs import write_dataset

DOCS = Path(__file__).resolve().parents[2] / "docs"
TINY = {  # what a page leaves to defaults, or has at sizes of its own
    "train": "--recipe recipe.toml --no-progress",
    "extract": "--recipe recipe.toml --no-progress",
    "images record": "--n-samples 8 --n-noisings 2 --n-sampling-steps 3 --no-progress",
    "images extract": "--total-timesteps 5 --batch-size 5 --width 8 --no-progress",
    "reproduce maze2d": "--recipe recipe.toml --quick --maze umaze --no-progress",
    "tune": "--trials 2",
}


def commands(page: str, start: str) -> list[str]:
    """
    The arguments of the commands of a page at tiny sizes.

    :param page: below `docs`
    :param start: what stands before the arguments, a regular expression
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(rf"^{start} (.*)$", text, re.M)
    return [f"{one} {TINY[next(name for name in TINY if one.startswith(f'{name} '))]}" for one in found]


def prepare(folder: Path) -> None:
    """Write the data, models and the recipe."""
    task = Task(ENV_ID)
    for name, one, collect in (("base", task, collect_base), ("expert", task.with_goal(GOAL), collect_expert)):
        write_dataset(collect(one, RECIPE, 0), folder / "data" / name, one)
    write_ddpm(folder / "models" / "all")
    write_ddpm(folder / "models" / "harmless", seed=1)
    (folder / "recipe.toml").write_text(toml(), encoding="utf-8")


def run(folder: Path, lines: list[str]) -> None:
    """Run commands in a folder, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            with pytest.raises(SystemExit) as left:
                main(shlex.split(line))
            assert left.value.code == 0, line
