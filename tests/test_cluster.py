"""Units on a Dask cluster, a real scheduler and its workers on the loopback interface: the same CSV, whoever dies."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.cluster import WORKER, cluster, process
from helpers.walks import WALKS, check_once, lines, walk

from rrpolicy.common.jobs import Jobs

pytest.importorskip("distributed", reason="the extra scale is not installed")
pytestmark = pytest.mark.slow  # each process imports torch


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    with cluster(tmp_path) as address:
        yield address


def test_a_killed_worker_loses_nothing_and_nothing_is_done_twice(tmp_path: Path, scheduler: str) -> None:
    walk(tmp_path / "alone")
    walk(tmp_path / "cluster", Jobs(scheduler=scheduler), deadly={WALKS[2]: 1})
    assert (tmp_path / "cluster" / "walks.csv").read_bytes() == (tmp_path / "alone" / "walks.csv").read_bytes()
    check_once(tmp_path / "cluster", but=(WALKS[2],))
    assert lines(tmp_path / "cluster" / "work" / "begun", f"{WALKS[2]} ") == 2


def test_a_unit_that_ends_two_workers_is_named(tmp_path: Path, scheduler: str) -> None:
    third = process(*WORKER, scheduler)
    with third, pytest.raises(ChildProcessError, match=f"^{WALKS[0]}: 2 workers died of it"):
        walk(tmp_path, Jobs(scheduler=scheduler), units=WALKS[:2], deadly={WALKS[0]: 9})
    assert lines(tmp_path / "work" / "ended", f"{WALKS[0]} ") == 0


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrpolicy.common.jobs.CONNECT_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        list(Jobs(scheduler="tcp://127.0.0.1:1").run(str, [1]))
