"""Results of episodes: numbers with 95 % intervals, two agents compared episode by episode, and the file of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.files import write_json
from rrpolicy.common.kinds import RowFields
from rrpolicy.common.messages import at, printable
from rrpolicy.common.schema import checked, from_json, native, read_small
from rrpolicy.common.stats import Measure, bootstrap_mean, mean_difference
from rrpolicy.common.typing import Array
from rrpolicy.data.reference_scores import normalized_score, reference_score

Row = dict[str, Any]

ROW_KEYS = ("agent", "metric", "mean", "ci_low", "ci_high", "n")
RESULTS_FILE = "results.json"
MAX_RESULTS_BYTES = 2**24


# ---------------------------------------------------------------------- results


@dataclass(frozen=True, eq=False)
class Evaluation:
    """
    Results of n episodes.

    :param returns: undiscounted sums of rewards (n,)
    :param successes: bool (n,), success at the episode's last step; None where the environment reports none
    :param lengths: environment steps (n,)
    :param seeds: with which the episodes were reset (n,)
    :param observations: of each episode (length + 1, obs_dim), when they were recorded
    :param env_id: where it happened, when that is known
    :param successes_once: bool (n,), success at any step; None where the environment reports none
    :param registered: whether that is the environment as it is registered, with its default arguments and time limit
    """

    returns: Array
    successes: Array | None
    lengths: Array
    seeds: Array
    observations: tuple[Array, ...] | None = None
    env_id: str | None = None
    successes_once: Array | None = None
    registered: bool = True

    @property
    def normalized_scores(self) -> Array | None:
        """D4RL's scores (n,); None without reference returns for the environment, or where it is not as registered."""
        known = self.registered and self.env_id is not None and reference_score(self.env_id) is not None
        return normalized_score(str(self.env_id), self.returns) if known else None

    @property
    def success_rate(self) -> float | None:
        """Fraction of episodes that end in success."""
        return None if self.successes is None else float(self.successes.mean())

    @property
    def success_once_rate(self) -> float | None:
        """Fraction of episodes with success at some step."""
        return None if self.successes_once is None else float(self.successes_once.mean())

    def values(self, metric: str) -> Array:
        """
        A metric of every episode.

        :param metric: ``"return"``, ``"normalized_score"``, ``"success_rate"`` (at the last step),
            ``"success_once_rate"`` (at any step) or ``"length"``
        :return: its value in each episode (n,)
        :raises ValueError: for another metric, or successes or scores that are not known
        """
        known = {
            "return": self.returns,
            "normalized_score": self.normalized_scores,
            "success_rate": self.successes,
            "success_once_rate": self.successes_once,
            "length": self.lengths,
        }
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

    :param agent: name of the agent
    :param metric: name of the metric, e.g. ``"success_rate"``; names that end in ``rate`` hold failures and successes
    :param values: (n,) one for each episode, or whatever was repeated
    :return: agent, metric, mean, ci_low, ci_high, n
    """
    return measure_row(agent, metric, bootstrap_mean(values, rate=metric.endswith("rate")))


def measure_row(agent: str, metric: str, measure: Measure) -> Row:
    """
    One row of results for a number that brings its own interval.

    :param agent: name of the agent
    :param metric: name of the metric
    :param measure: the number
    :return: agent, metric, mean, ci_low, ci_high, n
    """
    return dict(zip(ROW_KEYS, (agent, metric, *measure), strict=True))


def paired_difference(a: Evaluation, b: Evaluation, metric: str = "success_rate") -> dict[str, float]:
    """
    Mean difference of ``a`` and ``b`` over episodes with equal seeds, with a 95 % interval.

    :param metric: as in :meth:`Evaluation.values`
    :return: mean, ci_low, ci_high, n
    :raises ValueError: when the episodes' seeds differ
    """
    if not np.array_equal(a.seeds, b.seeds):
        raise ValueError(f"a and b must have run the same seeds, got {a.seeds.tolist()} and {b.seeds.tolist()}")
    return mean_difference(a.values(metric), b.values(metric), rate=metric == "success_rate").columns()


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
    Read rows of results.

    :param folder: where :func:`write_results` wrote
    :return: the rows
    :raises ValueError: when there is no results file or it is damaged, naming it
    """
    path = Path(folder) / RESULTS_FILE
    try:
        rows = from_json(read_small(path, MAX_RESULTS_BYTES))
        if not isinstance(rows, list):
            raise ValueError("it must hold a list of rows")
        return [_checked_row(row) for row in rows]
    except (OSError, ValueError) as error:
        raise ValueError(at(path, f"is no results file: {error}")) from None


def _checked_row(row: Any) -> Row:
    if not isinstance(row, Mapping) or set(row) != set(ROW_KEYS):
        raise ValueError(f"a row must have the keys {', '.join(ROW_KEYS)}, got {printable(row, 80)}")
    values = native(dict(row))
    checked(RowFields, values, "a row must hold a result")
    return {key: values[key] for key in ROW_KEYS}


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
    """A number with three decimals, or one from 10 on."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
