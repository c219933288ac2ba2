"""Tables and figures of the locomotion experiment, made from the CSV alone: agents of each robot and kind of data, what
each variant changes, ρ as a reward; scores with intervals, and the sweeps of steering."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy.common.stats import Measure, hierarchical_mean, student_mean, student_ratio
from rrpolicy.evaluation.plots import COLOURS, FAINT, INK, OTHERS
from rrpolicy.experiments.locomotion.spec import CASES, PAPER
from rrpolicy.experiments.report import (
    NOTHING,
    Key,
    by_role,
    draw_interval,
    interval_of,
    light,
    markdown,
    name_rows,
    of_metric,
    plain,
    save_figure,
    seed_means,
    seeds_of,
    values_of,
)
from rrpolicy.experiments.results import UNIT_DONE, Result

SCORE, RETURN = "normalized_score", "return"
HEADINGS = {SCORE: "normalised score", RETURN: "return"}
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
    Markdown tables: scores of all agents, variants, correlation of ρ with the true reward; those without results are
    left out.

    :param results: as :func:`read_csv` gives them
    """
    main = [one for one in results if not one.variant]
    used = [one for one in results if one.variant == USE]
    others = [one for one in results if one.variant not in ("", USE)]
    tables = [
        *(gaps_table(part, metric) for metric, part in by_metric(main).items()),
        *(scores_table(part, metric) for metric, part in by_metric(main).items()),
        costs_table(main),
        *(variants_table(part, metric) for metric, part in by_metric(others).items()),
        use_table(used),
    ]
    return "\n".join(text for text in tables if text)


