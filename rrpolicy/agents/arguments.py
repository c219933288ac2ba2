"""Arguments of a `DiffusionAgent`, and the group to which each option belongs.

It takes its options in groups, ``planning=PlanningOptions(...)`` and ``process=DiffusionProcess(...)``; recipes name
them flat, and :func:`grouped` sorts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rrpolicy.agents.options import PlanningOptions
from rrpolicy.common.options import TrainingOptions, check_options
from rrpolicy.diffusion.process import DiffusionProcess

PLANNING = tuple(field.name for field in fields(PlanningOptions))
PROCESS = ("n_diffusion_steps", "schedule", "prediction")


def check_training(options: Mapping[str, Any]) -> None:
    """
    Refuse keywords that a `DiffusionAgent` does not take.

    :raises TypeError: naming where an option of planning or of the process belongs
    """
    for name, value in options.items():
        if name in PLANNING:
            raise TypeError(f"{name} is a planning option: planning=PlanningOptions({name}={value!r:.60})")
        if name in PROCESS:
            raise TypeError(f"{name} is an option of the process: process=DiffusionProcess({name}={value!r:.60})")
    check_options("DiffusionAgent", options, TrainingOptions)


def grouped(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    A `DiffusionAgent`'s arguments from flat ones, as recipes have them.

    :param arguments: those of the constructor, of `PlanningOptions` and of `DiffusionProcess`, side by side
    :return: the constructor's
    :raises ValueError: for a number of levels, schedule or prediction that there is not
    """
    groups: dict[str, Any] = {name: value for name, value in arguments.items() if name not in (*PLANNING, *PROCESS)}
    planning = {name: arguments[name] for name in PLANNING if name in arguments}
    process = {name: arguments[name] for name in PROCESS if name in arguments}
    if planning:
        groups["planning"] = PlanningOptions(**planning)
    if process:
        groups["process"] = DiffusionProcess(**process)
    return groups
