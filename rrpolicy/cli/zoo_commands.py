"""Commands of the zoo: list entries, show a card, make the table, and build entries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.options import recipe_for
from rrpolicy.cli.program import echo
from rrpolicy.common.files import write_json, write_text
from rrpolicy.evaluation import table, write_results
from rrpolicy.experiments import FASHION_MNIST, Task
from rrpolicy.experiments.images import ArtifactStore
from rrpolicy.experiments.locomotion import Demonstrations
from rrpolicy.experiments.locomotion.spec import of_case
from rrpolicy.experiments.recipes import read_recipe, recipe_of
from rrpolicy.experiments.zoo_build import SEED, ImageZooBuild, MazeZooBuild, RobotZooBuild, image_unit, robot_unit
from rrpolicy.experiments.zoo_students import StudentZooBuild
from rrpolicy.rewards.fit_report import FitReport

IMAGES_RECIPE = "fashion_mnist"
HEADLINES = (  # of an entry in the list: agent, metric, form
    ("agent", "success_rate", "success {:.2f}"),
    ("agent", zoo.SCORE, "score {:.1f}"),
    ("steered", "gap_closed", "{:.2f} of the gap"),
    ("agent", zoo.HARMFUL, "harmful share {:.3f}"),
    ("rho", "auroc", "AUROC {:.3f}"),
    ("judge", "accuracy", "accuracy {:.3f}"),
)
Goals = Annotated[
    Any, typer.Option("--goals", parser=options.parse_cells, metavar="R,C;R,C", help="Maze: one entry for each.")
]
Date = Annotated[
    str | None, typer.Option("--date", callback=options.iso_date, help="Of the cards, YYYY-MM-DD; default: today.")
]
OtherFolder = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", callback=options.folder_for_results, help="Another folder than the zoo's."),
]
Force = Annotated[bool, typer.Option("--force", help="Build again what is there.")]
zoo_app = typer.Typer(help="Pretrained agents, image models and rewards.", **options.SETTINGS)


@zoo_app.command("list")
def list_entries(out: options.MaybeOut = None) -> None:
    """
    List the entries of the zoo.

    \b
    Example:
      rrpolicy zoo list
    """
    cards = zoo.entries()
    name, kind = (max([len(card[key]) for card in cards] or [0]) for key in ("name", "kind"))
    for card in cards:
        line = f"{card['name']:<{name}}  {card['kind']:<{kind}}  {card['bytes'] / 2**20:.1f} MiB"
        echo("  ".join([line, *_headlines(card)]))
    if not cards:
        echo(f"the zoo in {zoo.folder()} is empty")
    if out is not None:
        write_json(out / "entries.json", cards)
        rows = [{**row, "agent": f"{card['name']}:{row['agent']}"} for card in cards for row in card["results"]]
        write_results(rows, out)


def _headlines(card: Mapping[str, Any]) -> list[str]:
    means = {(row["agent"], row["metric"]): row["mean"] for row in card["results"]}
    return [form.format(means[agent, metric]) for agent, metric, form in HEADLINES if (agent, metric) in means]


@zoo_app.command("info")
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as PointMaze_UMaze-v3/base, or an archive's path.")],
) -> None:
    """
    Show the card of an entry, or of an archive of yours: what it is, how it was made, what was measured.

    A reward's card holds its fit report, which is followed by what speaks against the reward.

    \b
    Examples:
      rrpolicy zoo info PointMaze_UMaze-v3/expert-3-1
      rrpolicy zoo info Hopper-v5/reward
      rrpolicy zoo info runs/reward/reward.zip
    """
    card = zoo.card(name) if Path(name).suffix == ".zip" else zoo.info(name)
    rows, fit = card.pop("results", None), FitReport.from_dict(card.pop("fit", None))
    if not (card or rows or fit):
        echo(f"{name} carries no card")
        return
    echo("\n".join(f"{key}: {json.dumps(value)}" for key, value in card.items()))
    if fit is not None:
        echo("\n".join([*fit.lines(), *(f"  warning: {doubt}" for doubt in fit.warnings())]))
    echo(f"\n{table(rows)}" if rows else "")


@zoo_app.command("table")
def show_table(
    write: Annotated[bool, typer.Option("--write", help="Write the zoo's README.md instead of printing it.")] = False,
) -> None:
    """
    Make the zoo's page from its cards.

    \b
    Examples:
      rrpolicy zoo table
      rrpolicy zoo table --write
    """
    if not write:
        echo(zoo.table(), nl=False)
        return
    path = zoo.folder() / "README.md"
    write_text(path, zoo.table())
    echo(f"written: {path}")


@zoo_app.command("push")
def push(
    name: options.AgentName,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the Hugging Face hub.")],
    onnx: Annotated[Path | None, typer.Option("--onnx", help="The model's ONNX file, to lie beside it.")] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option("--picture", help="PNG or MP4 for the card; repeatable.")
    ] = None,
    license: Annotated[str, typer.Option("--license", help="The hub's identifier.")] = zoo.LICENSE,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
) -> None:
    """
    Upload an archive to the Hugging Face hub with a model card made from its own card (extra hub, token HF_TOKEN).

    \b
    Examples:
      rrpolicy zoo push runs/reward/reward.zip me/hopper-reward
      rrpolicy zoo push runs/student/policy.zip me/hopper-student --onnx student.onnx --picture student.mp4
    """
    where = zoo.push(name, repository, onnx=onnx, pictures=pictures or (), license=license, private=private)
    echo(f"published: {where}")


@zoo_app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="hub:OWNER/NAME or hub:OWNER/NAME@REVISION.")],
    out: options.Out,
) -> None:
    """
    Download what `zoo push` uploaded: archive, ONNX file, card and pictures.

    \b
    Example:
      rrpolicy zoo pull hub:me/hopper-reward --out runs/hopper-reward
    """
    echo(f"written: {zoo.pull(name, out)}")


@zoo_app.command("build")
def build(
    env: Annotated[str, typer.Argument(metavar="ENV", help=f"Environment id, or {FASHION_MNIST}.")],
    goals: Goals = None,
    case: Annotated[
        str | None,
        typer.Option("--case", metavar="NAME", help="Robot: which data of its recipe; default: the first."),
    ] = None,
    agents: Annotated[
        Path | None,
        typer.Option("--agents", metavar="DIR", help="Robot: folder of pretrained SB3 agents; default: from the hub."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Robot: data sets, default: in --work. Images: labelled images."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="DIR",
            callback=options.folder_for_results,
            help="Robot, images: of archives; default: where reproduce keeps them.",
        ),
    ] = None,
    seed: options.Seed = SEED,
    date: Date = None,
    n_episodes: Annotated[
        int | None, typer.Option("--n-episodes", min=1, help="For each number; of image models: samples.")
    ] = None,
    force: Force = False,
    out: OtherFolder = None,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Train, extract, measure and store base, experts and rewards of an environment; goes on where it was stopped.

    A robot gets one base, one expert and one reward, trained as reproduce locomotion does, and a video of each; images
    get base, expert, reward and classifier (the entry judge), trained as reproduce images does.

    \b
    Examples:
      rrpolicy zoo build PointMaze_UMaze-v3 --goals "1,1;3,1;2,3" --seed 0
      rrpolicy zoo build Hopper-v5 --case noisy --agents rl-trained-agents --work runs/locomotion
      rrpolicy zoo build FashionMNIST --seed 1 --work runs/images
    """
    given: dict[str, Any] = {"date": date, "folder": out}
    given = {name: value for name, value in given.items() if value is not None}
    given["log"] = echo
    if env == FASHION_MNIST:
        values = recipe_of(IMAGES_RECIPE) if recipe is None else read_recipe(recipe)
        store = ArtifactStore(work or Path("runs/images"), values, data)
        ImageZooBuild(image_unit(seed), store, n_samples=n_episodes, **given).run(force)
        return
    given["n_episodes"] = n_episodes
    task = Task.create(env)
    if task.is_maze:
        if not goals:
            raise typer.BadParameter("is needed in a maze", param_hint="--goals")
        for goal in goals:  # before the base is trained
            task.with_goal(goal)
        MazeZooBuild(task, goals, recipe_for(task, recipe), seed, progress_bar=progress, **given).run(force)
        return
    values = recipe_of(env) if recipe is None else read_recipe(recipe)
    unit = robot_unit(task.env_id, values, case, seed)
    work = work or Path("runs/locomotion")
    demonstrations = Demonstrations(data or work / "data", agents)
    RobotZooBuild(unit, of_case(values, unit.case), work, demonstrations, **given).run(force)


