"""Closed-loop evaluation of anything that acts: seed-matched episodes, stepped together, planned in one batch.
Every number comes with a 95 % interval, and two agents are compared episode by episode."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tqdm.auto import tqdm

from rrpolicy.common.files import write_json
from rrpolicy.common.intervals import wilson_interval
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.data.reference_scores import normalized_score, reference_score
from rrpolicy.envs.point_maze import make_point_maze

Row = dict[str, Any]
EnvSource = gym.Env | str | Callable[[], gym.Env] | Sequence[gym.Env]

ROW_KEYS = ("agent", "metric", "mean", "ci_low", "ci_high", "n")
RESULTS_FILE = "results.json"
MAX_ENVS = 64  # copies stepped together unless asked otherwise: larger batches plan hardly faster


# ---------------------------------------------------------------------- intervals


def bootstrap_interval(
    values: Any, n_resamples: int = 2000, seed: int = 0, rate: bool | None = None
) -> tuple[float, float]:
    """
    95 % percentile bootstrap interval of a mean. A rate of 0 or 1, where resampling shows no spread, gets Wilson's
    interval instead (Wilson 1927), so its width is never 0.

    :param values: (n,) numbers or booleans
    :param n_resamples: bootstrap samples
    :param seed: of the resampling
    :param rate: whether the values are failures and successes; None: they are if all are 0 or 1
    :return: low and high
    :raises ValueError: when there are no values or one is not finite
    """
    sample = _finite(values)
    rate = bool(np.isin(sample, (0.0, 1.0)).all()) if rate is None else rate
    if rate and sample.min() == sample.max():
        return wilson_interval(float(sample.sum()), len(sample))
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(len(sample), size=(n_resamples, len(sample)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _finite(values: Any) -> Array:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"values must be finite numbers (n,) with n >= 1, got shape {sample.shape}: {values!r:.80}")
    return sample


# ---------------------------------------------------------------------- results


@dataclass(frozen=True, eq=False)
class Evaluation:
    """
    What happened in n episodes.

    :param returns: undiscounted sums of rewards (n,)
    :param successes: bool (n,), success at the episode's last step; None where the environment does not tell
    :param lengths: environment steps (n,)
    :param seeds: with which the episodes were reset (n,)
    :param observations: of each episode (length + 1, obs_dim), when they were asked for
    :param env_id: where it happened, when that is known
    """

    returns: Array
    successes: Array | None
    lengths: Array
    seeds: Array
    observations: tuple[Array, ...] | None = None
    env_id: str | None = None

    @property
    def normalized_scores(self) -> Array | None:
        """D4RL's scores (n,); None where it has no reference returns for the environment."""
        known = self.env_id is not None and reference_score(self.env_id) is not None
        return normalized_score(str(self.env_id), self.returns) if known else None

    @property
    def success_rate(self) -> float | None:
        """Fraction of successful episodes."""
        return None if self.successes is None else float(self.successes.mean())

    def values(self, metric: str) -> Array:
        """
        :param metric: ``"return"``, ``"normalized_score"``, ``"success_rate"`` or ``"length"``
        :return: its value in each episode (n,)
        :raises ValueError: for another metric, or successes or scores that are not known
        """
        known = {"return": self.returns, "normalized_score": self.normalized_scores, "success_rate": self.successes,
                 "length": self.lengths}
        values = known.get(metric)
        if values is None:
            raise ValueError(f"metric must be one of {[k for k, v in known.items() if v is not None]}, got {metric!r}")
        return values

    def rows(self, agent_name: str) -> list[Row]:
        """Result rows for ``success_rate`` (when known), ``return`` and ``normalized_score`` (when known)."""
        known = {"success_rate": self.successes, "return": self.returns, "normalized_score": self.normalized_scores}
        metrics = [metric for metric, values in known.items() if values is not None]
        return [result_row(agent_name, metric, self.values(metric)) for metric in metrics]


def result_row(agent: str, metric: str, values: Any) -> Row:
    """
    One row of results.

    :param agent: who
    :param metric: what, e.g. ``"success_rate"``; names that end in ``rate`` hold failures and successes
    :param values: (n,) one for each episode, or whatever was repeated
    :return: agent, metric, mean, ci_low, ci_high, n
    """
    sample = _finite(values)
    low, high = bootstrap_interval(sample, rate=metric.endswith("rate"))
    mean = float(sample.mean())
    return dict(zip(ROW_KEYS, (agent, metric, mean, low, high, len(sample)), strict=True))