def by_metric(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of robots that have normalised scores, and of those that have returns alone."""
    scored = {one.task for one in results if one.metric == SCORE}
    return {
        SCORE: [one for one in results if one.task in scored],
        RETURN: [one for one in results if one.task not in scored],
    }


def scores_table(results: Sequence[Result], metric: str = SCORE) -> str:
    """
    Markdown table of the agents' scores or returns.

    :param results: of the experiment itself
    :param metric: normalised score or return
    :return: a row for each robot, kind of data and agent
    """
    lines = []
    for robot, case, group in groups(results):
        for part in by_role(group, _log(robot)):
            lines += [
                [robot, case, *_line(part, agent, metric)]
                for agent in ("base-data", "expert-data", *AGENTS)
                if values_of(part, (agent, metric))
            ]
    heading = ["robot", "data", "agent", HEADINGS[metric], "more than the base", "share of the gap", "seeds"]
    return markdown(heading, lines) if lines else ""


def gaps_table(results: Sequence[Result], metric: str = SCORE) -> str:
    """
    Markdown table of the share of the gap that steering closes, in the ways in which it can be taken over seeds, and of
    what rounds add to the offline reward and ρ to the discriminator, paired by seed. For several seeds.

    :param results: of the experiment itself
    :param metric: normalised score or return
    :return: a row for each robot, kind of data and group of seeds
    """
    lines = []
    for robot, case, group in groups(results):
        for part in by_role(group, _log(robot)):
            gains = [seed_means(of_metric(part, (agent, metric), "base")) for agent in ("steered", "expert")]
            shares = of_metric(part, ("steered", "gap_closed"))
            if len(shares) > 1 and set(gains[0]) == set(gains[1]):
                over = student_ratio(*(list(one.values()) for one in gains))
                both = hierarchical_mean([Measure(one.value, one.ci_low, one.ci_high, one.n) for one in shares])
                cells = [interval(part, ("steered", "gap_closed"), 2), *(written(one, 2) for one in (both, over))]
                differences = (_less(part, reference, metric) for reference in ("offline", "discriminator"))
                lines.append([robot, case, *cells, *differences, seeds_of(part, _log(robot))])
    heading = ["robot", "data", "share of the gap: mean of the seeds'", "the same, hierarchical bootstrap"]
    heading += ["ratio of means", "steered − offline", "steered − discriminator", "seeds"]
    return markdown(heading, lines) if lines else ""


def _log(robot: str) -> str:
    """Where the tuning log has a robot's seeds: nowhere for robots of users."""
    return "locomotion" if robot in PAPER else ""


def _less(group: Sequence[Result], reference: str, metric: str) -> str:
    """How much more the steered base has than another agent, paired by seed."""
    ours, theirs = (seed_means(of_metric(group, (agent, metric))) for agent in ("steered", reference))
    both = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return written(student_mean(both), 1) if len(both) > 1 else NOTHING


def costs_table(results: Sequence[Result]) -> str:
    """
    Markdown table of CPU time.

    :param results: of the experiment itself
    :return: CPU-seconds of what was trained and of whole units, a row for each robot and kind of data
    """
    lines = []
    for robot, case, group in groups(results):
        seconds = [values_of(group, (agent, "cpu_seconds")) for agent in (*TRAINED, UNIT_DONE[0])]
        lines.append([robot, case, *(f"{np.mean(values):.0f}" if values else NOTHING for values in seconds)])
    heading = ["robot", "data", *(f"CPU-s of {name}" for name in TRAINED), "CPU-s of a unit, all of these included"]
    return markdown(heading, lines) if lines else ""


def variants_table(results: Sequence[Result], metric: str = SCORE) -> str:
    """
    Markdown table of the agents' scores or returns in ablations, sweeps and transfers.

    :param results: of ablations, sweeps and transfers
    :param metric: normalised score or return
    :return: a row for each of them, robot, kind of data and agent
    """
    lines = []
    parts = [
        (variant, robot, case, part)
        for variant in dict.fromkeys(one.variant for one in results)
        for robot, case, group in groups([one for one in results if one.variant == variant])
        for part in by_role(group, _log(robot))
    ]
    for variant, robot, case, part in parts:
        agents = dict.fromkeys(one.agent for one in plain(part) if one.metric == metric)
        lines += [
            [variant, robot, case, *_line(part, agent, metric), interval(part, (agent, "gain_kept"), 2)]
            for agent in agents
            if not agent.endswith("-data")
        ]
    heading = [
        "variant",
        "robot",
        "data",
        "agent",
        HEADINGS[metric],
        "more than the base",
        "share of the gap",
        "seeds",
        "gain kept",
    ]
    return markdown(heading, lines) if lines else ""


def use_table(results: Sequence[Result]) -> str:
    """
    Markdown table of how ρ and the discriminator correlate with the true reward.

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
    robots = dict.fromkeys([*PAPER, *(one.task for one in results)])
    cases = dict.fromkeys([*CASES, *(one.case for one in results)])
    found = (
        (robot, case, [one for one in results if (one.task, one.case) == (robot, case)])
        for robot in robots
        for case in cases
    )
    return [(robot, case, group) for robot, case, group in found if group]


def interval(results: Sequence[Result], key: Key, digits: int = 1, reference: str = "") -> str:
    """Mean over seeds with a 95 % interval: over seeds where there are several, over episodes where there is one."""
    own = of_metric(results, key, reference)
    if not own:
        return NOTHING
    return written(Measure(*interval_of(own), len(own)), digits)


def written(number: Measure, digits: int) -> str:
    """A number with its interval, without one of no width."""
    mean = f"{number.value:.{digits}f}"
    return (
        mean if math.isclose(number.low, number.high) else f"{mean} [{number.low:.{digits}f}, {number.high:.{digits}f}]"
    )


def _line(group: Sequence[Result], agent: str, metric: str) -> list[str]:
    low = "base" if not agent.endswith("-base-steered") else agent.removesuffix("-steered")
    return [
        agent,
        interval(group, (agent, metric)),
        interval(group, (agent, metric), reference=low),
        interval(group, (agent, "gap_closed"), 2),
        seeds_of(of_metric(group, (agent, metric)), _log(group[0].task)),
    ]


# ---------------------------------------------------------------------- figures

SCORES, SWEEP = "scores.png", "sweep.png"
IN_A_ROW = 3  # panels
_COLOURS = {**COLOURS, "offline": COLOURS["steered"]}


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """
    Draw what the results allow.

    :param results: as ``read_csv`` gives them
    :param out: the CSV; figures go into the folder of its name beside it
    :return: the files
    """
    written = []
    for name, variant, agents in ((SCORES, "", list(AGENTS)), (SWEEP, "sweep", None)):
        own = [one for one in plain(results) if one.variant == variant and one.metric in (SCORE, "return")]
        if own:
            written.append(save_figure(scores(own, agents), out.with_suffix("") / name))
    return written


def scores(results: Sequence[Result], agents: Sequence[str] | None = None) -> Figure:
    """
    A panel for each robot and kind of data, three in a row: normalised scores with 95 % intervals, base and expert as
    lines; of the seeds that report where there are any.

    :param results: rows of scores and returns
    :param agents: in this order; None: those that ran, in the order of the rows
    """
    ran = dict.fromkeys(one.agent for one in results if one.metric == "return" and not one.agent.endswith("-data"))
    shown = [agent for agent in agents or ran if agent in ran]
    panels = groups([one for metric, part in by_metric(results).items() for one in part if one.metric == metric])
    cases = list(dict.fromkeys([*CASES, *(case for _, case, _ in panels)]))
    panels.sort(key=lambda panel: cases.index(panel[1]))
    what = " or ".join(HEADINGS[metric] for metric, part in by_metric(results).items() if part).capitalize()
    n_columns, n_rows = min(len(panels), IN_A_ROW), -(-len(panels) // IN_A_ROW)
    figure = Figure(figsize=(1.8 + 3.0 * n_columns, n_rows * (1.0 + 0.42 * len(shown))), layout="constrained")
    for index, (robot, case, group) in enumerate(panels):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        _panel(axes, by_role(group, _log(robot))[0], shown)
        axes.set_title(f"{robot}, {case} data", fontsize=11, color=INK)
        if index % n_columns:
            axes.set_yticklabels([])
    figure.suptitle(f"{what}: means with 95 % intervals", fontsize=10, color=FAINT)
    return figure


def _panel(axes: Axes, results: Sequence[Result], agents: Sequence[str]) -> None:
    for height, agent in enumerate(reversed(agents)):
        own = [one for one in results if one.agent == agent]
        if not own:
            continue
        number, colour = interval_of(own), _COLOURS.get(agent, OTHERS[0])
        draw_interval(axes, height, number, colour, f"{number[0]:.0f}")
        if agent in ("base", "expert"):
            axes.axvline(number[0], color=colour, linewidth=1, linestyle=":", zorder=0)
    name_rows(axes, agents)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    light(axes, "x")
    n_seeds = len({one.seed for one in results})
    over = f"intervals over {n_seeds} seeds" if n_seeds > 1 else "one seed, intervals over episodes"
    axes.set_xlabel(over, fontsize=9, color=FAINT)
