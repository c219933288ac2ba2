"""A real Dask cluster on the loopback interface: a scheduler and two workers, which are not started again."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
N_WORKERS = 2
SECONDS = 120.0
WORKER = ("distributed.cli.dask_worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny")


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of distributed that sees the tests' modules."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    command = [sys.executable, "-m", *arguments, "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **quiet) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """
    The address of a scheduler with two workers.

    :param folder: of a file by which they find each other
    """
    import distributed

    file = folder / "scheduler.json"
    scheduler = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--scheduler-file", str(file), "--port", "0")
    worker = (*WORKER, "--scheduler-file", str(file))
    with process(*scheduler), process(*worker), process(*worker):
        until = time.monotonic() + SECONDS
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.1)
        with distributed.Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(N_WORKERS, timeout=SECONDS)
            address = str(client.scheduler.address)
        yield address