def paired_difference(a: Evaluation, b: Evaluation, metric: str = "success_rate") -> dict[str, float]:
    """
    How much better ``a`` is than ``b``, from the differences of episodes with equal seeds.

    :param metric: as in :meth:`Evaluation.values`
    :return: mean, ci_low, ci_high, n
    :raises ValueError: when the episodes' seeds differ
    """
    if not np.array_equal(a.seeds, b.seeds):
        raise ValueError(f"a and b must have run the same seeds, got {a.seeds.tolist()} and {b.seeds.tolist()}")
    difference = a.values(metric).astype(np.float64) - b.values(metric).astype(np.float64)
    mean, n = float(difference.mean()), len(difference)
    if metric == "success_rate" and difference.min() == difference.max():
        unseen = wilson_interval(0, n)[1]  # so many may differ from the rest without one having been seen
        low, high = max(-1.0, mean - unseen), min(1.0, mean + unseen)
    else:
        low, high = bootstrap_interval(difference, rate=False)
    return {"mean": mean, "ci_low": low, "ci_high": high, "n": n}


def write_results(rows: Iterable[Mapping[str, Any]], folder: str | Path) -> Path:
    """
    Write ``results.json``. Rows already there are kept if they belong to other agents.

    :param rows: as :func:`result_row` makes them
    :param folder: made if missing
    :return: the file
    :raises ValueError: for a row with other keys or values that are not finite, or a file there that is no results file
    """
    new = [_checked_row(row) for row in rows]
    path = Path(folder) / RESULTS_FILE
    agents = {row["agent"] for row in new}
    kept = [row for row in read_results(folder) if row["agent"] not in agents] if path.exists() else []
    write_json(path, kept + new)
    return path


def read_results(folder: str | Path) -> list[Row]:
    """
    :param folder: where :func:`write_results` wrote
    :return: the rows
    :raises ValueError: when there is no results file or it is damaged, naming it
    """
    path = Path(folder) / RESULTS_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise ValueError("it must hold a list of rows")
        return [_checked_row(row) for row in rows]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no results file: {error}") from None


def _checked_row(row: Any) -> Row:
    if not isinstance(row, Mapping) or set(row) != set(ROW_KEYS):
        raise ValueError(f"a row must have the keys {', '.join(ROW_KEYS)}, got {row!r:.80}")
    if not all(np.isfinite(row[key]) for key in ("mean", "ci_low", "ci_high")):
        raise ValueError(f"a row must hold finite numbers, got {row!r:.120}")
    return {key: row[key] for key in ROW_KEYS}


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as aligned text: agent, metric, mean, 95 % interval, n."""
    lines = [("agent", "metric", "mean", "95 % interval", "n")]
    for row in rows:
        interval = f"[{_short(row['ci_low'])}, {_short(row['ci_high'])}]"
        lines.append((str(row["agent"]), str(row["metric"]), _short(row["mean"]), interval, str(row["n"])))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    left = "{:<{}}  {:<{}}  {:>{}}  {:>{}}  {:>{}}"
    return "\n".join(left.format(*(x for pair in zip(line, widths, strict=True) for x in pair)) for line in lines)


def _short(value: float) -> str:
    """Three digits where they say something."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


# ---------------------------------------------------------------------- episodes


