"""Tables of the image experiment, made from the CSV alone: aims beside the values reached, then every pair of classes
and kind of expert, their samples, the classes, and the time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rrpolicy.experiments.images.aims import aims_table, cases_table
from rrpolicy.experiments.images.rows import (
    AGENTS,
    AUROC,
    BRIGHTNESS,
    CONFIDENCE,
    COSTS,
    ELBO,
    HARMFUL,
    Values,
    by_unit,
    class_means,
    control_values,
    groups,
    held_out_of,
    lookalikes,
    of_key,
    of_pairs,
    tasks_of,
)
from rrpolicy.experiments.images.spec import CASES
from rrpolicy.experiments.report import NOTHING, Key, markdown, plain, values_of
from rrpolicy.experiments.results import UNIT_DONE, Result


def summary(results: Sequence[Result]) -> str:
    """
    Markdown tables of aims, pairs, samples, classes and costs; those without results are left out.

    :param results: as :func:`read_csv` gives them
    """
    main = [one for one in results if not one.variant]
    tables = [aims_table(results), cases_table(main), pairs_table(results), samples_table(main), classes_table(main)]
    tables.append(costs_table(main))
    return "\n".join(text for text in tables if text)


def pairs_table(results: Sequence[Result]) -> str:
    """
    Markdown table of how well ρ separates held-out classes from the others.

    :param results: of the experiment and its ablations
    :return: a row for each variant, set of held-out classes and kind of expert; means over seeds and the lowest
    """
    columns: dict[str, Values] = {
        "AUROC": of_key(AUROC),
        "look-alikes": lookalikes,
        "control": control_values,
        "brightness (better way round)": lambda group: [max(values) for values in _side_by_side(group, *BRIGHTNESS)],
        "untrained ρ": of_key(("untrained", "auroc")),
        "ρ, some images": of_key(ELBO),
        "difference of bounds, the same": of_key(("elbo", "auroc")),
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
    Markdown table of what the models' samples show, according to the classifier.

    :param results: of the experiment itself
    :return: harmful shares and the classifier's confidence, a row for each set of held-out classes and kind of expert
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
        "classifier is right",
        "seeds",
    ]
    return markdown(heading, lines) if lines else ""


def classes_table(results: Sequence[Result]) -> str:
    """
    Markdown table of the mean ρ of each class.

    :param results: of the experiment itself
    :return: mean ρ of each class in nats, a column for each set of held-out classes; theirs in bold
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
                    f"**{cell}**" if name in held_out_of(task) else cell
                    for cell, task in zip(cells, tasks, strict=True)
                ),
            ]
        )
    return markdown(["mean ρ, nats", *(f"removed: {task}" for task in tasks)], lines) if lines else ""


def costs_table(results: Sequence[Result]) -> str:
    """
    Markdown table of CPU time.

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
