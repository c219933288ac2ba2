"""Commands for the experiments of the paper: each is resumable and draws figures from its CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rrpolicy.cli import options
from rrpolicy.cli.options import recipe_for
from rrpolicy.cli.program import echo
from rrpolicy.common.files import write_text
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.messages import printable
from rrpolicy.experiments import DEFAULT_ENV_ID, Task
from rrpolicy.experiments import images as painters
from rrpolicy.experiments import locomotion as robots
from rrpolicy.experiments import maze2d as mazes
from rrpolicy.experiments.locomotion.spec import of_case
from rrpolicy.experiments.published.generated import compare_generated
from rrpolicy.experiments.published.pages import verify as verify_pages
from rrpolicy.experiments.published.rows import Rows
from rrpolicy.experiments.recipes import is_packaged, read_recipe, recipe_of
from rrpolicy.experiments.store import digest
from rrpolicy.experiments.tuning_log import check_frozen, read_log
from rrpolicy.images.parts import quiet

QUICK_EPISODES = 16
IMAGES_RECIPE = "fashion_mnist"

Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="CSV", callback=options.file_for_results, help="Default: runs/EXPERIMENT.csv."),
]
Work = Annotated[
    Path, typer.Option("--work", metavar="DIR", callback=options.folder_for_results, help="Folder of archives.")
]
Seeds = Annotated[list[int] | None, typer.Option("--seed", metavar="N", min=0, help="Only this seed; repeatable.")]
FiguresOnly = Annotated[bool, typer.Option("--figures-only", help="Draw what the CSV holds.")]

reproduce_app = typer.Typer(help="Repeat the paper's experiments.", **options.SETTINGS)


@reproduce_app.callback()
def reproduce() -> None:
    """Repeat the paper's experiments."""


