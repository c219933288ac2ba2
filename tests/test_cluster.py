"""Units on a Dask cluster, a real scheduler and its workers on the loopback interface: the same CSV, whoever dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.walks import WALKS, check_once, lines, walk

from rrpolicy.common.jobs import Jobs

pytest.importorskip("distributed", reason="the extra scale is not installed")

pytestmark = pytest.mark.slow  # each process imports torch

TESTS = Path(__file__).parent
N_WORKERS = 2
SECONDS = 120.0


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of distributed, without a display of its own, that sees the tests' modules."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": path, "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__GIL__ENABLED": "False"}
    command = [sys.executable, "-m", *arguments, "--no-dashboard"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        try:
            yield started
        finally:
            started.send_signal(signal.SIGKILL)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler with two workers, which are not started again."""
    import distributed

    file = tmp_path / "scheduler.json"
    here = ("--host", "127.0.0.1", "--scheduler-file", str(file))
    worker = ("distributed.cli.dask_worker", *here, "--nthreads", "1", "--no-nanny")
    with process("distributed.cli.dask_scheduler", *here, "--port", "0"), process(*worker), process(*worker):
        until = time.monotonic() + SECONDS
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.1)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(N_WORKERS, timeout=SECONDS)
            address = client.scheduler.address
        yield address


def test_a_killed_worker_loses_nothing_and_nothing_is_done_twice(tmp_path: Path, scheduler: str) -> None:
    walk(tmp_path / "alone")
    walk(tmp_path / "cluster", Jobs(scheduler=scheduler), deadly={WALKS[2]: 1})
    assert (tmp_path / "cluster" / "walks.csv").read_bytes() == (tmp_path / "alone" / "walks.csv").read_bytes()
    check_once(tmp_path / "cluster", but=(WALKS[2],))
    assert lines(tmp_path / "cluster" / "work" / "begun", f"{WALKS[2]} ") == 2


def test_a_unit_that_ends_two_workers_is_named(tmp_path: Path, scheduler: str) -> None:
    third = process("distributed.cli.dask_worker", scheduler, "--nthreads", "1", "--no-nanny")
    with third, pytest.raises(ChildProcessError, match=f"^{WALKS[0]}: 2 workers died of it"):
        walk(tmp_path, Jobs(scheduler=scheduler), units=WALKS[:2], deadly={WALKS[0]: 9})
    assert lines(tmp_path / "work" / "ended", f"{WALKS[0]} ") == 0


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrpolicy.common.jobs.CONNECT_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        list(Jobs(scheduler="tcp://127.0.0.1:1").run(str, [1]))
