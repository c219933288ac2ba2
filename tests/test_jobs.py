"""Units in several processes: the same CSV as with one, whoever is first, whoever dies, whenever it is stopped.

All that is done in processes is tested here, since each of them imports torch and is used again by the next test.
"""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pipelines import write_stable_diffusion
from helpers.walks import WALKS, Walk, Walks, check_once, lines, walk
from test_images_recording import PROMPTS, contents, record_mixtures
from typer.testing import CliRunner

from rrpolicy.cli import app
from rrpolicy.common.device import prefer, preferred, resolve
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.locks import file_lock
from rrpolicy.experiments.runner import Piece, shared_pieces
from rrpolicy.images.pipelines import load_pipeline
from rrpolicy.images.recording import PromptPair, record_prompts

TWO = Jobs(2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The CSV of one process."""
    folder = tmp_path_factory.mktemp("alone")
    walk(folder)
    return (folder / "walks.csv").read_bytes()


# ---------------------------------------------------------------------- this machine


def test_two_processes_write_the_csv_of_one(tmp_path: Path, alone: bytes) -> None:
    results = walk(tmp_path, TWO)
    assert (tmp_path / "walks.csv").read_bytes() == alone and len(results) == 2 * len(WALKS)
    check_once(tmp_path)
    others = {line.split()[-1] for line in (tmp_path / "work" / "begun").read_text().splitlines()}
    assert str(os.getpid()) not in others
    before = (tmp_path / "work" / "begun").read_text()
    assert walk(tmp_path, TWO) == results and (tmp_path / "work" / "begun").read_text() == before


def test_what_was_finished_before_a_fault_is_not_done_again(tmp_path: Path, alone: bytes) -> None:
    with pytest.raises(ValueError, match=f"{WALKS[2]} is faulty"):
        walk(tmp_path, faulty=(WALKS[2],))
    walk(tmp_path, TWO)
    assert (tmp_path / "walks.csv").read_bytes() == alone
    check_once(tmp_path, but=(WALKS[2],))


def kept_units(folder: Path) -> list[Walk]:
    """Units that are done, and wait for others before them or for the run to go on."""
    return [unit for unit in WALKS if list(folder.glob(f"work/units/*/{unit.name}-*.json"))]


@pytest.mark.slow  # two pairs of processes import torch; as a run that is stopped, below
def test_units_that_were_finished_out_of_order_wait_for_those_before_them(tmp_path: Path, alone: bytes) -> None:
    with pytest.raises(ValueError, match="is faulty"):
        walk(tmp_path, TWO, faulty=(WALKS[0],), units=[*WALKS[1:3], WALKS[0], *WALKS[3:]])
    kept = kept_units(tmp_path)
    walk(tmp_path)
    assert sorted((tmp_path / "walks.csv").read_bytes().splitlines()) == sorted(alone.splitlines())
    assert kept and all(lines(tmp_path / "work" / "begun", f"{unit} ") == 1 for unit in kept)
    check_once(tmp_path, but=tuple(WALKS))  # one that was being done when the fault ended the run begins again


def test_a_damaged_unit_is_done_again(tmp_path: Path, alone: bytes) -> None:
    with pytest.raises(ValueError, match="is faulty"):
        walk(tmp_path, faulty=WALKS[1:2])
    (folder,) = tmp_path.glob("work/units/*")
    (folder / "walk_20_seed-1-0.json").write_text("{")
    walk(tmp_path)
    assert (tmp_path / "walks.csv").read_bytes() == alone


def test_one_run_writes_a_csv_at_a_time(tmp_path: Path) -> None:
    walk(tmp_path, units=WALKS[:1])
    (folder,) = tmp_path.glob("work/units/*")
    with file_lock(folder / "run.lock"), pytest.raises(ValueError, match=r"walks\.csv is being written by another run"):
        walk(tmp_path)
    assert len(walk(tmp_path)) == 2 * len(WALKS)


def test_what_only_one_unit_needs_is_no_piece_of_its_own(tmp_path: Path) -> None:
    experiment = Walks(tmp_path)
    assert shared_pieces(experiment, WALKS[:1]) == []
    assert shared_pieces(experiment, WALKS) == [Piece(WALKS[0], "directions")]
    assert [str(one) for one in (Piece(WALKS[0]), Piece(WALKS[0], "directions"))] == [str(WALKS[0]), "directions"]


def test_each_process_has_one_thread_and_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = dict(TWO.run(lambda number: (torch.get_num_threads(), os.getcwd(), number**2), [1, 2, 3]))
    assert found == {number: (1, str(tmp_path), number**2) for number in (1, 2, 3)}


def test_a_piece_is_begun_beside_this_process(tmp_path: Path) -> None:
    made = TWO.begin(lambda number: (os.getpid(), (tmp_path / "begun").write_text(str(number))), 17)
    while not (tmp_path / "begun").exists():  # though nobody has asked for the result
        time.sleep(0.01)
    process, written = made()
    assert process != os.getpid() and written == len("17")
    assert Jobs().begin(lambda number: (os.getpid(), number), 17)() == (os.getpid(), 17)


def test_a_piece_that_was_begun_tells_its_faults() -> None:
    with pytest.raises(ZeroDivisionError):
        TWO.begin(lambda number: 1 / number, 0)()
    with pytest.raises(ValueError, match="a piece begins beside this process on this machine"):
        Jobs(1, "tcp://a:1").begin(int, 0)


def test_workers_are_told_the_device() -> None:
    prefer("cpu")
    try:  # a function of this module would have the worker import it, and diffusers with it
        assert [made for _, made in TWO.run(lambda _: f"{preferred()} {resolve()}", [0])] == ["cpu cpu"]
    finally:
        prefer("auto")
    assert preferred() == "auto"


@pytest.mark.parametrize("kind", ["mixtures", pytest.param("prompts", marks=pytest.mark.slow)])  # imports diffusers
def test_two_processes_record_what_one_records(kind: str, tmp_path: Path) -> None:
    steps: dict[str, Any] = {"n_sampling_steps": 2, "n_noisings": 1, "shard_size": 1}
    for name, jobs in (("one", None), ("two", TWO)):
        if kind == "mixtures":
            record_mixtures(tmp_path / name, jobs=jobs)
        else:
            pair = PromptPair(load_pipeline(write_stable_diffusion(tmp_path / "sd")), safety="medium")
            record_prompts(pair, PROMPTS[:2], tmp_path / name, jobs=jobs, **steps)
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one == two and len(one) > 3


def test_jobs_are_counted_from_one_and_a_cluster_has_its_own() -> None:
    for jobs, scheduler, message in ((0, None, "jobs is 0"), (2, "tcp://a:1", "a cluster has its own workers")):
        with pytest.raises(ValueError, match=message):
            Jobs(jobs, scheduler)
    arguments = ["reproduce", "maze2d", "--jobs", "2", "--scheduler", "tcp://a:1", "--figures-only"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1 and "a cluster has its own workers" in result.output


# ---------------------------------------------------------------------- processes that die


def test_a_unit_whose_process_dies_is_begun_again(tmp_path: Path, alone: bytes) -> None:
    walk(tmp_path, TWO, deadly={WALKS[1]: 1})
    assert (tmp_path / "walks.csv").read_bytes() == alone
    assert lines(tmp_path / "work" / "begun", f"{WALKS[1]} ") == 2
    check_once(tmp_path, but=tuple(WALKS))  # joblib ends the others, too, which begin again


def test_a_run_that_is_stopped_goes_on(tmp_path: Path, alone: bytes) -> None:
    def stop(bar: Any, text: str) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tqdm.auto.tqdm.set_postfix_str", stop)  # when the first unit is done
        with pytest.raises(KeyboardInterrupt):
            walk(tmp_path, TWO)
    kept = kept_units(tmp_path)
    walk(tmp_path)  # two processes go on above, and to stop has ended those that there were
    assert (tmp_path / "walks.csv").read_bytes() == alone and kept
    assert all(lines(tmp_path / "work" / "begun", f"{unit} ") == 1 for unit in kept)


@pytest.mark.slow  # a pair of processes imports torch; a dead worker of a unit is above
def test_a_piece_whose_worker_dies_is_named() -> None:
    with pytest.raises(ChildProcessError, match="17: its worker died"):
        TWO.begin(os._exit, 17)()


@pytest.mark.slow  # three pairs of processes import torch
def test_a_unit_that_ends_two_processes_is_named_and_the_others_are_kept(tmp_path: Path, alone: bytes) -> None:
    with pytest.raises(ChildProcessError, match=f"^{WALKS[1]}: 2 workers died of it"):
        walk(tmp_path, TWO, deadly={WALKS[1]: 2})
    assert lines(tmp_path / "work" / "begun", f"{WALKS[1]} ") == 2
    walk(tmp_path)
    assert (tmp_path / "walks.csv").read_bytes() == alone
    check_once(tmp_path, but=tuple(WALKS))
