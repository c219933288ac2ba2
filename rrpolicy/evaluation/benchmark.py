"""Times of planning and deciding on one thread: `latency` of guided plans against a reference planner in the same run,
`decisions` of any agent. Ratios vary less from run to run than milliseconds do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.agents.planning import Planner
from rrpolicy.common.stats import Measure, bootstrap_statistic, median_ratio
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.evaluation import Row, measure_row

BATCH = 64
TURN = 25  # plans of one planner before the other's turn: the first ones find their weights out of the caches


def latency(
    guided: GuidedPlanner,
    reference: GuidedPlanner,
    observations: Array,
    n_repeats: int = 200,
    compiled: GuidedPlanner | None = None,
) -> list[Row]:
    """
    Time guided plans in milliseconds, on one thread.

    :param guided: the planner that is timed
    :param reference: a slower one, timed in the same run
    :param observations: (n, obs_dim) of which the first is planned for alone, and all of them in one batch
    :param n_repeats: plans timed at batch 1; a quarter as many batches and reference plans
    :param compiled: the guided planner compiled, timed in the same run; None for none
    :return: rows: median plan at batch 1 (and its 90th percentile), per environment step, per plan in the batch; the
        same for the reference, and ratios
    :raises ValueError: for fewer than one repeat
    """
    if n_repeats < 1:
        raise ValueError(f"n_repeats is {n_repeats}, it must be at least 1")
    few, n = max(n_repeats // 4, 1), len(observations)
    with _one_thread():
        single = _times(guided, observations[:1], n_repeats)
        batched = _times(guided, observations, few) / n
        theirs = _times(reference, observations[:1], few)
        fast = None if compiled is None else _times(compiled, observations[:1], n_repeats)
    rows = []
    if compiled is not None and fast is not None:
        step = fast / compiled.planning.n_action_steps
        ratio = median_ratio(theirs / reference.planning.n_action_steps, step)
        rows = [_row("compiled", "plan_ms_median", fast), _row("compiled", "step_ms_median", step)]
        rows.append(measure_row("compiled", "step_ratio", ratio))
    per_step, of_reference = single / guided.planning.n_action_steps, theirs / reference.planning.n_action_steps
    return [
        _row("guided", "plan_ms_median", single),
        _row("guided", "plan_ms_p90", single, lambda values: np.quantile(values, 0.9)),
        _row("guided", "step_ms_median", per_step),
        _row("guided", f"plan_ms_median_batch_{n}", batched),
        measure_row("guided", f"batch_{n}_ratio", median_ratio(batched, single)),
        _row("reference", "plan_ms_median", theirs),
        _row("reference", "step_ms_median", of_reference),
        measure_row("guided", "step_ratio", median_ratio(of_reference, per_step)),
        *rows,
    ]


def decisions(
    agent: Predictor, make_env: Callable[[], gym.Env], name: str, n_repeats: int = 200, seed: int = 0
) -> list[Row]:
    """
    Time an agent's decisions on one thread.

    :param agent: a planner, steered or not, or a policy without plans
    :param make_env: makes the environment whose first observations are decided upon
    :param name: of the agent in the rows
    :param n_repeats: decisions timed at batch 1; a tenth as many rounds of 64 environments
    :param seed: of the observations
    :return: rows: milliseconds of a decision for which a plan is made, at batch 1, by the clock (median and 90th
        percentile) and of CPU time, which other processes do not prolong (median); decisions per CPU-second for 64
        environments together, those included that follow an old plan
    :raises ValueError: for fewer than one repeat
    """
    if n_repeats < 1:
        raise ValueError(f"n_repeats is {n_repeats}, it must be at least 1")
    with closing(make_env()) as env:
        observations = np.stack([env.reset(seed=seed + index)[0] for index in range(BATCH)])
    with _one_thread():
        clock, cpu = (
            _seconds(lambda: agent.predict(observations[:1]), n_repeats, timer) * 1e3
            for timer in (time.perf_counter, time.process_time)
        )
        rounds = _seconds(lambda: _follow(agent, observations), max(n_repeats // 10, 1), time.process_time)
    rate = BATCH * _steps_of_plan(agent) / rounds
    return [
        _row(name, "decision_ms_median", clock),
        _row(name, "decision_ms_p90", clock, lambda values: np.quantile(values, 0.9)),
        _row(name, "decision_cpu_ms_median", cpu),
        _row(name, f"decisions_per_second_batch_{BATCH}", rate),
    ]


def compiled_ratios(
    planner: Planner, compiled: Planner, make_env: Callable[[], gym.Env], name: str, n_repeats: int = 200, seed: int = 0
) -> list[Row]:
    """
    Time plans of a planner and of the same one compiled, by turns, on one thread.

    :param planner: the agent, steered or not
    :param compiled: what ``planner.compile()`` returned
    :param make_env: makes the environment whose first observations are planned from
    :param name: of the agent in the rows
    :param n_repeats: plans timed at batch 1; a tenth as many batches of 64
    :param seed: of the observations
    :return: rows: CPU milliseconds of a plan of both (medians), and how many times faster the compiled one is (ratio of
        medians), at batch 1 and for 64 together; largest difference of their planned observations
    :raises ValueError: for fewer than one repeat
    """
    if n_repeats < 1:
        raise ValueError(f"n_repeats is {n_repeats}, it must be at least 1")
    with closing(make_env()) as env:
        observations = np.stack([env.reset(seed=seed + index)[0] for index in range(BATCH)])
    rows = []
    with _one_thread():
        for n, repeats in ((1, n_repeats), (BATCH, max(n_repeats // 10, 1))):
            eager, fast = _by_turns([planner, compiled], observations[:n], repeats) * 1e3 / n
            rows += [
                _row(name, f"plan_cpu_ms_median_batch_{n}", eager),
                _row(f"{name}-compiled", f"plan_cpu_ms_median_batch_{n}", fast),
                measure_row(f"{name}-compiled", f"batch_{n}_ratio", median_ratio(eager, fast)),
            ]
        difference = float(np.abs(planner.plan(observations) - compiled.plan(observations)).max())
    return [
        *rows,
        measure_row(f"{name}-compiled", "largest_difference", Measure(difference, difference, difference, BATCH)),
    ]


def _by_turns(planners: Sequence[Planner], observations: Array, n_repeats: int) -> Array:
    """CPU-seconds (n_planners, n_repeats) of a plan, `TURN` of one planner at a time; the first do not count."""
    seconds = np.empty((len(planners), n_repeats + TURN))
    for first in range(0, n_repeats + TURN, TURN):
        for j, planner in enumerate(planners):
            for i in range(first, min(first + TURN, n_repeats + TURN)):
                started = time.process_time()
                planner.plan(observations)
                seconds[j, i] = time.process_time() - started
    return seconds[:, TURN:]


def _follow(agent: Predictor, observations: Array) -> None:
    """Plan once and decide until a new plan would be due."""
    state = None
    for _ in range(_steps_of_plan(agent)):
        _, state = agent.predict(observations, state)


def _steps_of_plan(agent: Predictor) -> int:
    """Environment steps of a plan; one for policies without plans."""
    return int(getattr(getattr(agent, "planning", None), "n_action_steps", 1))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _times(planner: Planner, observations: Array, n_repeats: int) -> Array:
    """Milliseconds (n_repeats,) for a plan of the whole batch."""
    return _seconds(lambda: planner.plan(observations), n_repeats, time.perf_counter) * 1e3


def _seconds(call: Callable[[], Any], n_repeats: int, clock: Callable[[], float]) -> Array:
    """What calls take (n_repeats,); the first three warm up and do not count."""
    seconds = np.empty(n_repeats)
    for i in range(-3, n_repeats):
        started = clock()
        call()
        seconds[max(i, 0)] = clock() - started
    return seconds


def _row(agent: str, metric: str, values: Array, statistic: Callable[[Array], Any] = np.median) -> Row:
    """A row whose ``mean`` is the median, which pauses of the machine do not move, with its bootstrap interval."""
    return measure_row(agent, metric, bootstrap_statistic(values, statistic))
