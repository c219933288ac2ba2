"""Tables of the maze experiment, made from the CSV alone: mazes, variants, other planning methods, agents trained on ρ
and on the true reward, and other methods on the same demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rrpolicy.experiments.maze2d.spec import MAZES
from rrpolicy.experiments.report import NOTHING, Key, by_role, markdown, mean, ratio, seeds_of, values_of
from rrpolicy.experiments.results import Result

OWN, NEAR = ("reward", "goal_own_cell"), ("reward", "goal_within_one_cell")
TRAINING = ("expert", "reward")  # whose time counts for each goal
PEARSON, DARD = "Pearson ρ / straight / counting", "DARD, bounded"  # columns of runs that measured them
OTHER_PARTS = ("plans", "training", "peers", "score-peers")  # variants with other rows, and tables of their own


def summary(results: Sequence[Result]) -> str:
    """
    Markdown: a table of the mazes and, when there are any, one of the variants, of other planning methods, of
    trained agents, of other methods.

    :param results: as :func:`read_csv` gives them
    """
    by_variant: dict[str, list[Result]] = {}
    for one in results:
        by_variant.setdefault(one.variant, []).append(one)
    main = by_variant.pop("", [])
    planned, trained, *others = (by_variant.pop(name, []) for name in OTHER_PARTS)
    # a variant is compared with the experiment on the units that it has
    pairs = []
    for variant, own in by_variant.items():
        units = {one.unit for one in own}
        pairs += [(variant, own), ("the same units, unchanged", [one for one in main if one.unit in units])]
    tables = [
        *(table(_heading(part), by_maze(part)) for part in by_role(main, "maze2d")),
        table("variant", [pair for pair in pairs if pair[1]]) if pairs else "",
        plans_table(planned),
        training_table(trained),
        *(peers_table(peers, main) for peers in others),
    ]
    return "\n".join(text for text in tables if text)


def _heading(results: Sequence[Result]) -> str:
    return f"maze, seeds {seeds_of(results, 'maze2d')}"


def table(what: str, groups: Sequence[tuple[str, Sequence[Result]]]) -> str:
    """
    Markdown table of the main measurements, a row for each group of results.

    :param what: heading of the first column
    :param groups: a name and the results that are summed up in its row
    """
    columns: dict[str, Callable[[Sequence[Result]], str]] = {
        "own cell": lambda group: _count(group, OWN),
        "within one": lambda group: _count(group, NEAR),
        "Spearman ρ / straight / counting": lambda group: _means(group, "spearman_path"),
        PEARSON: lambda group: _means(group, "pearson_path"),
        "topology pairs ρ / straight / counting": lambda group: _means(group, "topology_pairs_rate"),
        "detour pairs ρ / straight / counting": lambda group: _means(group, "detour_pairs_rate"),
        "EPIC, bounded": lambda group: mean(group, ("reward", "epic_distance_bounded")),
        DARD: lambda group: mean(group, ("reward", "dard_distance_bounded")),
        "base": lambda group: mean(group, ("base", "success_rate")),
        "discriminator": lambda group: mean(group, ("discriminator", "success_rate")),
        "steered": lambda group: mean(group, ("steered", "success_rate")),
        "expert": lambda group: mean(group, ("expert", "success_rate")),
        "steered / expert": _ratio,
        "plans through walls": lambda group: mean(group, ("base", "plans_through_walls_rate")),
        "planned positions in walls": lambda group: mean(group, ("base", "planned_positions_in_walls")),
        "CPU-s per goal": _seconds,
    }
    metrics = {one.metric for _, group in groups for one in group}
    for heading, metric in ((PEARSON, "pearson_path"), (DARD, "dard_distance_bounded")):
        if metric not in metrics:  # rows of before these were measured
            del columns[heading]
    lines = ([name, *(column(group) for column in columns.values())] for name, group in groups)
    return markdown([what, *columns], lines)


def _means(group: Sequence[Result], metric: str) -> str:
    return " / ".join(mean(group, (agent, metric)) for agent in ("reward", "euclidean", "occupancy"))


def _count(group: Sequence[Result], key: Key) -> str:
    """How many of all, and the fewest of any seed when there are several."""
    hits = [one for one in group if (one.agent, one.metric) == key]
    if not hits:
        return NOTHING
    seeds = sorted({one.seed for one in hits})
    each = [sum(one.value == 1.0 for one in hits if one.seed == seed) for seed in seeds]
    by_seed = f" ({', '.join(map(str, each))} by seed)" if len(seeds) > 1 else ""
    return f"{sum(each)}/{len(hits)}{by_seed}"


def _ratio(group: Sequence[Result]) -> str:
    rates = (values_of(group, (agent, "success_rate")) for agent in ("steered", "expert"))
    steered, expert = (float(np.mean(values or [np.nan])) for values in rates)
    return f"{steered / expert:.3f}" if expert > 0 and np.isfinite(steered) else NOTHING


def _seconds(group: Sequence[Result]) -> str:
    """Training of expert and reward for a goal, and a whole base, which serves eight."""
    parts = [values_of(group, (agent, "cpu_seconds")) for agent in (*TRAINING, "base")]
    return f"{sum(float(np.mean(part)) for part in parts if part):.0f}" if any(parts) else NOTHING


# ---------------------------------------------------------------------- comparisons

OURS = "ρ, steered"
_OURS, _TRUE = "-reward", "-true"  # ends of the names of trained agents
_LATER = ("Pearson", "DARD")  # which earlier runs did not measure
_PEER_COLUMNS = (  # heading, metric, our agent that it belongs to, decimals
    ("own cell", "goal_own_cell", "reward", 2),
    ("within one", "goal_within_one_cell", "reward", 2),
    ("goal error (cells)", "goal_error_cells", "reward", 2),
    ("Spearman", "spearman_path", "reward", 3),
    ("Pearson", "pearson_path", "reward", 3),
    ("topology pairs", "topology_pairs_rate", "reward", 3),
    ("detour pairs", "detour_pairs_rate", "reward", 3),
    ("EPIC", "epic_distance", "reward", 3),
    ("DARD", "dard_distance", "reward", 3),
    ("success", "success_rate", "steered", 3),
    ("return", "return", "steered", 1),
)


def by_maze(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The results of each maze that has any, and all of them."""
    groups = ((maze, [one for one in results if one.task == maze]) for maze in MAZES)
    return [*((maze, group) for maze, group in groups if group), ("all", list(results))]


