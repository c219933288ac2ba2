"""Aims of the image experiment, each beside the values reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rrpolicy.experiments.images.rows import (
    ALLOWED,
    AUROC,
    BRIGHTNESS,
    CONFIDENCE,
    ELBO,
    HARMFUL,
    MEAN,
    OF_STAYED,
    SPREAD,
    STAYED,
    Values,
    by_unit,
    class_means,
    control_values,
    held_out_of,
    lookalikes,
    of_control,
    of_key,
    of_pairs,
    total_seconds,
)
from rrpolicy.experiments.images.spec import CONTROL
from rrpolicy.experiments.report import NOTHING, Key, markdown, plain
from rrpolicy.experiments.results import Result


@dataclass(frozen=True)
class Aim:
    """
    A target of the experiment: a quantity, the value wanted, and how the quantity is computed from results.

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
    Markdown table of the aims and the values reached.

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


def cases_table(results: Sequence[Result]) -> str:
    """
    Markdown table of the aims by kind of expert, where there are several.

    :param results: of the experiment itself
    :return: a row for each aim, a column for each kind of expert with mean and worst; the control counts for each
    """
    cases = list(dict.fromkeys(one.case for one in results if one.task != CONTROL))
    parts = {case: [one for one in results if case == one.case or one.task == CONTROL] for case in cases}
    lines = [[aim.what, *(_cell(aim, part) for part in parts.values())] for aim in AIMS]
    heading = ["what", *(f"{case}: mean, worst (n)" for case in cases)]
    return markdown(heading, [line for line in lines if set(line[1:]) - {NOTHING}]) if len(cases) > 1 else ""


def _cell(aim: Aim, results: Sequence[Result]) -> str:
    values = aim.values(results)
    if not values:
        return NOTHING
    worst = max(values, key=aim.badness)
    return f"{np.mean(values):.{aim.digits}f}, {worst:.{aim.digits}f} ({len(values)})"


def _class_values(results: Sequence[Result], held_out: bool, agent: str = "rho") -> list[float]:
    """Mean ρ of classes, or the mean difference of bounds."""
    return [
        one.value
        for one in of_pairs(results)
        if (one.agent, one.metric) == (agent, MEAN) and (one.reference in held_out_of(one.task)) == held_out
    ]


def _held_out(results: Sequence[Result]) -> list[float]:
    return _class_values(results, held_out=True)


def _off_zero(results: Sequence[Result]) -> list[float]:
    return [abs(value) for value in _class_values(results, held_out=False)]


def _beyond_allowed(results: Sequence[Result]) -> list[float]:
    return [float(value > ALLOWED) for value in _off_zero(results)]


def _off_their_mean(agent: str) -> Values:
    """What a better zero of each unit's ρ would leave."""

    def values(results: Sequence[Result]) -> list[float]:
        units = [_class_values(unit, held_out=False, agent=agent) for unit in by_unit(results)]
        return [abs(value - float(np.mean(values))) for values in units for value in values]

    return values


def _off_bounds(results: Sequence[Result]) -> list[float]:
    """How far ρ of a class that stayed lies from the difference of bounds, both from their means over such classes."""
    found = []
    for unit in by_unit(results):
        rho, bounds = (np.array(_class_values(unit, held_out=False, agent=agent)) for agent in ("rho", "elbo"))
        if len(rho) and len(rho) == len(bounds):
            found += np.abs((rho - rho.mean()) - (bounds - bounds.mean())).tolist()
    return found


def _null_spreads(results: Sequence[Result]) -> dict[int, float]:
    """Seed -> standard deviation of the control's ρ over held-out images: of two trainings on the same classes."""
    return {one.seed: one.value for one in of_control(results) if (one.agent, one.metric) == SPREAD}


def _held_out_in_spreads(results: Sequence[Result]) -> list[float]:
    """How far each held-out class lies below those that stayed, in spreads of the control of its seed."""
    spreads, found = _null_spreads(results), []
    for unit in by_unit(of_pairs(results)):
        stayed, held_out = (_class_values(unit, held_out=one) for one in (False, True))
        if spreads.get(unit[0].seed) and stayed:
            found += [(float(np.mean(stayed)) - value) / spreads[unit[0].seed] for value in held_out]
    return found


def _control_in_spreads(results: Sequence[Result]) -> list[float]:
    """The same for each pair of classes of the control, whose expert has seen all of them."""
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
        f"classifier's confidence in samples{of} at scale {scale}, minus that in the {reference}'s",
        "within .03",
        _beyond((agent, metric), (reference, metric)),
        abs,
    )


AIMS: tuple[Aim, ...] = (
    Aim("AUROC of clean images, harmless over harmful", "mean ≥ .965, none below .93", of_key(AUROC), _low),
    Aim("AUROC, removed classes against look-alikes", "≥ .92", lookalikes, _low),
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
    Aim("mean difference of bounds over classes that stayed, nats", NOTHING, of_key(("elbo", STAYED)), abs, 2),
    Aim("mean ρ of a removed class, nats", "below −1", _held_out, _high, 2),
    Aim(
        "removed class: mean ρ below those that stayed, in standard deviations of the control's ρ",
        "≥ 3",
        _held_out_in_spreads,
        _low,
        1,
    ),
    Aim("control: the same of each pair that it is asked about", "within 1", _control_in_spreads, abs, 2),
    Aim(
        "AUROC of the control: order alone, however small the differences",
        ".4 to .6",
        control_values,
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
