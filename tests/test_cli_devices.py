"""``--device`` of every command that loads or makes a network: faults are named at once, and networks are there."""

from __future__ import annotations

import inspect
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest.mock import patch

import pytest
from helpers.program import invoke
from test_cli import fault, run
from test_cli_refusals import Command, all_commands

from rrpolicy.common.device import prefer, preferred

COMMANDS = {command for command, function in all_commands() if "device" in inspect.signature(function).parameters}
WITHOUT = {  # which have no network
    ("check-data",),
    ("plot", "learning-curve"),
    ("reproduce", "verify"),
    ("zoo", "list"),
    ("zoo", "info"),
    ("zoo", "pull"),
    ("zoo", "push"),
    ("zoo", "table"),
}


def test_every_command_with_a_network_has_the_option() -> None:
    assert {command for command, _ in all_commands()} - WITHOUT == COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=" ".join)
def test_a_device_that_is_not_there_is_refused_at_once(command: Command) -> None:
    line = fault(*command, "--device", "foo")
    assert "device is 'foo', this machine has auto, cpu" in line and line.endswith("there is no such kind of device")


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:99", "torch sees no such GPU"),
        ("meta", "tensors there hold no numbers"),
        ("cpu:", "there is no such kind of device"),
    ],
)
def test_the_fault_is_named(device: str, said: str) -> None:
    line = fault("enjoy", "x", "--device", device)
    assert f"device is {device!r}, this machine has auto, cpu" in line and line.endswith(said)


def test_a_device_without_use_is_refused() -> None:
    out = ("--out", "x", "--device", "cpu")
    assert "--device is for --agent" in fault("collect", "--env", "PointMaze_UMaze-v3", *out)
    assert "--device is for --reward" in fault("train-on-reward", "--true-reward", *out)


def test_what_a_command_prefers_ends_with_it() -> None:
    run("enjoy", "x", "--device", "cpu", code=1)  # there is no such agent
    assert preferred() == "auto"


def found_elsewhere() -> dict[str, Any]:
    """What commands and functions see where there is a second device, in a process that may register one."""
    from helpers.other_device import other_device

    from rrpolicy import zoo
    from rrpolicy.cli import commands

    found: dict[str, Any] = {}
    with other_device():
        with patch.object(commands, "evaluate", side_effect=ValueError("stopped")) as evaluate:
            for device in ("other", "auto"):
                result = invoke(["enjoy", "PointMaze_UMaze-v3/base", "--device", device])
                found[device] = str(evaluate.call_args.args[0].device), result.exit_code
        prefer("other")
        found["loaded"] = str(zoo.load("PointMaze_UMaze-v3/reward-3-1").device)
        found["said"] = str(zoo.load("PointMaze_UMaze-v3/base", device="cpu").device)
    return found


def test_networks_are_where_the_option_says() -> None:
    # forked, with torch and the commands imported: what is computed there takes no gradients, which a fork could not
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        found = pool.submit(found_elsewhere).result()
    assert found == {"other": ("other:0", 1), "auto": ("cpu", 1), "loaded": "other:0", "said": "cpu"}
