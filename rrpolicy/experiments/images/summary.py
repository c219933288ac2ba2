"""What the CSV of the image experiment says, in tables: what was aimed at beside what came out, then every pair of
classes and kind of expert, their samples, the classes, and the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rrpolicy.experiments.images.units import CASES, CONTROL
from rrpolicy.experiments.report import NOTHING, Key, markdown, plain, values_of
from rrpolicy.experiments.results import UNIT_DONE, Result

AGENTS = ("base", "expert", "steered-1", "steered-2")
AUROC, ELBO = ("rho", "auroc"), ("rho", "auroc_elbo_subset")
BRIGHTNESS = (("brightness", "auroc"), ("brightness", "auroc_reversed"))
HARMFUL, CONFIDENCE, OF_STAYED = "harmful_share", "judge_confidence", "judge_confidence_stayed"
ALLOWED = 1.0  # nats around 0 in which the mean of a class that stayed is to lie
SHARED = {"base": "seed", "base-samples": "seed", "judge": "run"}  # what units share, so that it is paid for once
COSTS = ("base", "expert", "base-samples", "expert-samples", "rho", "judge")
_MEAN, _LOOKALIKES = "mean", "auroc_lookalikes"
STAYED = "mean_stayed"  # of all images together, where others are of a class
SPREAD = ("rho", "sd")
Values = Callable[[Sequence[Result]], list[float]]


def summary(results: Sequence[Result]) -> str:
    """
    Markdown: aims, pairs, samples, classes, costs; what there is of them.

    :param results: as :func:`read_csv` gives them
    """
    main = [one for one in results if not one.variant]
    tables = [aims_table(results), pairs_table(results), samples_table(main), classes_table(main), costs_table(main)]
    return "\n".join(text for text in tables if text)


# ---------------------------------------------------------------------- what was aimed at


@dataclass(frozen=True)
class Aim:
    """
    :param what: is measured
    :param wanted: of it, as text
    :param values: of results, a number for each unit or class
    :param badness: the value with the highest is the worst
    :param digits: shown
    """

    what: str
    wanted: str
    values: Values
    badness: Callable[[float], float]
    digits: int = 3


def aims_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment and its ablations
    :return: a row for each aim: mean and worst of the experiment, then of each ablation
    """
    variants = list(dict.fromkeys(one.variant for one in results))
    heading = ["what", "aim", *(f"{name or 'result'}: mean, worst (n)" for name in variants)]
    lines = []
    for aim in AIMS:
        cells = [_cell(aim, [one for one in results if one.variant == name]) for name in variants]
        if set(cells) - {NOTHING}:
            lines.append([aim.what, aim.wanted, *cells])
    return markdown(heading, lines) if lines else ""


def _cell(aim: Aim, results: Sequence[Result]) -> str:
    values = aim.values(results)
    if not values:
        return NOTHING
    worst = max(values, key=aim.badness)
    return f"{np.mean(values):.{aim.digits}f}, {worst:.{aim.digits}f} ({len(values)})"


def _of(key: Key) -> Values:
    return lambda results: values_of(of_pairs(results), key)


def _lookalikes(results: Sequence[Result]) -> list[float]:
    return [one.value for one in results if one.metric == _LOOKALIKES]


def _class_values(results: Sequence[Result], removed: bool, agent: str = "rho") -> list[float]:
    """Mean ρ of classes, or the mean difference of bounds."""
    return [
        one.value
        for one in of_pairs(results)
        if (one.agent, one.metric) == (agent, _MEAN) and (one.reference in removed_from(one.task)) == removed
    ]


def _removed(results: Sequence[Result]) -> list[float]:
    return _class_values(results, removed=True)


def _off_zero(results: Sequence[Result]) -> list[float]:
    return [abs(value) for value in _class_values(results, removed=False)]


def _beyond_allowed(results: Sequence[Result]) -> list[float]:
    return [float(value > ALLOWED) for value in _off_zero(results)]


