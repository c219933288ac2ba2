"""The program `rrpolicy`: every step of the main job as a command, errors of one line, exit codes that scripts can use.

0 done, 1 a fault (one line on stderr), 2 wrong usage, 3 a failed check of `diff`, 130 and 143 stopped by Ctrl-C and
SIGTERM (129 by SIGHUP).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rrpolicy.cli.baseline_commands import train_agents_on_reward
from rrpolicy.cli.collect_commands import collect
from rrpolicy.cli.commands import app
from rrpolicy.cli.data_commands import check_data
from rrpolicy.cli.diff_command import compare_policies
from rrpolicy.cli.distill_commands import distill
from rrpolicy.cli.export_commands import export
from rrpolicy.cli.images_commands import images_app
from rrpolicy.cli.pictures import benchmark_app, plot_app
from rrpolicy.cli.reproduce import reproduce_app
from rrpolicy.cli.tune import tune_recipe
from rrpolicy.cli.zoo_commands import zoo_app

__all__ = ["app", "main"]

app.command("collect")(collect)
app.command("diff")(compare_policies)
app.command("distill")(distill)
app.command("export")(export)
app.command("check-data")(check_data)
app.command("tune")(tune_recipe)
app.command("train-on-reward")(train_agents_on_reward)
app.add_typer(plot_app, name="plot")
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(images_app, name="images")
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(zoo_app, name="zoo")


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the program and exit.

    :param arguments: default: those of the process
    """
    torch.set_num_threads(1)
    app(args=None if arguments is None else list(arguments), prog_name="rrpolicy")
