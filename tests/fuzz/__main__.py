"""``python -m tests.fuzz``: run cases of all targets, or of some, and print what became of them."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.update({"MUJOCO_GL": "disable", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"})  # read when they are imported
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402

from fuzz.harness import ACCEPTED, LATE, REFUSED, Report, run  # noqa: E402
from fuzz.targets import TARGETS, made  # noqa: E402

HEAD = ("target", "cases", "accepted", "late", "refused", "failures", "peak MB", "CPU-s", "seconds")


def row(report: Report, seconds: float) -> list[str]:
    """A target's cells of the table."""
    outcomes = report.outcomes
    counts = [len(outcomes), *(report.count(verdict) for verdict in (ACCEPTED, LATE, REFUSED)), len(report.failures)]
    peak = max(outcome.memory for outcome in outcomes) >> 20
    slowest = max(outcome.cpu_seconds for outcome in outcomes)
    return [report.target, *map(str, counts), str(peak), f"{slowest:.2f}", f"{seconds:.0f}"]


def shown(cells: list[str]) -> str:
    """A line of the table."""
    return f"{cells[0]:<18}" + "".join(f"{cell:>10}" for cell in cells[1:])


def main(arguments: list[str] | None = None) -> int:
    """
    Print a table and the smallest case of each kind of failure.

    :return: 1 when there was a failure, else 0
    """
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to see one again")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="may be given more than once")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(shown(list(HEAD)), flush=True)
    failures: list[str] = []
    for name in options.target or TARGETS:
        started = time.monotonic()
        report = run(made(name), range(options.first, options.first + options.cases), options.seed)
        print(shown(row(report, time.monotonic() - started)), flush=True)
        failures += report.lines()
    print("\n".join(["", *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
