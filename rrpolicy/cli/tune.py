"""The command ``tune``: a recipe's numbers by the held-out loss, with a study that several processes may share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.commands import task_of_data
from rrpolicy.cli.program import echo
from rrpolicy.data.readers import load_dataset
from rrpolicy.experiments.recipes import read_recipe, recipe_of
from rrpolicy.experiments.tuning import SEARCH, Range, Search, tune, write_tuned


def tune_recipe(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="File (TOML), or name of the library's.")],
    dataset: Annotated[list[str], typer.Option("--dataset", help=f"{options.DATA_SOURCE} Repeatable.")],
    study: Annotated[
        Path,
        typer.Option("--study", metavar="FILE", callback=options.file_for_results, help="Journal; processes share it."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", callback=options.file_for_results, help="Recipe that was found.")
    ],
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=LOW..HIGH[:log]", help="Range; default: the recipe's [search]."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", metavar="N", min=1, help="Of the study, by all processes.")] = 20,
    base: Annotated[str | None, typer.Option("--base", help="The weak agent, for numbers of [extraction].")] = None,
    expert: Annotated[str | None, typer.Option("--expert", help="The strong agent, likewise.")] = None,
    env: options.DataEnv = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> None:
    """
    Search for numbers of a recipe by the held-out loss; bad trials are stopped early. Leaves a recipe.

    Seeds that an experiment is evaluated with are refused. Start the same command in several processes, on one machine
    or on several that see the same files, and they share the trials.

    \b
    Examples:
      rrpolicy tune mine.toml --dataset data/base --trials 50 --study runs/mine.log --out found.toml
      rrpolicy tune hopper --dataset data/base --set base.learning_rate=1e-4..1e-2:log --study h.log --out found.toml
    """
    values = read_recipe(recipe) if Path(recipe).is_file() else recipe_of(recipe)
    data = [load_dataset(one) for one in dataset]
    task = task_of_data(data, env, None, dataset, base)
    if (base is None) != (expert is None):
        raise ValueError("--base and --expert are given together, for numbers of [extraction], or not at all")
    models = None if base is None or expert is None else (zoo.load_agent(base), zoo.load_agent(expert))
    search = Search(values, _ranges(setting, values.get(SEARCH)), data, task, models, seed)
    found = write_tuned(tune(search, study, trials, echo), search, out)
    echo(f"best of {found['trials']} trials, held-out loss {found['held_out_loss']:.5g}: {out}")


def _ranges(given: list[str] | None, in_recipe: object) -> dict[str, Range]:
    """
    What is searched, by entries.

    :raises ValueError: for a range that cannot be read, naming the entry
    """
    if not given and in_recipe is not None and not isinstance(in_recipe, dict):
        raise ValueError(f"recipe section [{SEARCH}] is {in_recipe!r:.80}, wanted a table of ranges")
    texts = [one.partition("=")[::2] for one in given] if given else list((in_recipe or {}).items())  # type: ignore[attr-defined]
    ranges = {}
    for name, text in texts:
        try:
            ranges[name.strip()] = Range.parse(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return ranges