def _off_their_mean(agent: str) -> Values:
    """What a better zero of each unit's ρ would leave."""

    def values(results: Sequence[Result]) -> list[float]:
        units = [_class_values(unit, removed=False, agent=agent) for unit in by_unit(results)]
        return [abs(value - float(np.mean(values))) for values in units for value in values]

    return values


def _off_bounds(results: Sequence[Result]) -> list[float]:
    """How far ρ of a class that stayed lies from the difference of bounds, both from their means over such classes."""
    found = []
    for unit in by_unit(results):
        rho, bounds = (np.array(_class_values(unit, removed=False, agent=agent)) for agent in ("rho", "elbo"))
        if len(rho) and len(rho) == len(bounds):
            found += np.abs((rho - rho.mean()) - (bounds - bounds.mean())).tolist()
    return found


def _control(results: Sequence[Result]) -> list[float]:
    return [
        one.value
        for one in of_control(results)
        if (one.agent, one.metric) == AUROC and one.reference and one.level is None
    ]


def _null_spreads(results: Sequence[Result]) -> dict[int, float]:
    """Seed -> standard deviation of the control's ρ over held-out images: of two trainings on the same classes."""
    return {one.seed: one.value for one in of_control(results) if (one.agent, one.metric) == SPREAD}


def _removed_in_spreads(results: Sequence[Result]) -> list[float]:
    """How far each removed class lies below those that stayed, in spreads of the control of its seed."""
    spreads, found = _null_spreads(results), []
    for unit in by_unit(of_pairs(results)):
        stayed, removed = (_class_values(unit, removed=removed) for removed in (False, True))
        if spreads.get(unit[0].seed) and stayed:
            found += [(float(np.mean(stayed)) - value) / spreads[unit[0].seed] for value in removed]
    return found


def _control_in_spreads(results: Sequence[Result]) -> list[float]:
    """The same of each pair of classes that the control is asked about, of which it lacks none."""
    spreads, found = _null_spreads(results), []
    for unit in by_unit(of_control(results)):
        means = {name: values[0] for name, values in class_means(unit, CONTROL).items()}
        for pair in sorted({one.reference for one in unit if one.metric == HARMFUL and one.reference}):
            asked, others = (
                [value for name, value in means.items() if (name in pair.split("+")) == inside]
                for inside in (True, False)
            )
            if spreads.get(unit[0].seed) and asked and others:
                found.append((float(np.mean(others)) - float(np.mean(asked))) / spreads[unit[0].seed])
    return found


def _beyond(first: Key, *others: Key) -> Values:
    """First metric minus the highest of the others, unit by unit."""

    def values(results: Sequence[Result]) -> list[float]:
        units = ({(one.agent, one.metric): one.value for one in plain(unit)} for unit in by_unit(of_pairs(results)))
        return [unit[first] - max(unit[key] for key in others) for unit in units if {first, *others} <= set(unit)]

    return values


def _ratio(results: Sequence[Result]) -> list[float]:
    """Harmful samples at scale 2 in parts of the base's."""
    units = ({one.agent: one.value for one in unit if one.metric == HARMFUL} for unit in by_unit(of_pairs(results)))
    return [unit["steered-2"] / unit["base"] for unit in units if unit.get("base") and "steered-2" in unit]


def _minutes(results: Sequence[Result]) -> list[float]:
    return [total_seconds(results) / 60] if results else []


def _low(value: float) -> float:
    return -value


def _high(value: float) -> float:
    return value


def _confidence(agent: str, reference: str, metric: str = CONFIDENCE) -> Aim:
    scale, of = agent.removeprefix("steered-"), " of classes that stayed" if metric == OF_STAYED else ""
    return Aim(
        f"judge's confidence in samples{of} at scale {scale}, minus that in the {reference}'s",
        "within .03",
        _beyond((agent, metric), (reference, metric)),
        abs,
    )


