"""The experiments of the paper as commands: each goes on where it was stopped and draws what its CSV holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.options import recipe_for
from rrpolicy.common.files import write_text
from rrpolicy.pipeline import DEFAULT_ENV_ID, Task
from rrpolicy.reproduce.maze2d import VARIANTS, draw, reproduction, select, summary, variant_named

reproduce_app = typer.Typer(help="Repeat the paper's experiments.", **options.SETTINGS)


@reproduce_app.callback()
def reproduce() -> None:
    """Repeat the paper's experiments."""


@reproduce_app.command()
def maze2d(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="CSV", help="Default: zoo/results/maze2d.csv.")
    ] = None,
    work: Annotated[Path, typer.Option("--work", metavar="DIR", help="Folder of archives.")] = Path("runs/maze2d"),
    maze: Annotated[
        list[str] | None,
        typer.Option("--maze", metavar="NAME", help="Only this of open, umaze, medium, large; repeatable."),
    ] = None,
    goal: Annotated[
        Any, typer.Option("--goal", parser=options.parse_cells, metavar="R,C;R,C", help="Only these goals.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", metavar="N", min=0, help="Only this seed; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, two goals of each maze.")] = False,
    variant_name: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help=f"One of {', '.join(VARIANTS)}.")
    ] = None,
    figures_only: Annotated[bool, typer.Option("--figures-only", help="Draw what the CSV holds.")] = False,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
) -> None:
    """
    Four mazes, 32 goals, three seeds, one recipe: data, base, expert, reward, map, metrics and steering.

    Every finished unit is appended to the CSV; started again, the run goes on with the next one. Several processes may
    be started side by side and share the work. Maps, figures and summary.md lie in the folder named like the CSV.

    \b
    Examples:
      rrpolicy reproduce maze2d --quick --out runs/quick.csv
      rrpolicy reproduce maze2d --maze large --goal "3,6;5,2" --seed 0 --out runs/large.csv
      rrpolicy reproduce maze2d --variant unseen-base --out runs/unseen.csv
    """
    file = out or zoo.folder() / "results" / "maze2d.csv"
    variant = variant_named(variant_name)
    units = [] if figures_only else select(maze, goal, seed, quick, variant.goals)
    if variant.part == "peers":  # which have no base
        units = [unit for unit in units if unit.goal]
    values = recipe_for(Task(DEFAULT_ENV_ID), recipe)
    results = reproduction(units, values, file, work, variant, progress, typer.echo).run()
    text = summary(results)
    written = draw(results, file)
    if results:
        write_text(file.with_suffix("") / "summary.md", text)
        typer.echo(text, nl=False)
        typer.echo(f"written: {', '.join(map(str, [file, *written]))}")
