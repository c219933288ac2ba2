"""``python -m tests.fuzz.kills``: kill commands at random moments, start them again, and look at what they leave.

Each must end with the right exit code and line, go on or begin anew, end up with the files of an undisturbed run, and
leave nothing else.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.update({"MUJOCO_GL": "disable", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"})  # read when they are imported
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from fuzz.programs import (  # noqa: E402
    JOBS,
    Forked,
    Job,
    Started,
    content,
    damage,
    leftovers,
    prepare,
    print_table,
    read_options,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PYTHON_STARTS = 0.4  # seconds in which no code of ours can see a signal
EVERY = 8  # one in so many processes is started as users do


class Campaign:
    """
    :param world: a folder that `prepare` has filled
    :param random: of the moments
    """

    def __init__(self, world: Path, randomness: random.Random) -> None:
        self.world, self.random = world, randomness
        self._undisturbed: dict[str, tuple[dict[str, Any], float]] = {}

    def undisturbed(self, job: Job) -> tuple[dict[str, Any], float]:
        """What the command leaves, and its seconds."""
        if job.name not in self._undisturbed:
            out = self.world / "undisturbed" / job.name.replace(" ", "")
            started = time.monotonic()
            code = Forked(job.arguments(self.world, out), self.log).wait()
            seconds = time.monotonic() - started
            if code:
                raise RuntimeError(f"{job.name} ends with {code}: {self.log.read_text()}")
            self._undisturbed[job.name] = content(out), seconds
        return self._undisturbed[job.name]

    @property
    def log(self) -> Path:
        return self.world / "log"

    def kill(self, job: Job, number: int, as_users_do: bool) -> str | None:
        """One kill and a second start; None, or what is wrong."""
        wanted, seconds = self.undisturbed(job)
        out = self.world / "out" / job.name.replace(" ", "")
        shutil.rmtree(out, ignore_errors=True)
        first: Forked | Started
        if as_users_do:
            moment = self.random.uniform(PYTHON_STARTS, seconds + 4.0)
            first = Started(job.arguments(self.world, out), self.log)
        else:
            moment = self.random.uniform(0.02, 1.05 * seconds)
            first = Forked(job.arguments(self.world, out), self.log)
        time.sleep(moment)
        with suppress(ProcessLookupError):
            first.kill(number)
        fault = self._end(first.wait(), number) or self._again(job, out, wanted)
        return fault and f"{job.name}, {signal.Signals(number).name} after {moment:.3f} s: {fault}"

    def _end(self, code: int | None, number: int) -> str | None:
        said = self.log.read_text(errors="replace")
        if code == 0:
            return None  # it was done
        if "Traceback" in said or "Exception ignored" in said:
            return f"a traceback: {said[-2000:]}"
        if number == signal.SIGKILL:
            return None if code == -number else f"ends with {code}"
        line = f"rrpolicy: stopped by {signal.Signals(number).name}; what was finished is kept"
        if code != 128 + number or said.count(line) != 1:
            return f"ends with {code} and says {said[-500:]!r}"
        return None

    def _again(self, job: Job, out: Path, wanted: dict[str, Any]) -> str | None:
        code = Forked([*job.arguments(self.world, out), *job.again], self.log).wait()
        if code:
            return f"the second start ends with {code}: {self.log.read_text()[-500:]!r}"
        if left := leftovers(out):
            return f"leaves {left}"
        if bad := damage(out):
            return f"damaged: {bad}"
        found = content(out)
        if not job.exact:
            return None if found.keys() == wanted.keys() else f"leaves {sorted(found)}, wanted {sorted(wanted)}"
        different = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        return f"other files than an undisturbed run: {different}" if different else None


def main(arguments: list[str] | None = None) -> int:
    """
    Print a table and all failures.

    :return: 1 when there was a failure, else 0
    """
    options = read_options("kills", __doc__, JOBS, 200, "kills, shared among the commands", arguments)
    counts: Counter[tuple[str, str]] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(prepare(Path(folder)), random.Random(options.seed))
        for case in range(options.n):
            job, number = options.jobs[case % len(options.jobs)], SIGNALS[case // len(options.jobs) % len(SIGNALS)]
            fault = campaign.kill(job, number, as_users_do=job.plain and case % EVERY == EVERY - 1)
            counts[job.name, "failures" if fault else signal.Signals(number).name] += 1
            if fault:
                failures.append(f"case {case}: {fault}")
                print(failures[-1], flush=True)
    names = [*(signal.Signals(number).name for number in SIGNALS), "failures"]
    print_table(counts, options.jobs, names)
    print(f"{options.n} kills, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