@zoo_app.command("distill")
def distill(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="Environment id, of which the zoo has a base and a reward.")
    ],
    goals: Goals = None,
    case: Annotated[
        str | None,
        typer.Option("--case", metavar="NAME", help="Robot: the kind of data that the entries were made of."),
    ] = None,
    seed: options.Seed = SEED,
    date: Date = None,
    n_episodes: Annotated[int | None, typer.Option("--n-episodes", min=1, help="For each number.")] = None,
    force: Force = False,
    out: OtherFolder = None,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Distill the steered base of an environment into a policy without planning, and store it as the entry student.

    Base and reward are those of the zoo; planner and student are measured in the same episodes. Needs the extra fast.

    \b
    Examples:
      rrpolicy zoo distill Hopper-v5 --n-episodes 64 --seed 13
      rrpolicy zoo distill PointMaze_UMaze-v3 --goals "3,1" --seed 13
    """
    task = Task.create(env)
    values = recipe_for(task, recipe)
    if task.is_maze and not goals:
        raise typer.BadParameter("is needed in a maze", param_hint="--goals")
    if not task.is_maze:
        values = of_case(values, case or robot_unit(task.env_id, values).case)
    tasks = [task.with_goal(goal) for goal in goals or [None]]
    given: dict[str, Any] = {"date": date, "folder": out, "n_episodes": n_episodes}
    given = {name: value for name, value in given.items() if value is not None}
    StudentZooBuild(tasks=tasks, recipe=values, seed=seed, log=echo, **given).run(force)
