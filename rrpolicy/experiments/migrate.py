"""Rewrites results of the format before 2026-11-29: ``python -m rrpolicy.experiments.migrate docs/results/*.csv``.

Names that held several facts are taken apart into the columns ``agent, reference, metric, level, step``; ``commit`` is
the commit that added the row, as ``git blame`` shows, or empty where it shows none; numbers stay as they are written.
"""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import write_text
from rrpolicy.common.messages import printable
from rrpolicy.common.tables import read_table
from rrpolicy.experiments.results import OLD_COLUMNS, columns

NAMES = (("maze", "goal"), ("robot", "data"), ("removed", "expert"))
VARIANTS = {"rows-alike": "no-row-weighting"}
N_COMMIT = 12  # hexadecimal digits
_IN_EPISODES = ("return", "success_rate", "normalized_score")  # of which paired differences were taken
_EXPLAINED = re.compile(r"(r2_\w+)_t(\d+)")
_CURVE = re.compile(r"(\w+)@(\d+)")
_AUROC = re.compile(r"(auroc)(_reversed|_elbo_subset|_lookalikes)?(?:_t(\d+))?(?:_(.+))?")
_SHARE = re.compile(r"(harmful_share)_(.+)")
_MEAN = re.compile(r"(mean)_(?!stayed$)(.+)")
Parts = dict[str, str]


def migrate(path: Path) -> int:
    """
    Rewrite a file, unless it has the new columns already.

    :param path: CSV of an experiment; maps beside it are renamed as their variants are
    :return: number of rows that were rewritten
    :raises ValueError: when it is no results file
    """
    heading, *lines = read_table(path) or [[]]
    if any(tuple(heading) == columns(names) for names in NAMES):
        return 0
    names = next((names for names in NAMES if tuple(heading) == (*names, *OLD_COLUMNS)), None)
    if names is None:
        raise FileFault(path, f"is no results file of an experiment: its columns are {printable(heading)}")
    whole = [index for index, line in enumerate(lines) if len(line) == len(heading)]
    rows = [dict(zip((*("task", "case"), *OLD_COLUMNS), lines[index], strict=True)) for index in whole]
    commits, ran = _commits(path), _who_ran(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(names))
    for index, row in zip(whole, rows, strict=True):
        parts = taken_apart(row["agent"], row["metric"], ran[_unit(row)])
        commit = commits[index + 1] if index + 1 < len(commits) else ""
        new = {**row, **parts, "commit": commit, "variant": VARIANTS.get(row["variant"], row["variant"])}
        writer.writerow([new[name] for name in columns(("task", "case"))])
    write_text(path, text.getvalue())
    for old, variant in VARIANTS.items():
        for kept in path.with_suffix("").glob(f"maps/{old}_*"):
            kept.rename(kept.with_name(variant + kept.name.removeprefix(old)))
    return len(rows)


def taken_apart(agent: str, metric: str, ran: set[str]) -> Parts:
    """
    The columns of a row whose names held several facts.

    :param agent: ``a-b`` for a paired difference, ``a/b`` for a ratio
    :param metric: such as ``auroc_t40_trouser+sneaker``, ``r2_guided_t12`` or ``normalized_score@10000``
    :param ran: agents of the unit that had episodes of their own
    """
    reference = level = step = ""
    if "/" in agent:
        agent, _, reference = agent.partition("/")
    elif metric in _IN_EPISODES and agent not in ran:
        agent, reference = _difference(agent, ran)
    if match := _EXPLAINED.fullmatch(metric):
        metric, level = match[1], match[2]
    elif match := _CURVE.fullmatch(metric):
        metric, step = match[1], match[2]
    elif match := _AUROC.fullmatch(metric):
        metric, level, reference = match[1] + (match[2] or ""), match[3] or "", match[4] or ""
    elif match := _SHARE.fullmatch(metric) or (_MEAN.fullmatch(metric) if agent == "rho" else None):
        metric, reference = match[1], match[2]
    return {"agent": agent, "reference": reference, "metric": metric, "level": level, "step": step}


def _difference(name: str, ran: set[str]) -> tuple[str, str]:
    """The two agents of ``a-b``, both of which ran."""
    cuts = [index for index, letter in enumerate(name) if letter == "-"]
    pairs = [(name[:cut], name[cut + 1 :]) for cut in cuts if {name[:cut], name[cut + 1 :]} <= ran]
    if len(pairs) != 1:
        raise ValueError(f"agent {printable(name)!r} is no difference of two of {', '.join(sorted(ran))}")
    return pairs[0]


def _unit(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("task", "case", "seed", "variant"))


def _who_ran(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, ...], set[str]]:
    """Agents with episodes of their own, in each unit of each variant: those that have a step or a plain return."""
    ran: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        own = ran.setdefault(_unit(row), set())
        if row["metric"] == "return":
            own.add(row["agent"])
    return {unit: {name for name in names if not _is_difference(name, names)} for unit, names in ran.items()}


def _is_difference(name: str, names: set[str]) -> bool:
    """In mazes differences have returns, too: ``steered-expert`` of ``steered`` and ``expert``."""
    return any(name[:cut] in names and name[cut + 1 :] in names for cut, letter in enumerate(name) if letter == "-")


def _commits(path: Path) -> list[str]:
    """The commit that added each line of a file; empty for a line that is not committed."""
    given = ["git", "blame", "-l", "-s", "--", path.name]
    try:
        found = subprocess.run(given, cwd=path.parent.resolve(), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    hashes = [line.split(maxsplit=1)[0].lstrip("^") for line in found.stdout.splitlines()]
    return ["" if set(one) == {"0"} else one[:N_COMMIT] for one in hashes]


def main(arguments: Sequence[str]) -> int:
    """Rewrite the files that are named and print what was done."""
    if not arguments:
        sys.stderr.write("usage: python -m rrpolicy.experiments.migrate FILE...\n")
        return 2
    for name in arguments:
        try:
            count = migrate(Path(name))
        except (OSError, ValueError) as error:
            sys.stderr.write(f"{name}: {error}\n")
            return 1
        sys.stdout.write(f"{name}: {f'{count} rows rewritten' if count else 'has the new columns already'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
