"""``python -m tests.fuzz.full_disk``: run commands on a disk that becomes full at random moments.

Each must end with one line and exit code 1, or be done; nothing half written stays, and an earlier run's files are as
they were unless the command had begun to replace them. Needs the right to mount a small tmpfs.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.update({"MUJOCO_GL": "disable", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"})  # read when they are imported
sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from fuzz.programs import (  # noqa: E402
    JOBS,
    MORE,
    Forked,
    Job,
    content,
    damage,
    leftovers,
    prepare,
    print_table,
    read_options,
)

LEFT_OUT = ("train --resume", "collect", "collect --from-training")  # the first is train; HDF5 has tests of its own
COMMANDS = [job for job in (*JOBS, *MORE) if job.name not in LEFT_OUT]
LONGEST = 300
FULL = ("No space left on device", "bytes are free, wanted")
PAGE = 4096
BEGIN_ANEW = ("train", "images extract --resume", "demo")  # remove an earlier run's files once there is room enough


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """
    A tmpfs of so many bytes.

    :raises PermissionError: when it cannot be mounted
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder], check=True, capture_output=True
        )
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise PermissionError(f"no tmpfs can be mounted on {folder}: {error}") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def used(folder: Path) -> int:
    """Bytes of whole pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


class Campaign:
    """
    :param world: a folder that `prepare` has filled
    :param randomness: of the disk's size
    """

    def __init__(self, world: Path, randomness: random.Random) -> None:
        self.world, self.random = world, randomness
        self.log = world / "log"

    def undisturbed(self, job: Job) -> Path:
        """The folder that the command leaves."""
        out = self.world / "undisturbed" / job.name.replace(" ", "")
        if not out.exists():
            code = Forked(job.arguments(self.world, out), self.log).wait()
            if code:
                raise RuntimeError(f"{job.name} ends with {code}: {self.log.read_text()}")
        return out

    def fill(self, job: Job) -> tuple[bool, str | None]:
        """Run a command where there is room for a part of what it writes; whether it was full, and what is wrong."""
        whole = self.undisturbed(job)
        over, room = self.random.random() < 0.5, self.random.randrange(used(whole) // PAGE + 2) * PAGE
        with small_disk(self.world / "disk", room + PAGE + over * used(whole)) as disk:
            (disk / "filler").write_bytes(bytes(PAGE))  # a size of 0 would be no limit
            out = disk / "new" / "out"
            if over:
                shutil.copytree(whole, out)
            code = Forked(job.arguments(self.world, out), self.log).wait()
            fault = self._fault(code, out)
            if fault is None and over and job.name not in BEGIN_ANEW:
                before, after = content(whole), content(out)
                lost = sorted(name for name in before if before[name] != after.get(name))
                fault = f"an earlier run's files have changed: {lost}" if lost else None
        return code == 1, fault and f"{job.name}, {room} bytes{' over an earlier run' if over else ''}: {fault}"

    def _fault(self, code: int | None, out: Path) -> str | None:
        said = self.log.read_text(errors="replace")
        lines = [line for line in said.splitlines() if line.startswith("rrpolicy: error: ")]
        if "Traceback" in said or "Exception ignored" in said or code not in (0, 1):
            return f"ends with {code} and says {said[-1500:]!r}"
        if code == 1 and (len(lines) != 1 or len(lines[0]) > LONGEST or not any(words in lines[0] for words in FULL)):
            return f"says {said[-500:]!r}"
        if left := leftovers(out):
            return f"leaves {left}"
        if bad := damage(out):
            return f"damaged: {bad}"
        return None


def main(arguments: list[str] | None = None) -> int:
    """
    Print a table and all failures.

    :return: 1 when there was a failure, else 0
    """
    options = read_options("full_disk", __doc__, COMMANDS, 30, "moments of each command", arguments)
    counts: Counter[tuple[str, str]] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(prepare(Path(folder)), random.Random(options.seed))
        for job in options.jobs:
            for _ in range(options.n):
                full, fault = campaign.fill(job)
                counts[job.name, "failures" if fault else "full" if full else "done"] += 1
                if fault:
                    failures.append(fault)
                    print(fault, flush=True)
    names = ["full", "done", "failures"]
    print_table(counts, options.jobs, names)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
