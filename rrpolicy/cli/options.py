"""Options that commands share, the task that they name, and the report of results."""

from __future__ import annotations

import datetime
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rrpolicy import experiments, zoo
from rrpolicy.cli.program import echo
from rrpolicy.common.device import prefer
from rrpolicy.common.messages import RrpolicyWarning, at, printable
from rrpolicy.evaluation import Row, table, write_results
from rrpolicy.experiments import Recipe, Task
from rrpolicy.experiments.recipes import read_recipe, recipe_of
from rrpolicy.export.loading import load_onnx
from rrpolicy.export.session import SUFFIX
from rrpolicy.rl.sb3_files import is_sb3_agent

SETTINGS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}


# ---------------------------------------------------------------------- options


def finite(value: float | None) -> float | None:
    """
    An option's number, which must be finite.

    :raises typer.BadParameter: for NaN and infinity, which Python reads as numbers
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def folder_for_results(value: Path | None) -> Path | None:
    """
    An option's folder, looked at before any work is done for it.

    :raises ValueError: when it is a file or cannot be made or written to
    """
    if value is not None:
        _check_writable(value, value, "folder")
    return value


def file_for_results(value: Path | None) -> Path | None:
    """As :func:`folder_for_results`, for an option that names a file."""
    if value is not None:
        if value.is_dir():
            raise ValueError(f"{value} is a folder, wanted a file")
        _check_writable(value, value.parent, "file")
    return value


def iso_date(value: str | None) -> str | None:
    """
    An option's date.

    :raises typer.BadParameter: for something else than YYYY-MM-DD
    """
    if value is not None and not _is_date(value):
        raise typer.BadParameter(f"{value!r} is no date, wanted YYYY-MM-DD.")
    return value


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check_writable(wanted: Path, folder: Path, what: str) -> None:
    above = next(one for one in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(one))
    if not above.is_dir():
        place = wanted if above == wanted.absolute() else above
        raise ValueError(f"{place} is a file, wanted a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"the {what} {wanted} cannot be written: no permission to write to {above}")


def chosen_device(value: str) -> str:
    """
    An option's device, which is what ``"auto"`` stands for while the command runs: whatever is loaded or made is there.

    :raises ValueError: for one that this machine lacks, before any work is done
    """
    prefer(value)
    return value


def parse_cell(text: str) -> tuple[float, float]:
    """Parse ``R,C``."""
    try:
        row, column = (float(part) for part in text.split(","))
        if not (math.isfinite(row) and math.isfinite(column)):
            raise ValueError("not finite")
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not ROW,COLUMN such as 3,1 or 2.5,1") from None
    return row, column


def parse_cells(text: str) -> list[tuple[float, float]]:
    """Parse ``R,C;R,C``."""
    return [parse_cell(part) for part in text.split(";") if part.strip()]


Goal = Annotated[Any, typer.Option("--goal", parser=parse_cell, metavar="R,C", help="Goal cell, counted from 0.")]
Env = Annotated[str, typer.Option("--env", metavar="ID", help="Environment id.")]
MaybeEnv = Annotated[str | None, typer.Option("--env", metavar="ID", help="Environment id; default: the agent's own.")]
AgentsEnv = Annotated[
    str | None, typer.Option("--env", metavar="ID", help="Environment id; default: the agents' own, else a maze.")
]
DataEnv = Annotated[str | None, typer.Option("--env", metavar="ID", help="Environment id; default: the data's own.")]
MazeMap = Annotated[
    Path | None, typer.Option("--maze-map", metavar="FILE", help="Text file with the maze: # wall, . free.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of everything random.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.", callback=folder_for_results)]
MaybeOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder for results.json.", callback=folder_for_results)
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe (TOML) instead of the zoo's.")]
DATA_SOURCE = "Minari folder or id, D4RL name or file, robomimic or npz file, LeRobot folder, Zarr folder or zip file."
AgentName = Annotated[
    str, typer.Argument(metavar="AGENT", help="Zoo name, path of an archive, SB3 file or hub id (sb3/tqc-Hopper-v3).")
]
NumberOfJobs = Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Processes on this machine.")]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", metavar="ADDRESS", help="Dask cluster that does the work, tcp://HOST:PORT.")
]
Device = Annotated[
    str,
    typer.Option("--device", callback=chosen_device, help="Where networks compute: auto, cpu, cuda, cuda:1, mps, ..."),
]
Precision = Annotated[
    Literal["fp32", "bf16"] | None,
    typer.Option("--precision", help="In which networks are called while learning: fp32 or bf16."),
]
Accumulate = Annotated[
    int | None, typer.Option("--accumulate", metavar="N", min=1, help="Parts in which a batch is learned, for memory.")
]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help="Compile the networks (torch.compile).")]
FastNoise = Annotated[
    bool | None, typer.Option("--fast-noise/--same-noise", help="Draw noise on the device; a seed gives other noise.")
]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="Progress bars.")]
Reward = Annotated[str | None, typer.Option("--reward", help="Steer the agent with this reward (zoo name or path).")]
Scale = Annotated[
    float | None, typer.Option("--scale", min=0, callback=finite, help="Guidance strength; 0 is the base.")
]
Candidates = Annotated[
    int | None,
    typer.Option("--n-candidates", min=1, help="Plans to choose the best from: by the reward, else the likeliest."),
]
Fast = Annotated[
    bool, typer.Option("--fast", help="Plan by ONNX Runtime: the same actions up to rounding (extra fast).")
]
Episodes = Annotated[int, typer.Option("--n-episodes", min=1, help="Episodes, seed-matched between agents.")]


class Algorithm(StrEnum):
    """Algorithms whose agents can be read from files of Stable-Baselines3."""

    SAC = "SAC"
    TQC = "TQC"
    TD3 = "TD3"
    DDPG = "DDPG"
    PPO = "PPO"
    A2C = "A2C"
    TRPO = "TRPO"
    ARS = "ARS"


AlgorithmOfFile = Annotated[
    Algorithm | None,
    typer.Option(
        "--algorithm",
        help="What trained a file of Stable-Baselines3, when its name does not tell.",
        case_sensitive=False,
    ),
]


# ---------------------------------------------------------------------- tasks, recipes and results


def recipe_for(task: Task | None, file: Path | None) -> Recipe:
    """The recipe of a file, else of the environment, else plain defaults."""
    if file is not None:
        return read_recipe(file)
    default = experiments.DEFAULT_RECIPE
    return default if task is None else recipe_of(task.env_id, default)


def task_in_card(name: str, needed: bool) -> Task | None:
    """
    The task in the card of an agent or a reward.

    :param needed: whether a card that cannot be followed here, such as one with an environment that is not registered,
        is a fault; otherwise it is left out
    :raises ValueError: naming the file
    """
    if is_sb3_agent(name):  # has no card
        return None
    card = load_onnx(name).card if name.endswith(SUFFIX) else zoo.card(name)
    try:
        return Task.from_card(card)
    except ValueError as error:
        if needed:
            raise ValueError(at(name if name.endswith(SUFFIX) else zoo.find(name), error)) from error
        return None


def task_of(
    names: list[str], env: str | None = None, maze_map: Path | None = None, goal: tuple[float, float] | None = None
) -> Task:
    """
    The task of the options, completed from the first card that holds one.

    A card with another environment or maze is warned about, and no fault: what fits the spaces may act and score there.

    :param names: agents and rewards whose cards are read, in this order
    :raises ValueError: when neither names the environment
    """
    homes = {name: task for name in names if (task := task_in_card(name, needed=env is None)) is not None}
    tasks = list(homes.values())
    if env is None and maze_map is None:
        if not tasks:
            raise ValueError(f"--env is needed: {' and '.join(names)} do not say where they belong")
        chosen = tasks[0]
    else:
        chosen = Task.create(env or (tasks[0].env_id if tasks else experiments.DEFAULT_ENV_ID), maze_map)
    warn_of_places(chosen, homes)
    goals = [task.goal for task in tasks if task.goal and task.with_goal(None) == chosen.with_goal(None)]
    return chosen.with_goal(goal or (goals[0] if goals else None))


def warn_of_places(task: Task, homes: Mapping[str, Task]) -> None:
    """
    Tell which agents and rewards are used elsewhere than they were made for, naming both places.

    Where spaces differ, that is an error when they meet, and no warning comes before it.

    :param task: where they are used
    :param homes: the tasks in their cards, by name
    """
    for name, home in homes.items():
        if not home.is_at(task) and _shapes(home) == _shapes(task):
            warnings.warn(
                f"{printable(name)} was made for {home.place} and is used in {task.place}",
                RrpolicyWarning,
                stacklevel=2,
            )


def _shapes(task: Task) -> Any:
    """Shapes of the spaces of an environment; all mazes have the same."""
    if task.is_maze:
        return None
    with closing(task.make()) as env:
        return env.observation_space.shape, env.action_space.shape


def agent_label(name: str, reward: str | None) -> str:
    """The name of an agent in results."""
    path = Path(name)
    stem = path.stem if path.suffix in (".zip", SUFFIX) else path.name
    return ("" if stem == "agent" else f"{stem}-") + "steered" if reward else stem


def report(rows: list[Row], out: Path | None) -> None:
    """Print the table, write ``results.json``."""
    echo(table(rows))
    if out is not None:
        echo(f"written: {write_results(rows, out)}")
