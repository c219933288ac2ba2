"""What a CSV says, in tables: goals found, order of the cells, agents, and time, for each maze and each variant; then
agents trained on rewards, and other methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rrpolicy.experiments.maze2d.comparisons import by_maze, peers_table, plans_table, training_table
from rrpolicy.experiments.report import NOTHING, Key, markdown, mean, values_of
from rrpolicy.experiments.results import Result

OWN, NEAR = ("reward", "goal_own_cell"), ("reward", "goal_within_one_cell")
TRAINING = ("expert", "reward")  # whose time counts for each goal
OTHER_PARTS = ("plans", "training", "peers")  # variants with other rows than the experiment: tables of their own


def summary(results: Sequence[Result]) -> str:
    """
    Markdown: a table of the mazes and, when there are any, one of the variants, of other ways to plan, of trained
    agents, of other methods.

    :param results: as :func:`read_csv` gives them
    """
    by_variant: dict[str, list[Result]] = {}
    for one in results:
        by_variant.setdefault(one.variant, []).append(one)
    main = by_variant.pop("", [])
    planned, trained, others = (by_variant.pop(name, []) for name in OTHER_PARTS)
    # a variant is compared with the experiment on the units that it has
    pairs = []
    for variant, own in by_variant.items():
        units = {one.unit for one in own}
        pairs += [(variant, own), ("the same units, unchanged", [one for one in main if one.unit in units])]
    tables = [
        table("maze", by_maze(main)) if main else "",
        table("variant", [pair for pair in pairs if pair[1]]) if pairs else "",
        plans_table(planned),
        training_table(trained),
        peers_table(others, main),
    ]
    return "\n".join(text for text in tables if text)


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
        "EPIC, bounded": lambda group: mean(group, ("reward", "epic_distance_bounded")),
        "base": lambda group: mean(group, ("base", "success_rate")),
        "discriminator": lambda group: mean(group, ("discriminator", "success_rate")),
        "steered": lambda group: mean(group, ("steered", "success_rate")),
        "expert": lambda group: mean(group, ("expert", "success_rate")),
        "steered / expert": _ratio,
        "plans through walls": lambda group: mean(group, ("base", "plans_through_walls_rate")),
        "planned positions in walls": lambda group: mean(group, ("base", "planned_positions_in_walls")),
        "CPU-s per goal": _seconds,
    }
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
