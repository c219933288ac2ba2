"""Runs that are stopped: signals arrive and are told, what was killed is cleaned up, and no two runs share a folder."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fuzz.programs import Forked, leftovers
from helpers.program import invoke
from helpers.recipes import RECIPE
from stable_baselines3.common.logger import Logger

from rrpolicy.common.files import atomic_write, write_text
from rrpolicy.common.folders import make_folder, remove_empty, sole_use
from rrpolicy.common.interruption import NUMBERS, Stopped, deferred_signals, raised_signals
from rrpolicy.common.progress import ProgressLog
from rrpolicy.experiments import Task
from rrpolicy.experiments.runs import PROGRESS, TrainingRun
from rrpolicy.experiments.steps import collect_base

TASK = Task.create("PointMaze_UMaze-v3")
DATA = collect_base(TASK, RECIPE, 0)


def killed(work: Callable[[], None]) -> None:
    """Do something in a process of its own, which is killed as soon as it is done."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os.write(writer, b"x")
            time.sleep(60)
            os._exit(1)
    os.read(reader, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def begin(*contexts: Any) -> None:
    """Enter and never leave."""
    for context in contexts:
        path = context.__enter__()
        if isinstance(path, Path) and path.is_file():
            path.write_bytes(b"half")
    _KEPT.extend(contexts)


_KEPT: list[Any] = []


# ---------------------------------------------------------------------- signals


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Under ``nohup`` SIGHUP is ignored, which programs keep to; the tests are about what is not ignored."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler == signal.SIG_IGN else handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Trap:
    """Something whose end is noticed by a callback, as weak references are used everywhere."""


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: signal.Signals(number).name)
def test_a_signal_that_python_drops_is_raised_again(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    def dropped(_: Any) -> None:
        signal.raise_signal(number)

    with pytest.raises(Stopped) as stopped, raised_signals() as received:
        trap = Trap()
        reference = weakref.ref(trap, dropped)
        del trap  # here a plain handler's exception ends as a line on stderr
        assert reference() is None and received == [number]
        time.sleep(5)
    assert stopped.value.signal_number == number
    assert capfd.readouterr().err == ""


class Finaliser:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def drops(work: Callable[[], Any]) -> None:
    with suppress(BaseException):
        work()


@pytest.mark.parametrize(
    "lose", [Finaliser, lambda: drops(lambda: signal.raise_signal(signal.SIGTERM))], ids=["finaliser", "bare except"]
)
def test_however_it_is_dropped(lose: Callable[[], Any]) -> None:
    with pytest.raises(Stopped), raised_signals():
        lose()
        time.sleep(5)


def test_a_signal_that_arrived_is_raised_once() -> None:
    with pytest.raises(Stopped), raised_signals():
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.1)  # nothing follows, and the handlers are those from before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored() -> None:
    """A shell has background jobs ignore Ctrl-C, and nohup SIGHUP."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_signals() as deferred, raised_signals() as raised:
            signal.raise_signal(signal.SIGINT)
        assert deferred == raised == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    def work() -> Any:
        with raised_signals():
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor() as pool:
        assert pool.submit(work).result() == signal.getsignal(signal.SIGTERM)


STOP_WHILE = """
import signal, sys
class Finder:  # looks on while modules are imported
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.{signal})
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["rrpolicy", "zoo", "list"]
from rrpolicy.__main__ import main
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("module", ["rrpolicy.cli", "torch"])
def test_the_program_can_be_stopped_while_it_is_loaded(module: str, name: str, code: int) -> None:
    script = STOP_WHILE.format(module=module, signal=name)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr == f"rrpolicy: stopped by {name}; what was finished is kept\n"


def test_parsing_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrpolicy.cli.program.Program.parse_args", lambda *a: signal.raise_signal(signal.SIGINT))
    assert Forked(["zoo", "list"], tmp_path / "log").wait() == 130
    assert (tmp_path / "log").read_text() == "rrpolicy: stopped by SIGINT; what was finished is kept\n"


def test_a_fault_that_follows_a_signal_is_not_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("cleaning up has failed, too")

    monkeypatch.setattr("rrpolicy.cli.zoo_commands.zoo.entries", broken)
    result = invoke(["zoo", "list"])
    assert result.exit_code == 143
    assert result.stderr == "rrpolicy: stopped by SIGTERM; what was finished is kept\n"


# ---------------------------------------------------------------------- what was killed


def test_what_a_killed_process_left_is_removed_at_the_next_write(tmp_path: Path) -> None:
    killed(lambda: begin(atomic_write(tmp_path / "checkpoint.zip"), atomic_write(tmp_path / "a.mp4")))
    assert len(leftovers(tmp_path)) == 2
    (tmp_path / ".mine").write_text("a hidden file of somebody else")
    write_text(tmp_path / "checkpoint.zip", "new")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.zip", ".mine"}


def test_what_is_still_being_written_stays(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "slow.txt") as unfinished:
        unfinished.write_text("slow")
        write_text(tmp_path / "slow.txt", "fast")
        with sole_use(tmp_path):
            assert unfinished.read_text() == "slow"
    assert (tmp_path / "slow.txt").read_text() == "slow"
    assert leftovers(tmp_path) == []


def test_a_command_cleans_its_folder_when_it_starts(tmp_path: Path) -> None:
    killed(lambda: begin(atomic_write(tmp_path / "out" / "video.mp4")))
    with sole_use(tmp_path / "out"):
        assert list((tmp_path / "out").iterdir()) == []


