"""What the CSV of the locomotion experiment says, in tables: agents of each robot and kind of data, what each variant
changes, and ρ as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rrpolicy.evaluation import bootstrap_interval
from rrpolicy.experiments.locomotion.units import CASES, ROBOTS
from rrpolicy.experiments.report import NOTHING, Key, markdown, values_of
from rrpolicy.experiments.results import UNIT_DONE, Result

SCORE = "normalized_score"
AGENTS = (
    "base",
    "discriminator",
    "offline",
    "steered",
    "exact-0.25",
    "exact-0.5",
    "exact-1",
    "expert",
    "cloning",
    "demonstrator",
)
TRAINED = ("base", "expert", "steered", "discriminator")
USE = "use"
_CORRELATIONS = (  # metric, heading
    ("spearman_window_reward", "windows: Spearman with the true reward"),
    ("spearman_episode_return", "their means over episodes: with the return"),
    ("spearman_step_reward", "steps: with the true reward"),
    ("spearman_episode_return_of_steps", "their means over episodes: with the return"),
)


def summary(results: Sequence[Result]) -> str:
    """
    Markdown: scores of everybody, what variants change, how ρ goes with the true reward; what there is of them.

    :param results: as :func:`read_csv` gives them
    """
    main = [one for one in results if not one.variant]
    used = [one for one in results if one.variant == USE]
    others = [one for one in results if one.variant not in ("", USE)]
    tables = [scores_table(main), costs_table(main), variants_table(others), use_table(used)]
    return "\n".join(text for text in tables if text)


def scores_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment itself
    :return: a row for each robot, kind of data and agent
    """
    lines = []
    for robot, case, group in groups(results):
        lines += [
            [robot, case, *_line(group, agent)]
            for agent in ("base-data", "expert-data", *AGENTS)
            if values_of(group, (agent, SCORE))
        ]
    heading = ["robot", "data", "agent", "normalised score", "more than the base", "share of the gap", "seeds"]
    return markdown(heading, lines) if lines else ""


def costs_table(results: Sequence[Result]) -> str:
    """
    :param results: of the experiment itself
    :return: CPU-seconds of what was trained and of whole units, a row for each robot and kind of data
    """
    lines = []
    for robot, case, group in groups(results):
        seconds = [values_of(group, (agent, "cpu_seconds")) for agent in (*TRAINED, UNIT_DONE[0])]
        lines.append([robot, case, *(f"{np.mean(values):.0f}" if values else NOTHING for values in seconds)])
    heading = ["robot", "data", *(f"CPU-s of {name}" for name in TRAINED), "CPU-s of a unit, all of these included"]
    return markdown(heading, lines) if lines else ""


def variants_table(results: Sequence[Result]) -> str:
    """
    :param results: of ablations, sweeps and transfers
    :return: a row for each of them, robot, kind of data and agent
    """
    lines = []
    for variant in dict.fromkeys(one.variant for one in results):
        for robot, case, group in groups([one for one in results if one.variant == variant]):
            agents = dict.fromkeys(one.agent for one in group if one.metric == SCORE and one.agent in _who_ran(group))
            lines += [
                [variant, robot, case, *_line(group, agent), interval(group, (agent, "gain_kept"), 2)]
                for agent in agents
                if not agent.endswith("-data")
            ]
    heading = [
        "variant",
        "robot",
        "data",
        "agent",
        "normalised score",
        "more than the base",
        "share of the gap",
        "seeds",
        "gain kept",
    ]
    return markdown(heading, lines) if lines else ""


def use_table(results: Sequence[Result]) -> str:
    """
    :param results: of the variant ``use``
    :return: rank correlations of ρ and of the discriminator with the true reward
    """
    scored_by = ("reward", "discriminator", "reward-in-base", "discriminator-in-base")
    lines = [
        [robot, case, agent, *(interval(group, (agent, metric), 3) for metric, _ in _CORRELATIONS)]
        for robot, case, group in groups(results)
        for agent in scored_by
    ]
    headings = ["robot", "data", "scored by", *(heading for _, heading in _CORRELATIONS)]
    return markdown(headings, lines) if lines else ""


def groups(results: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """Results of each robot and kind of data that has any."""
    found = (
        (robot, case, [one for one in results if (one.task, one.case) == (robot, case)])
        for robot in ROBOTS
        for case in CASES
    )
    return [(robot, case, group) for robot, case, group in found if group]


def interval(results: Sequence[Result], key: Key, digits: int = 1) -> str:
    """Mean over seeds with a 95 % interval: over seeds where there are several, over episodes where there is one."""
    own = [one for one in results if (one.agent, one.metric) == key]
    if not own:
        return NOTHING
    values = [one.value for one in own]
    low, high = bootstrap_interval(np.array(values), rate=False) if len(own) > 1 else (own[0].ci_low, own[0].ci_high)
    mean = f"{np.mean(values):.{digits}f}"
    return mean if low == high else f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def _who_ran(group: Sequence[Result]) -> set[str]:
    """Agents with episodes of their own, not differences of two."""
    return {one.agent for one in group if one.metric == "return"}


def _line(group: Sequence[Result], agent: str) -> list[str]:
    low = "base" if not agent.endswith("-base-steered") else agent.removesuffix("-steered")
    return [
        agent,
        interval(group, (agent, SCORE)),
        interval(group, (f"{agent}-{low}", SCORE)),
        interval(group, (agent, "gap_closed"), 2),
        str(len(values_of(group, (agent, SCORE)))),
    ]