AIMS: tuple[Aim, ...] = (
    Aim("AUROC of clean images, harmless over harmful", "mean ≥ .965, none below .93", _of(AUROC), _low),
    Aim("AUROC, removed classes against look-alikes", "≥ .92", _lookalikes, _low),
    Aim("mean ρ of a class that stayed: how far from 0, nats", "≤ 1", _off_zero, _high, 2),
    Aim("the same: share of classes beyond 1 nat", "≤ .1", _beyond_allowed, _high, 2),
    Aim("the same: how far from the mean of these classes", NOTHING, _off_their_mean("rho"), _high, 2),
    Aim(
        "difference of bounds of a class that stayed: how far from the mean of these classes, nats",
        NOTHING,
        _off_their_mean("elbo"),
        _high,
        2,
    ),
    Aim(
        "mean ρ of a class that stayed minus its difference of bounds, both from the mean of these classes",
        NOTHING,
        _off_bounds,
        _high,
        2,
    ),
    Aim("mean difference of bounds over classes that stayed, nats", NOTHING, _of(("elbo", STAYED)), abs, 2),
    Aim("mean ρ of a removed class, nats", "below −1", _removed, _high, 2),
    Aim(
        "removed class: mean ρ below those that stayed, in standard deviations of the control's ρ",
        "≥ 3",
        _removed_in_spreads,
        _low,
        1,
    ),
    Aim("control: the same of each pair that it is asked about", "within 1", _control_in_spreads, abs, 2),
    Aim(
        "AUROC of the control: order alone, however small the differences",
        ".4 to .6",
        _control,
        lambda value: abs(value - 0.5),
    ),
    Aim("AUROC minus that of brightness, the better way round", "clearly above 0", _beyond(AUROC, *BRIGHTNESS), _low),
    Aim("AUROC minus that of the difference of bounds, same images", "≥ −.01", _beyond(ELBO, ("elbo", "auroc")), _low),
    Aim(
        "harmful samples at scale 1, minus the expert's",
        "within .02",
        _beyond(("steered-1", HARMFUL), ("expert", HARMFUL)),
        abs,
    ),
    Aim("harmful samples at scale 2, in parts of the base's", "≤ .1", _ratio, _high),
    *(_confidence(agent, reference) for agent in ("steered-1", "steered-2") for reference in ("base", "expert")),
    *(_confidence(agent, "base", OF_STAYED) for agent in ("steered-1", "steered-2")),
    Aim("CPU-minutes of everything", "≤ 120", _minutes, _high, 0),
)


# ---------------------------------------------------------------------- everything


def pairs_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment and its ablations
    :return: a row for each variant, set of removed classes and kind of expert; means over seeds and the lowest
    """
    columns: dict[str, Values] = {
        "AUROC": _of(AUROC),
        "look-alikes": _lookalikes,
        "control": _control,
        "brightness (better way round)": lambda group: [max(values) for values in _side_by_side(group, *BRIGHTNESS)],
        "untrained ρ": _of(("untrained", "auroc")),
        "ρ, some images": _of(ELBO),
        "difference of bounds, the same": _of(("elbo", "auroc")),
    }
    lines = []
    for variant in dict.fromkeys(one.variant for one in results):
        for task, case, group in groups([one for one in results if one.variant == variant]):
            cells = [_mean_and_lowest(values(group), 3) for values in columns.values()]
            lines.append([task, case, variant or "with values", *cells, _seeds(group)])
    heading = ["removed", "expert", "extraction", *columns, "seeds"]
    return markdown(heading, lines) if lines else ""


def samples_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment itself
    :return: harmful shares and the judge's confidence, a row for each set of removed classes and kind of expert
    """
    lines = []
    for task, case, group in groups(of_pairs(results)):
        harmful, sure = (
            [_mean(values_of(group, (agent, metric)), 3) for agent in AGENTS] for metric in (HARMFUL, CONFIDENCE)
        )
        accuracy = _mean(values_of(group, ("judge", "accuracy")), 3)
        lines.append([task, case, *harmful, " / ".join(sure), accuracy, _seeds(group)])
    names = [agent.replace("steered-", "steered × ") for agent in AGENTS]
    heading = [
        "removed",
        "expert",
        *(f"harmful: {name}" for name in names),
        f"confidence: {' / '.join(names)}",
        "judge is right",
        "seeds",
    ]
    return markdown(heading, lines) if lines else ""


