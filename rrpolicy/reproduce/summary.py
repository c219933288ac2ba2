"""What a CSV says, in tables: goals found, order of the cells, agents, and time, for each maze and each variant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rrpolicy.reproduce.results import Result
from rrpolicy.reproduce.units import MAZES

Key = tuple[str, str]  # agent, metric
OWN, NEAR = ("reward", "goal_own_cell"), ("reward", "goal_within_one_cell")
TRAINING = ("expert", "reward")  # whose time counts for each goal


def values_of(results: Iterable[Result], key: Key) -> list[float]:
    """The values of one metric, a number for each unit."""
    return [one.value for one in results if (one.agent, one.metric) == key]


def summary(results: Sequence[Result]) -> str:
    """
    Markdown: a table of the mazes and, when there are any, one of the variants.

    :param results: as :func:`read_csv` gives them
    """
    main = [one for one in results if not one.variant]
    groups = [(maze, [one for one in main if one.maze == maze]) for maze in MAZES]
    text = table("maze", [*((name, group) for name, group in groups if group), ("all", main)]) if main else ""
    variants = list(dict.fromkeys(one.variant for one in results if one.variant))
    if variants:
        # a variant is compared with the experiment on the units that it has
        pairs = []
        for variant in variants:
            own = [one for one in results if one.variant == variant]
            units = {one.unit for one in own}
            pairs += [(variant, own), ("the same units, unchanged", [one for one in main if one.unit in units])]
        text += "\n" + table("variant", [pair for pair in pairs if pair[1]])
    return text


def table(what: str, groups: Sequence[tuple[str, Sequence[Result]]]) -> str:
    """
    :param what: heading of the first column
    :param groups: a name and the results that are summed up in its row
    """
    columns: dict[str, Callable[[Sequence[Result]], str]] = {
        "own cell": lambda group: _count(group, OWN),
        "within one": lambda group: _count(group, NEAR),
        "Spearman ρ / straight / counting": lambda group: _means(group, "spearman_path"),
        "topology pairs ρ / straight / counting": lambda group: _means(group, "topology_pairs_rate"),
        "detour pairs ρ / straight / counting": lambda group: _means(group, "detour_pairs_rate"),
        "EPIC, bounded": lambda group: _mean(group, ("reward", "epic_distance_bounded")),
        "base": lambda group: _mean(group, ("base", "success_rate")),
        "discriminator": lambda group: _mean(group, ("discriminator", "success_rate")),
        "steered": lambda group: _mean(group, ("steered", "success_rate")),
        "expert": lambda group: _mean(group, ("expert", "success_rate")),
        "steered / expert": _ratio,
        "plans through walls": lambda group: _mean(group, ("base", "plans_through_walls_rate")),
        "planned positions in walls": lambda group: _mean(group, ("base", "planned_positions_in_walls")),
        "CPU-s per goal": _seconds,
    }
    lines = [[what, *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(column(group) for column in columns.values())] for name, group in groups]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _mean(group: Sequence[Result], key: Key) -> str:
    values = values_of(group, key)
    return f"{np.mean(values):.3f}" if values else "–"


def _means(group: Sequence[Result], metric: str) -> str:
    return " / ".join(_mean(group, (agent, metric)) for agent in ("reward", "euclidean", "occupancy"))


def _count(group: Sequence[Result], key: Key) -> str:
    """How many of all, and the fewest of any seed when there are several."""
    hits = [one for one in group if (one.agent, one.metric) == key]
    if not hits:
        return "–"
    seeds = sorted({one.seed for one in hits})
    each = [sum(one.value == 1.0 for one in hits if one.seed == seed) for seed in seeds]
    by_seed = f" ({', '.join(map(str, each))} by seed)" if len(seeds) > 1 else ""
    return f"{sum(each)}/{len(hits)}{by_seed}"


def _ratio(group: Sequence[Result]) -> str:
    rates = (values_of(group, (agent, "success_rate")) for agent in ("steered", "expert"))
    steered, expert = (float(np.mean(values or [np.nan])) for values in rates)
    return f"{steered / expert:.3f}" if expert > 0 and np.isfinite(steered) else "–"


def _seconds(group: Sequence[Result]) -> str:
    """Training of expert and reward for a goal, and a whole base, which serves eight."""
    parts = [values_of(group, (agent, "cpu_seconds")) for agent in (*TRAINING, "base")]
    return f"{sum(float(np.mean(part)) for part in parts if part):.0f}" if any(parts) else "–"
