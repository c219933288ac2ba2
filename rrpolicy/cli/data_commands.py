"""The command ``check-data``, and the same checks as warnings before training: one line for each fault of a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated

import gymnasium as gym
import typer

from rrpolicy.cli import options
from rrpolicy.cli.program import LONGEST, echo
from rrpolicy.common.messages import RrpolicyWarning, printable
from rrpolicy.common.spaces import flattened_box
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.readers import load_dataset
from rrpolicy.data.report import CLIP, DataReport, report
from rrpolicy.evaluation import Row, result_row, write_results
from rrpolicy.experiments import Task, plain_row


def check_data(
    path: Annotated[str, typer.Argument(metavar="PATH", help=options.DATA_SOURCE)],
    env: options.MaybeEnv = None,
    clip: Annotated[
        float, typer.Option("--clip", min=0, callback=options.finite, help="Bound of plans, normalised units.")
    ] = CLIP,
    out: options.MaybeOut = None,
) -> None:
    """
    Print a summary of a dataset before training: episodes and how they ended, columns, bounds, returns.

    Without --env the data are compared with the environment that they name, where that is registered. Exit code 1 when
    something would spoil training, with one line for each such thing on stderr.

    \b
    Examples:
      rrpolicy check-data data/base --env PointMaze_UMaze-v3
      rrpolicy check-data hopper_medium-v2.hdf5 --env Hopper-v5 --out runs/check
    """
    dataset = load_dataset(path)
    task = Task.create(env) if env is not None else _own_task(dataset)
    found = _report(dataset, task, clip)
    for line in found.lines():
        echo(line)
    echo("environment: " + ("not known, --env compares with one" if task is None else task.env_id))
    if out is not None:
        echo(f"written: {write_results(_rows(found), out)}")
    for fault in found.faults:
        _tell("error", fault)
    if found.faults:
        raise typer.Exit(1)
    echo("nothing that would spoil training")


def warn_of_data(datasets: Sequence[TrajectoryDataset], task: Task) -> None:
    """
    Print a line on stderr for each fault of data that are to be trained on. Other widths than the environment's are
    left to the training, which refuses them.
    """
    for index, dataset in enumerate(datasets):
        name = f"dataset {index + 1}: " if len(datasets) > 1 else ""
        found = _report(dataset, task, CLIP)
        if len(found.outside) == 2:
            for fault in found.faults:
                warnings.warn(name + fault, RrpolicyWarning, stacklevel=2)


def _tell(kind: str, text: str) -> None:
    echo(f"rrpolicy: {kind}: {printable(text, LONGEST - 40)}", err=True)


def _own_task(dataset: TrajectoryDataset) -> Task | None:
    """The task of the environment that a dataset names; None where it names none that is registered."""
    env_id = dataset.metadata.get("env_id")
    if not isinstance(env_id, str) or env_id not in gym.registry:
        return None
    try:
        return Task.create(env_id)
    except ValueError:  # what a file names need not work here
        return None


def _report(dataset: TrajectoryDataset, task: Task | None, clip: float) -> DataReport:
    if task is None:
        return report(dataset, clip=clip)
    env = task.make()
    try:
        seen, done = flattened_box(env.observation_space, "observation"), flattened_box(env.action_space, "action")
        limit = None if env.spec is None else env.spec.max_episode_steps
    finally:
        env.close()
    return report(dataset, seen, done, task.env_id, limit, clip)


def _rows(found: DataReport) -> list[Row]:
    """The report as results."""
    values = {"n_transitions": found.n_transitions, "n_episodes": found.n_episodes, "n_faults": len(found.faults)}
    values |= {f"n_{how}": count for how, count in (found.ends or {}).items()}
    if found.n_inferred is not None:
        values["n_inferred"] = found.n_inferred
    rows = [plain_row("dataset", metric, float(value)) for metric, value in values.items()]
    rows += [plain_row("dataset", f"beyond_clip_{mode}", share) for mode, (share, _) in found.beyond_clip.items()]
    rows += [plain_row("dataset", f"{one.name}_outside", one.share) for one in found.outside]
    for metric, returns in (("return", found.returns), ("normalized_score", found.scores)):
        if returns is not None:
            rows.append(result_row("dataset", metric, returns))
    for column in found.columns:
        numbers = {
            "min": column.low,
            "mean": column.mean,
            "max": column.high,
            "std": column.std,
            "outliers": column.outliers,
        }
        rows += [plain_row(column.name, metric, value) for metric, value in numbers.items()]
    return rows
