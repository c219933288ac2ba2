"""The judge of the fuzzers sees what a loader must not do; a judge that accepts everything would find nothing."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fuzz import harness
from fuzz.harness import ACCEPTED, LATE, REFUSED, Outcome, run
from fuzz.hostile import EVIL_MODULE, outside
from fuzz.mutate import flip
from fuzz.target import Target


def outcome(bad: Callable[[Path], Any], use: Callable[[Any], Any] = lambda loaded: loaded) -> Outcome:
    """What is said of a loader that does this with a damaged file, and nothing bad with the valid one."""

    def load(folder: Path) -> Any:
        return 1.0 if (folder / "f").read_bytes() == b"valid" else bad(folder / "f")

    (found,) = run(Target("one", {"f": b"valid"}, {"f": flip}, load, use), [0]).outcomes
    return found


def raising(error: type[Exception], text: str = "{}: is damaged") -> Callable[[Path], Any]:
    def bad(path: Path) -> None:
        raise error(text.format(path))

    return bad


def wrapped(path: Path) -> None:
    try:
        bytearray(10**11)
    except MemoryError as error:
        raise ValueError(f"{path}: is damaged") from error


def endless(path: Path) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [
        (lambda path: 2.0, ACCEPTED),
        (raising(ValueError), REFUSED),
        (raising(FileNotFoundError), REFUSED),
        (raising(KeyError), "load: KeyError in no function of the library"),
        (raising(ValueError, "is damaged"), "load: message that does not name the file"),
        (raising(ValueError, "{}: " + "x" * 400), "load: message of more than 300 characters"),
        (raising(ValueError, "{}: \x1b[31m"), "load: message that cannot be printed"),
        (raising(ValueError, "{}: two\nlines"), "load: message that cannot be printed"),
        (lambda path: [np.zeros(2), {"a": float("nan")}], "accepted, then not finite"),
        (wrapped, "load: tried to allocate too much"),
        (lambda path: float(np.ones(3 * 10**7)[0]), "memory"),
        (lambda path: __import__(EVIL_MODULE), f"touched: import of {EVIL_MODULE}"),
        (lambda path: open("/etc/passwd").close(), "touched:"),
        (lambda path: (path.parent.parent / "new").write_text("x"), "touched:"),
        (lambda path: (path.parent / "new").write_text("x"), ACCEPTED),
        (lambda path: (outside() / "secret.txt").read_text(), "touched:"),
        (lambda path: subprocess.run(["true"], check=True), "touched: subprocess.Popen"),
        (lambda path: socket.create_connection(("127.0.0.1", 9)), "touched:"),
        (lambda path: os.kill(os.getpid(), signal.SIGKILL), "died of SIGKILL"),
        (lambda path: os._exit(3), "died of exit 3"),
    ],
)
def test_each_fault_of_a_loader_is_seen(bad: Callable[[Path], Any], verdict: str) -> None:
    found = outcome(bad)
    assert found.verdict.startswith(verdict), found
    assert found.failed == (verdict not in (ACCEPTED, REFUSED)) and found.mutation.startswith("flip")


def test_what_a_loader_gives_must_be_of_use() -> None:
    def late(loaded: float) -> float:
        if loaded == 2.0:
            raise ValueError("now it is damaged")
        return loaded

    assert outcome(lambda path: 2.0, late).verdict == LATE
    assert outcome(lambda path: 2.0, lambda loaded: {1.0: 0.0}[loaded]).verdict.startswith("use: KeyError")


def test_hanging_loaders_are_ended_and_the_next_cases_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "KILL_CPU_SECONDS", 0.3)
    assert outcome(endless).verdict == "more than 0.3 CPU-seconds"
    monkeypatch.setattr(harness, "KILL_WALL_SECONDS", 1.0)
    assert outcome(lambda path: time.sleep(60)).verdict == "did not end within 1 s"

    def odd(folder: Path) -> float:
        if len((folder / "f").read_bytes()) % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    def longer(content: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
        return content * int(rng.integers(1, 5)), "repeated"

    report = run(Target("some", {"f": b"x"}, {"f": longer}, odd, lambda loaded: loaded), range(20))
    assert [one.number for one in report.outcomes] == list(range(20))
    assert report.count(ACCEPTED) + report.count("died of SIGKILL") == 20 and 0 < len(report.failures) < 20


@pytest.mark.parametrize("always", [False, True])
def test_what_took_too_long_once_is_run_again(always: bool) -> None:
    def load(folder: Path) -> float:
        damaged, seen = (folder / "f").read_bytes() != b"valid", (folder / "seen").exists()
        if damaged and (always or not seen):
            (folder / "seen").touch()
            end = time.process_time() + 0.12
            while time.process_time() < end:
                pass
        return 1.0

    target = Target("one", {"f": b"valid"}, {"f": flip}, load, lambda loaded: loaded)
    (found,) = run(target, [0], again_above=0.08).outcomes
    assert found.verdict == ACCEPTED and (found.cpu_seconds > 0.08) == always


def test_cases_are_the_same_every_time() -> None:
    target = Target("some", {"f": bytes(100)}, {"f": flip}, lambda folder: 1.0, lambda loaded: loaded)
    first, second = (target.case(3, 7) for _ in range(2))
    assert first == second != target.case(3, 8)