def evaluate_policy(
    agent: Predictor,
    env: EnvSource,
    n_eval_episodes: int = 48,
    seed: int = 0,
    deterministic: bool = True,
    n_envs: int | None = None,
    progress_bar: bool = False,
    record_observations: bool = False,
) -> Evaluation:
    """
    Run whole episodes. Episode i is reset with ``seed + i``, so different agents meet the same starts. Policies that
    draw from torch's global generator, as Stable-Baselines3's do, draw the same each time; it is left as it was.

    :param agent: anything with ``predict``
    :param env: an environment's id or a function that makes one: several copies run together and are planned for in
        one batch; a list of environments does the same without making (and closing) them; or one environment, whose
        episodes run one after another
    :param n_eval_episodes: episodes
    :param seed: of the first episode, and of torch's global generator meanwhile
    :param deterministic: passed to ``predict``
    :param n_envs: copies to make, at most one per episode; default up to 64
    :param progress_bar: show one
    :param record_observations: keep every observation
    :return: returns, successes, lengths and seeds (and observations), in the order of the seeds
    :raises ValueError: for numbers below 1, or an ``env`` that is none of these
    """
    for name, value in (("n_eval_episodes", n_eval_episodes), ("n_envs", n_envs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
    envs, made = _environments(env, min(n_eval_episodes, n_envs or MAX_ENVS))
    env_id = getattr(envs[0].spec, "id", None)
    try:
        runner = _Runner(envs[:n_eval_episodes], n_eval_episodes, seed, record_observations)
        progress = tqdm(total=runner.longest, unit="step", leave=False, disable=not progress_bar)
        with torch.random.fork_rng(devices=[]), progress as bar:
            torch.default_generator.manual_seed(int(seed))
            runner.run(agent, deterministic, bar)
    finally:
        for one in made:
            one.close()
    known = all(success is not None for success in runner.successes)
    successes = np.array(runner.successes, dtype=bool) if known else None
    observations = tuple(np.array(episode) for episode in runner.observations) if record_observations else None
    seeds = seed + np.arange(n_eval_episodes)
    return Evaluation(runner.returns, successes, runner.lengths, seeds, observations, env_id)


def make_env(env: str | Callable[[], gym.Env], render_mode: str | None = None) -> gym.Env:
    """
    :param env: an environment's id (PointMazes come with flat observations), or a function that makes one
    :param render_mode: for an id
    :return: the environment
    """
    if callable(env):
        return env()
    if env.startswith("PointMaze_"):
        return make_point_maze(env, render_mode=render_mode)
    return gym.make(env, render_mode=render_mode, disable_env_checker=True)


def _environments(env: EnvSource, n: int) -> tuple[Sequence[gym.Env], Sequence[gym.Env]]:
    """Environments to step together, and those of them that were made here."""
    if isinstance(env, gym.Env):
        return [env], []
    source = partial(make_env, env) if isinstance(env, str) else env
    if callable(source):
        made = [source() for _ in range(n)]
        return made, made
    if not isinstance(source, Sequence) or not source or not all(isinstance(one, gym.Env) for one in source):
        raise ValueError(f"env must be an environment, its id, a function that makes it or a list, got {env!r:.80}")
    return source, []


class _Runner:
    """Steps several environments in lockstep until all episodes are done."""

    def __init__(self, envs: Sequence[gym.Env], n_episodes: int, seed: int, record: bool) -> None:
        self.returns = np.zeros(n_episodes)
        self.lengths = np.zeros(n_episodes, dtype=np.int64)
        self.successes: list[bool | None] = [None] * n_episodes
        self.observations: list[list[Any]] = [[] for _ in range(n_episodes)]
        self._record = record
        self._limit = getattr(envs[0].spec, "max_episode_steps", None)
        self._seed = seed
        self._begun = 0
        self._envs = list(envs)
        self._episodes = [0] * len(envs)
        self._current: list[Any] = [None] * len(envs)
        for slot in range(len(envs)):
            self._begin(slot)

    @property
    def longest(self) -> int | None:
        """Steps of all episodes if each runs to its limit; None where there is none."""
        return None if self._limit is None else self._limit * len(self.returns)

    def run(self, agent: Predictor, deterministic: bool, bar: Any) -> None:
        state: State | None = None
        starts = np.ones(len(self._envs), dtype=bool)
        while self._envs:
            actions, state = agent.predict(stack_observations(self._current), state, starts, deterministic)
            starts = np.zeros(len(self._envs), dtype=bool)
            over = []
            bar.update(len(self._envs))
            for slot, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
                observation, reward, terminated, truncated, info = env.step(action)
                episode = self._episodes[slot]
                self._seen(slot, observation)
                self.returns[episode] += float(reward)
                self.lengths[episode] += 1
                if terminated or truncated:
                    success = info.get("success", info.get("is_success"))
                    self.successes[episode] = None if success is None else bool(success)
                    starts[slot] = True
                    bar.update(self._limit - int(self.lengths[episode]) if self._limit else 0)
                    if not self._begin(slot):
                        over.append(slot)
            if over:
                state, starts = self._leave(over, state, starts)

    def _begin(self, slot: int) -> bool:
        """Start the next episode in a slot, if there is one."""
        if self._begun == len(self.returns):
            return False
        self._episodes[slot] = self._begun
        observation, _ = self._envs[slot].reset(seed=self._seed + self._begun)
        self._seen(slot, observation)
        self._begun += 1
        return True

    def _seen(self, slot: int, observation: Any) -> None:
        self._current[slot] = observation
        if self._record:
            self.observations[self._episodes[slot]].append(observation)

    def _leave(self, over: list[int], state: State | None, starts: Array) -> tuple[State | None, Array]:
        """Drop the slots that have nothing left to do, with their part of the agent's memory."""
        stay = np.setdiff1d(np.arange(len(self._envs)), over)
        n_envs = len(self._envs)
        if state is not None:  # sb3-contrib's recurrent policies keep n_envs on the second axis
            state = tuple(np.take(array, stay, axis=0 if len(array) == n_envs else 1) for array in state)
        self._envs, self._episodes, self._current = (
            [values[slot] for slot in stay] for values in (self._envs, self._episodes, self._current)
        )
        return state, starts[stay]


def stack_observations(observations: list[Any]) -> Any:
    """
    :param observations: of several environments; arrays, or dictionaries of arrays
    :return: the batch with a leading ``n_envs``
    """
    if isinstance(observations[0], Mapping):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