@reproduce_app.command()
def maze2d(
    out: Out = None,
    work: Work = Path("runs/maze2d"),
    maze: Annotated[
        list[str] | None,
        typer.Option("--maze", metavar="NAME", help="Only this of open, umaze, medium, large; repeatable."),
    ] = None,
    goal: Annotated[
        Any, typer.Option("--goal", parser=options.parse_cells, metavar="R,C;R,C", help="Only these goals.")
    ] = None,
    seed: Seeds = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, two goals of each maze.")] = False,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(mazes.VARIANTS)}.")] = None,
    figures_only: FiguresOnly = False,
    jobs: options.NumberOfJobs = 1,
    scheduler: options.Scheduler = None,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Four mazes, 32 goals, three seeds, one recipe: data, base, expert, reward, map, metrics and steering.

    Every finished unit is appended to the CSV; started again, the run goes on with the next one. --jobs and
    --scheduler share the units among processes, with the same CSV. Maps, figures and summary.md lie in the folder named
    like the CSV.

    \b
    Examples:
      rrpolicy reproduce maze2d --quick --out runs/quick.csv
      rrpolicy reproduce maze2d --jobs 2 --out runs/all.csv
      rrpolicy reproduce maze2d --maze large --goal "3,6;5,2" --seed 0 --out runs/large.csv
      rrpolicy reproduce maze2d --variant unseen-base --out runs/unseen.csv
    """
    file = out or Path("runs/maze2d.csv")
    chosen = mazes.variant_named(variant)
    units = [] if figures_only else mazes.select(maze, goal, seed, quick, chosen.goals)
    if chosen.part == "peers":  # which have no base
        units = [unit for unit in units if unit.goal]
    values = recipe_for(Task(DEFAULT_ENV_ID), recipe)
    if is_packaged(values):
        check_frozen("maze2d", units, lambda unit: digest(values), read_log())
    results = mazes.reproduction(
        units, values, file, work, chosen, progress_bar=progress, log=echo, jobs=Jobs(jobs, scheduler)
    ).run()
    if results:
        _show(file, mazes.summary(results), mazes.draw(results, file))


@reproduce_app.command()
def locomotion(
    out: Out = None,
    work: Work = Path("runs/locomotion"),
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Folder of data sets, ROBOT-CASE-PART each; default: in --work."),
    ] = None,
    agents: Annotated[
        Path | None,
        typer.Option(
            "--agents",
            metavar="DIR",
            help="Folder of pretrained SB3 agents (tqc/Hopper-v3_1/Hopper-v3.zip "
            "and so on); default: they are downloaded from the hub.",
        ),
    ] = None,
    robot: Annotated[
        list[str] | None,
        typer.Option("--robot", metavar="NAME", help="Only this: a recipe with demonstrations; repeatable."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Only these data, such as noisy, replay, mixture; repeatable."),
    ] = None,
    seed: Seeds = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, one kind of data, 16 episodes.")] = False,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(robots.VARIANTS)}.")] = None,
    figures_only: FiguresOnly = False,
    jobs: options.NumberOfJobs = 1,
    scheduler: options.Scheduler = None,
    progress: options.Progress = True,
    device: options.Device = "auto",
) -> None:
    """
    Robots, a recipe for each, three seeds: data, base, expert, reward with closed-loop rounds, episodes.

    The paper's three robots, or those of your own recipes with --robot.
    Data are collected where the recipe says how and kept; those of a SAC run (case replay) come from rrpolicy collect
    --from-training, and units without data are left out. Started again, the run goes on with the next unit.

    \b
    Examples:
      rrpolicy reproduce locomotion --quick --agents rl-trained-agents --out runs/quick.csv
      rrpolicy reproduce locomotion --robot walker2d --case noisy --variant sweep --seed 1
    """
    file = out or Path("runs/locomotion.csv")
    chosen = robots.variant_named(variant)
    units = [] if figures_only else robots.select(robot, case, seed, quick)
    own = [unit for unit in units if is_packaged(recipe_of(unit.robot))]
    changes = {"evaluation": {"n_eval_episodes": QUICK_EPISODES}} if quick else {}
    recipes = {unit.robot: {**recipe_of(unit.robot), **changes} for unit in units}
    check_frozen("locomotion", own, lambda unit: digest(of_case(recipes[unit.robot], unit.case)), read_log())
    demonstrations = robots.Demonstrations(data or work / "data", agents)
    run = robots.reproduction(
        units, recipes, file, work, demonstrations, chosen, progress_bar=progress, log=echo, jobs=Jobs(jobs, scheduler)
    )
    if results := run.run():
        _show(file, robots.summary(results), robots.draw(results, file))


@reproduce_app.command()
def images(
    out: Out = None,
    work: Work = Path("runs/images"),
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder of idx files as Fashion-MNIST's, or of one sub-folder of "
            "pictures per class; default: where Debian's package dataset-fashion-mnist puts them.",
        ),
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="A+B",
            help="Only these removed classes, any of the images' own, such as "
            "trouser+sneaker; none is the control; repeatable.",
        ),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help=f"Only these experts, of {', '.join(painters.CASES)}; repeatable."),
    ] = None,
    seed: Seeds = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, one pair, fine-tuned, and the control.")] = False,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(painters.VARIANTS)}.")] = None,
    figures_only: FiguresOnly = False,
    jobs: options.NumberOfJobs = 1,
    scheduler: options.Scheduler = None,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Base on all classes, expert without two of them: ρ on held-out real images, and samples that it steers.

    Three pairs of classes, experts fine-tuned and from scratch, two seeds, and a control whose expert lacks nothing.
    Started again, the run goes on with the next unit.

    \b
    Examples:
      rrpolicy reproduce images --quick --out runs/quick.csv
      rrpolicy reproduce images --pair sandal+bag --case scratch --seed 1 --out runs/one.csv
      rrpolicy reproduce images --data photos --pair cat+dog --pair none --out runs/photos.csv
    """
    quiet()
    file = out or Path("runs/images.csv")
    chosen = painters.variant_named(variant)
    values = recipe_of(IMAGES_RECIPE) if recipe is None else read_recipe(recipe)
    values = painters.with_pairs(values, pair)
    units = [] if figures_only else painters.select(values, pair, case, seed, quick)
    if is_packaged(values) and data is None:
        check_frozen("images", units, lambda unit: digest([values, None]), read_log())
    run = painters.reproduction(
        units, values, file, work, data, chosen, progress_bar=progress, log=echo, jobs=Jobs(jobs, scheduler)
    )
    if results := run.run():
        _show(file, painters.summary(results), painters.draw(results, file))


@reproduce_app.command()
def verify(
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Checkout with README.md, docs/ and zoo/.")
    ] = Path(),
    write: Annotated[bool, typer.Option("--write", help="Rewrite pages as their rows say.")] = False,
) -> None:
    """
    Compare every number in README, docs and the zoo's page with the committed rows.

    Numbers have keys in comments below them, tables are made by comments above them; numbers without rows are listed
    in docs/results/numbers_without_rows.toml. Any difference is a line on stderr, and the exit code is 1.

    \b
    Examples:
      rrpolicy reproduce verify
      rrpolicy reproduce verify --write
    """
    rows = Rows(root / "docs" / "results", root / "zoo" / "agents", read_log())
    pages = [*compare_generated(root, write), *verify_pages(root, rows, write)]
    faults = [fault for page in pages for fault in page.faults]
    for page in pages:
        echo(f"{page.name}: {page.keyed} numbers have rows, {len(page.unkeyed)} are listed without")
    for fault in faults:
        echo(f"rrpolicy: error: {printable(fault, 500)}", err=True)
    if faults:
        raise typer.Exit(1)


def _show(file: Path, text: str, written: list[Path]) -> None:
    """Print the summary and keep it beside the figures."""
    write_text(file.with_suffix("") / "summary.md", text)
    echo(text, nl=False)
    echo(f"written: {', '.join(map(str, [file, *written]))}")