def test_threads_may_save_one_file(tmp_path: Path) -> None:
    def save(number: int) -> None:
        for _ in range(20):
            write_text(tmp_path / "file.txt", str(number) * 1000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(save, range(4)))
    text = (tmp_path / "file.txt").read_text()
    assert len(text) == 1000 and len(set(text)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "agent.txt").write_text("old")
    (tmp_path / "latest.txt").symlink_to("models/agent.txt")
    (tmp_path / "next.txt").symlink_to("models/next.txt")  # to nothing yet
    write_text(tmp_path / "latest.txt", "new")
    write_text(tmp_path / "next.txt", "made")
    assert (tmp_path / "latest.txt").is_symlink() and (tmp_path / "next.txt").is_symlink()
    assert (tmp_path / "models" / "agent.txt").read_text() == "new"
    assert (tmp_path / "models" / "next.txt").read_text() == "made"


def test_long_names_can_be_saved(tmp_path: Path) -> None:
    write_text(tmp_path / f"{'n' * 251}.txt", "long")
    assert leftovers(tmp_path) == []


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "a" / "b")
    assert [path.name for path in made] == ["b", "a"]
    (tmp_path / "a" / "kept").touch()
    remove_empty(made)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "c" / "d" / "file"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), sole_use(tmp_path / "c"):
        raise KeyboardInterrupt
    assert not (tmp_path / "c").exists()


# ---------------------------------------------------------------------- one run in a folder


def training(out: Path, n_steps: int = 10, **arguments: Any) -> TrainingRun:
    return TrainingRun(TASK, [DATA], out, RECIPE, total_timesteps=n_steps, **arguments)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--dataset", "{data}", "--out", "{out}"],
        ["collect", "--out", "{out}"],
        ["collect", "--from-training", "--env", "Pendulum-v1", "--out", "{out}"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_folder_in_use_is_refused(command: list[str], tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    run = invoke(["collect", "--n-transitions", "200", "--out", str(data)])
    assert run.exit_code == 0, run.output
    with sole_use(out):
        result = invoke([part.format(out=out, data=data) for part in command])
        assert list(out.iterdir()) == []
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr == (
        f"rrpolicy: error: {out} is in use by another run: wait for its end, or choose another folder\n"
    )


def test_of_two_trainings_at_once_one_is_done_and_one_refused(tmp_path: Path) -> None:
    begun, faults = threading.Event(), []

    def second() -> None:
        begun.wait()
        with pytest.raises(ValueError, match="is in use by another run") as fault:
            training(tmp_path).run()
        faults.append(fault)

    thread = threading.Thread(target=second)
    thread.start()
    with sole_use(tmp_path):
        begun.set()
        thread.join()
    assert len(faults) == 1
    training(tmp_path).run()  # a folder that is free again


def test_the_folder_of_a_killed_run_is_free(tmp_path: Path) -> None:
    killed(lambda: begin(sole_use(tmp_path)))
    with sole_use(tmp_path):
        pass


# ---------------------------------------------------------------------- progress.csv


def log_of(path: Path, *steps: int) -> ProgressLog:
    log = ProgressLog(path)
    logger = Logger(None, [log])
    for step in steps:
        logger.record("train/loss", step / 10)
        logger.record("time/total_timesteps", step)
        logger.dump(step)
    return log


def test_a_row_that_a_killed_run_did_not_finish_is_left_out(tmp_path: Path) -> None:
    log = log_of(tmp_path / PROGRESS, 1, 2, 3)
    with open(log.path, "a") as file:
        file.write("0.4,1")  # of 0.4,100
    assert log.column("train/loss") == [0.1, 0.2, 0.3]
    log.keep(2)
    assert log_of(log.path, 3).column("time/total_timesteps") == [1, 2, 3]


def test_a_value_that_comes_later_gets_a_column(tmp_path: Path) -> None:
    log = log_of(tmp_path / PROGRESS, 1)
    log.write({"time/total_timesteps": 2, "train/other": 5, "note": "a,b\nc"}, {"note": ()})
    assert log.path.read_text().splitlines()[0] == "train/loss,time/total_timesteps,train/other,note"
    assert [row["note"] for row in log.rows()] == ["", "a,b\nc"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("finished")
    training(folder, 4, checkpoint_freq=2).run()
    return folder


@pytest.mark.parametrize(
    "content",
    [
        b"time/total_timesteps,train/loss\n1,0.5\nspam,0.5\n",
        b"train/loss\n1\n",
        b"time/total_timesteps\n1,2\n",
        b"time/total_timesteps,train/loss\n1\n",
        b"\xff\xfe\n1\n",
        b"time/total_timesteps\nnan\n",
        b'time/total_timesteps\n"1\n',
    ],
)
def test_a_damaged_log_is_one_line_that_names_it(content: bytes, finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / PROGRESS).write_bytes(content)
    with pytest.raises(ValueError, match=r"progress\.csv is damaged") as fault:
        training(folder, 8).run(resume=True)
    assert "\n" not in str(fault.value)


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path) -> None:
    def steps(folder: Path) -> list[float]:
        return ProgressLog(folder / PROGRESS).column("time/total_timesteps")

    training(tmp_path / "whole", 20).run()
    training(tmp_path / "parts", 10).run()
    run = training(tmp_path / "parts", 20)
    ProgressLog(tmp_path / "parts" / PROGRESS).write({"train/loss": 1, "time/total_timesteps": 11}, {})
    run.run(resume=True)  # what came after the checkpoint is made again
    assert steps(tmp_path / "parts")[-1] == steps(tmp_path / "whole")[-1] == 20
    assert 11 not in steps(tmp_path / "parts")


# ---------------------------------------------------------------------- --resume before the first checkpoint


def test_training_resumes_before_its_first_checkpoint(tmp_path: Path) -> None:
    assert training(tmp_path, 4).run(resume=True).num_timesteps == 4