def plans_table(results: Sequence[Result]) -> str:
    """
    How many plans of a base lead through walls, for several planning methods.

    :param results: of the variant ``plans``
    :return: Markdown with a row for each maze and planning method; empty when there are none
    """
    rate = "plans_through_walls_rate"
    lines = []
    for maze, group in by_maze(results):
        for way in dict.fromkeys(one.agent for one in group if one.metric == rate):
            rows = [one for one in group if (one.agent, one.metric) == (way, rate)]
            worst, seconds = max(one.value for one in rows), np.mean([one.cpu_seconds for one in rows])
            lines.append(
                [
                    maze,
                    way,
                    str(len(rows)),
                    mean(group, (way, rate)),
                    f"{worst:.3f}",
                    mean(group, (way, "planned_positions_in_walls")),
                    f"{seconds:.2f}",
                ]
            )
    heading = ["maze", "plans", "seeds", "through walls", "worst", "positions in walls", "CPU-s of 1000 plans"]
    return markdown(heading, lines) if lines else ""


def training_table(results: Sequence[Result]) -> str:
    """
    Success and return of agents trained on ρ and on the true reward.

    :param results: of the variant ``training``
    :return: Markdown with a row for each maze and algorithm; empty when there are no trained agents
    """
    trained = [one for one in results if one.agent.endswith((_OURS, _TRUE)) and not one.reference]
    algorithms = dict.fromkeys(one.agent.rpartition("-")[0] for one in trained)
    lines = []
    for maze, group in by_maze(trained):
        for algorithm in algorithms:
            ours, true = algorithm + _OURS, algorithm + _TRUE
            line = [maze, algorithm, str(len(values_of(group, (ours, "return"))))]
            for metric, digits in (("success_rate", 3), ("return", 1)):
                keys = (ours, metric), (true, metric)
                line += [*(mean(group, key, digits) for key in keys), ratio(group, *keys)]
            lines.append([*line, *(mean(group, (agent, "cpu_seconds"), 0) for agent in (ours, true))])
    heading = ["maze", "algorithm", "units"]
    for metric in ("success", "return"):
        heading += [f"{metric} on ρ", f"{metric} on the true reward", f"{metric} ratio"]
    return markdown([*heading, "CPU-s on ρ", "CPU-s on the true reward"], lines) if lines else ""


def peers_table(results: Sequence[Result], main: Sequence[Result]) -> str:
    """
    Other methods beside ours on the same units.

    :param results: of the variant ``peers`` or ``score-peers``
    :param main: of the experiment itself
    :return: Markdown with a row for each maze and method; empty when there are no peers
    """
    methods = list(dict.fromkeys(one.agent for one in results if one.case and one.agent != "unit"))
    units = {one.unit for one in results if one.case}
    metrics = {one.metric for one in results}
    columns = [column for column in _PEER_COLUMNS if column[1] in metrics or column[0] not in _LATER]
    lines = []
    for maze, group in by_maze([one for one in results if one.case]):
        same = [one for one in main if one.unit in units and maze in (one.task, "all")]
        if same:
            lines.append(
                [
                    maze,
                    OURS,
                    *(mean(same, (agent, metric), digits) for _, metric, agent, digits in columns),
                    _our_seconds(same),
                    "0",
                ]
            )
        for method in methods:
            cells = (mean(group, (method, metric), digits) for _, metric, _, digits in columns)
            costs = (mean(group, (method, metric), 0) for metric in ("cpu_seconds", "environment_steps"))
            lines.append([maze, method, *cells, *costs])
    heading = ["maze", "method", *(column[0] for column in columns), "CPU-s", "environment steps"]
    return markdown(heading, lines) if methods else ""


def _our_seconds(results: Sequence[Result]) -> str:
    """Expert and reward of a goal; a base serves all goals of its maze."""
    parts = [values_of(results, (agent, "cpu_seconds")) for agent in ("expert", "reward")]
    return f"{sum(float(np.mean(part)) for part in parts):.0f}" if all(parts) else NOTHING