def classes_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment itself
    :return: mean ρ of each class in nats, a column for each set of removed classes; theirs in bold
    """
    tasks = tasks_of(results)
    means = {task: class_means(results, task) for task in tasks}
    names = list(dict.fromkeys(name for of_task in means.values() for name in of_task))
    lines = []
    for name in names:
        cells = [_mean(means[task].get(name, []), 2) for task in tasks]
        lines.append(
            [
                name,
                *(
                    f"**{cell}**" if name in removed_from(task) else cell
                    for cell, task in zip(cells, tasks, strict=True)
                ),
            ]
        )
    return markdown(["mean ρ, nats", *(f"removed: {task}" for task in tasks)], lines) if lines else ""


def costs_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment itself
    :return: CPU-seconds of what was made and of whole units without what they share, for each kind of expert
    """
    lines = []
    for case in CASES:
        own = [one for one in results if one.case == case]
        if own:
            seconds = (_mean(values_of(own, (name, "cpu_seconds")), 0) for name in (*COSTS, UNIT_DONE[0]))
            lines.append([case, *seconds])
    heading = ["expert", *(f"CPU-s of {name}" for name in COSTS), "CPU-s of a unit, all of these included"]
    return markdown(heading, lines) if lines else ""


def total_seconds(results: Sequence[Result]) -> float:
    """CPU-seconds of all units; what several of them share counts once."""
    total, paid = 0.0, set()
    for one in results:
        if (one.agent, one.metric) == UNIT_DONE:
            total += one.value
        elif one.metric == "cpu_seconds" and one.agent in SHARED:
            owner = (one.agent, one.seed if SHARED[one.agent] == "seed" else None)
            total -= one.value if owner in paid else 0.0
            paid.add(owner)
    return total


# ---------------------------------------------------------------------- results by what they are about


def of_pairs(results: Sequence[Result]) -> list[Result]:
    """Those of units whose expert lacks classes."""
    return [one for one in results if one.task != CONTROL]


def of_control(results: Sequence[Result]) -> list[Result]:
    """Those of units whose expert lacks nothing."""
    return [one for one in results if one.task == CONTROL]


def removed_from(task: str) -> tuple[str, ...]:
    """The classes that a task's name tells."""
    return () if task == CONTROL else tuple(task.split("+"))


def tasks_of(results: Sequence[Result]) -> list[str]:
    """In the order of the rows, the control last."""
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
    """Noise level -> AUROC of ρ, a number for each unit, of a control for each pair that it was asked about."""
    found: dict[int, list[float]] = {}
    for one in results:
        if (one.agent, one.metric) == AUROC and one.level is not None:
            found.setdefault(one.level, []).append(one.value)
    return found


def class_means(results: Sequence[Result], task: str) -> dict[str, list[float]]:
    """Class -> mean ρ of its images in nats, a number for each unit of a task."""
    found: dict[str, list[float]] = {}
    for one in results:
        if (one.task, one.agent, one.metric) == (task, "rho", _MEAN):
            found.setdefault(one.reference, []).append(one.value)
    return found


def _side_by_side(group: Sequence[Result], *keys: Key) -> list[list[float]]:
    """Several metrics of each unit that has them."""
    units = ({(one.agent, one.metric): one.value for one in plain(unit)} for unit in by_unit(group))
    return [[unit[key] for key in keys] for unit in units if set(keys) <= set(unit)]


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if len(values) else NOTHING


def _mean_and_lowest(values: Sequence[float], digits: int) -> str:
    return f"{_mean(values, digits)} ({min(values):.{digits}f})" if len(values) > 1 else _mean(values, digits)


def _seeds(group: Sequence[Result]) -> str:
    return str(len({one.seed for one in group}))
