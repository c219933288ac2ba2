"""Selections of results of the image experiment: pairs, the control, classes, noise levels, time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rrpolicy.experiments.images.spec import CASES, CONTROL
from rrpolicy.experiments.report import Key, values_of
from rrpolicy.experiments.results import UNIT_DONE, Result

AGENTS = ("base", "expert", "steered-1", "steered-2")
AUROC, ELBO = ("rho", "auroc"), ("rho", "auroc_elbo_subset")
BRIGHTNESS = (("brightness", "auroc"), ("brightness", "auroc_reversed"))
HARMFUL, CONFIDENCE, OF_STAYED = "harmful_share", "judge_confidence", "judge_confidence_stayed"
ALLOWED = 1.0  # nats around 0 in which the mean of a class that stayed is to lie
SHARED = {"base": "seed", "base-samples": "seed", "judge": "run"}  # what units share, so that its cost counts once
COSTS = ("base", "expert", "base-samples", "expert-samples", "rho", "judge")
MEAN, LOOKALIKES = "mean", "auroc_lookalikes"
STAYED = "mean_stayed"  # of all images together, where others are of a class
SPREAD = ("rho", "sd")
Values = Callable[[Sequence[Result]], list[float]]


def of_pairs(results: Sequence[Result]) -> list[Result]:
    """Results of units whose expert lacks classes."""
    return [one for one in results if one.task != CONTROL]


def of_control(results: Sequence[Result]) -> list[Result]:
    """Results of units whose expert has seen all classes."""
    return [one for one in results if one.task == CONTROL]


def held_out_of(task: str) -> tuple[str, ...]:
    """The held-out classes in a task's name."""
    return () if task == CONTROL else tuple(task.split("+"))


def tasks_of(results: Sequence[Result]) -> list[str]:
    """Names of the tasks in the order of the rows, the control last."""
    return sorted(dict.fromkeys(one.task for one in results), key=lambda task: task == CONTROL)


def groups(results: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """Results of each task and kind of expert that has any."""
    found = (
        (task, case, [one for one in results if (one.task, one.case) == (task, case)])
        for task in tasks_of(results)
        for case in CASES
    )
    return [(task, case, group) for task, case, group in found if group]


def by_unit(results: Sequence[Result]) -> list[list[Result]]:
    """Results of each unit, of each variant."""
    found: dict[tuple[object, ...], list[Result]] = {}
    for one in results:
        found.setdefault((*one.unit, one.variant), []).append(one)
    return list(found.values())


def per_level(results: Sequence[Result]) -> dict[int, list[float]]:
    """Noise level -> AUROC of ρ, a number for each unit, of a control for each pair that was measured."""
    found: dict[int, list[float]] = {}
    for one in results:
        if (one.agent, one.metric) == AUROC and one.level is not None:
            found.setdefault(one.level, []).append(one.value)
    return found


def class_means(results: Sequence[Result], task: str) -> dict[str, list[float]]:
    """Class -> mean ρ of its images in nats, a number for each unit of a task."""
    found: dict[str, list[float]] = {}
    for one in results:
        if (one.task, one.agent, one.metric) == (task, "rho", MEAN):
            found.setdefault(one.reference, []).append(one.value)
    return found


def total_seconds(results: Sequence[Result]) -> float:
    """CPU-seconds of all units; what several of them share counts once."""
    total, counted = 0.0, set()
    for one in results:
        if (one.agent, one.metric) == UNIT_DONE:
            total += one.value
        elif one.metric == "cpu_seconds" and one.agent in SHARED:
            owner = (one.agent, one.seed if SHARED[one.agent] == "seed" else None)
            total -= one.value if owner in counted else 0.0
            counted.add(owner)
    return total


def of_key(key: Key) -> Values:
    """A function that selects the values of one agent and metric, for units whose expert lacks classes."""
    return lambda results: values_of(of_pairs(results), key)


def lookalikes(results: Sequence[Result]) -> list[float]:
    """AUROC of each held-out class against its look-alikes."""
    return [one.value for one in results if one.metric == LOOKALIKES]


def control_values(results: Sequence[Result]) -> list[float]:
    """AUROC of the control's ρ on clean images, a number for each pair of classes."""
    return [
        one.value
        for one in of_control(results)
        if (one.agent, one.metric) == AUROC and one.reference and one.level is None
    ]
