"""Runs cases of a target in child processes and judges what the loader made of each.

A case is a function of the target, the seed and its number. Right are two things only: the file is read and what was
read can be used, with finite numbers; or it is refused, by a promised exception whose one short printable line names
the file. Either within bounds on memory and time, and without touching anything else. A child that dies, or does not
end, is a failure of the case that it was at; the next child goes on behind it.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rrpolicy
from fuzz.guard import Guard, Measured, virtual_size
from fuzz.hostile import outside
from fuzz.target import Target

CPU_SECONDS = 2.0  # for files up to a megabyte, and in proportion beyond
MEMORY, PER_BYTE = 200 * 2**20, 4
MESSAGE, PATH = 300, 100  # characters; a longer path may add what it has more
KILL_CPU_SECONDS, KILL_WALL_SECONDS = 4, 120.0
ADDRESS_SPACE = 2**31  # beyond what the process has: what needs more has believed a size
PROMISED = (ValueError, FileNotFoundError)
ACCEPTED, REFUSED, LATE = "accepted", "refused", "late"  # late: loaded, and refused by the first use
_LIBRARY = str(Path(rrpolicy.__file__).parent)
_warm: set[Any] = set()  # valid inputs that this process has loaded and used
_OUT_OF_MEMORY = ("allocate", "out of memory", "not enough memory", "bad_alloc")


@dataclass(frozen=True)
class Outcome:
    """
    What became of a case.

    :param verdict: ``"accepted"``, ``"refused"``, ``"late"``, or the kind of a failure
    :param detail: the exception, or what was done that should not have been
    :param mutation: what was done to the file
    :param size: bytes of the files that were changed
    """

    number: int
    verdict: str
    detail: str = ""
    mutation: str = ""
    size: int = 0
    memory: int = 0
    cpu_seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.verdict not in (ACCEPTED, REFUSED, LATE)


@dataclass
class Report:
    """All cases of a target."""

    target: str
    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        return sum(outcome.verdict == verdict for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed]

    def smallest(self) -> dict[str, tuple[Outcome, int]]:
        """For each kind of failure the case with the shortest mutation, and how many there were."""
        kinds: dict[str, list[Outcome]] = {}
        for outcome in self.failures:
            kinds.setdefault(outcome.verdict, []).append(outcome)
        return {
            kind: (min(cases, key=lambda one: (one.mutation.count(";"), len(one.mutation), one.size)), len(cases))
            for kind, cases in sorted(kinds.items())
        }

    def lines(self) -> list[str]:
        """For people: each kind of failure with its smallest case."""
        return [
            f"{self.target}: {kind} (× {n}): case {one.number}, {one.size} bytes: {one.mutation!r:.160} -> "
            f"{one.detail!r:.300}"
            for kind, (one, n) in self.smallest().items()
        ]


def run(target: Target, numbers: Sequence[int], seed: int = 0, again_above: float | None = None) -> Report:
    """
    Run some cases.

    A busy machine charges a process for more than it did, so what took too long is run twice more and the least counts.

    :param target: the loader
    :param numbers: of the cases
    :param again_above: CPU-seconds that are too long; the harness's own bound when ``None``
    """

    def slow(outcome: Outcome) -> bool:
        return outcome.verdict == "time" or (again_above is not None and outcome.cpu_seconds > again_above)

    with workplace(target) as folder:
        warm_up(target, folder)
        outcomes = _outcomes(target, folder, numbers, seed)
        for _ in range(2):
            if slower := [outcome.number for outcome in outcomes if slow(outcome)]:
                again = {outcome.number: outcome for outcome in _outcomes(target, folder, slower, seed)}
                outcomes = [min(one, again.get(one.number, one), key=lambda each: each.cpu_seconds) for one in outcomes]
    return Report(target.name, outcomes)


def _outcomes(target: Target, folder: Path, numbers: Sequence[int], seed: int) -> list[Outcome]:
    done: list[Outcome] = []
    while len(done) < len(numbers):
        outcomes, fault = _in_child(target, folder, numbers[len(done) :], seed)
        done += outcomes
        if fault is not None and len(done) < len(numbers):
            number = numbers[len(done)]
            changes, words = target.case(seed, number)
            _restore(folder, target, changes)
            done.append(Outcome(number, fault, "", words, _size(changes)))
    return done


@contextmanager
def workplace(target: Target) -> Iterator[Path]:
    """A folder in memory with the valid input."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="rrfuzz-", dir=memory if memory.is_dir() else None))
    try:
        folder = root / "case"
        put(folder, target.files)
        yield folder
    finally:
        shutil.rmtree(root)


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files under a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def warm_up(target: Target, folder: Path) -> None:
    """
    Load and use the valid input, once in this process, so that all modules are there before children are watched.

    :raises ValueError: when it is refused, or gives numbers that are not finite: then there is nothing to test
    """
    valid = (target.name, target.load, target.use, frozenset(target.files.items()))
    if valid in _warm:
        return
    repr(torch.tensor(torch.nan))  # torch imports what prints tensors with the first one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not finite(target.use(target.load(folder))):
            raise ValueError(f"{target.name}: the valid input gives numbers that are not finite")
    _warm.add(valid)


def finite(value: Any) -> bool:
    """Whether all numbers in nested containers are finite."""
    if isinstance(value, Mapping):
        return all(finite(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(finite(one) for one in value)
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray | float | int | np.generic):
        return np.asarray(value).dtype.kind not in "fc" or bool(np.isfinite(value).all())
    return True


# ---------------------------------------------------------------------- one case


def judged(target: Target, folder: Path, guard: Guard, size: int) -> tuple[str, str, Measured]:
    """The verdict on the files as they lie in the folder, its detail, and what was measured."""
    stage, error, usable = "load", None, True
    with guard.watching() as measured:
        try:
            loaded = target.load(folder)
            stage = "use"
            usable = finite(target.use(loaded))
        except Exception as caught:  # what else than promised ones may come is the question
            error = caught
    verdict, detail = _of_exception(target, folder, stage, error) if error is not None else (ACCEPTED, "")
    if not usable:
        verdict, detail = "accepted, then not finite", ""
    memory, seconds = MEMORY + PER_BYTE * size, CPU_SECONDS * max(1.0, size / 2**20)
    if measured.faults:
        detail = f"{measured.faults[:3]}, {verdict}: {detail}"
        fault = measured.faults[0].replace(str(outside()), "outside").replace(str(folder.parent), "around")
        verdict = f"touched: {re.sub('0x[0-9a-f]+', '', fault):.60}"
    elif measured.memory > memory:
        verdict, detail = "memory", f"{measured.memory >> 20} MB, wanted {memory >> 20}, {verdict}: {detail}"
    elif measured.cpu_seconds > seconds:
        verdict, detail = "time", f"{measured.cpu_seconds:.1f} CPU-s, wanted {seconds:.1f}, {verdict}: {detail}"
    return verdict, detail, measured


def _of_exception(target: Target, folder: Path, stage: str, error: Exception) -> tuple[str, str]:
    message = str(error)
    detail = f"{type(error).__name__}: {message[:400]}"
    if any(isinstance(one, MemoryError) or any(word in str(one) for word in _OUT_OF_MEMORY) for one in _chain(error)):
        return f"{stage}: tried to allocate too much", detail
    if not isinstance(error, PROMISED if stage == "load" else (*PROMISED, *target.in_use)):
        return f"{stage}: {type(error).__name__} in {_where(error)}", detail
    if len(message) > MESSAGE + max(len(str(folder)) - PATH, 0):
        return f"{stage}: message of more than {MESSAGE} characters", f"{len(message)}: {detail}"
    if not message.isprintable():
        return f"{stage}: message that cannot be printed", detail
    if stage == "load" and str(folder) not in message:
        return f"{stage}: message that does not name the file, from {_where(error)}", detail
    return (REFUSED if stage == "load" else LATE), detail


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _where(error: Exception) -> str:
    """The innermost function of the library on the way to the exception."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_LIBRARY)]
    return f"{Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "no function of the library"


# ---------------------------------------------------------------------- children


def _in_child(target: Target, folder: Path, numbers: Sequence[int], seed: int) -> tuple[list[Outcome], str | None]:
    """The outcomes of the cases that a child finished, and how it ended if it did not finish all."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        gc.freeze()  # what the parent holds is no garbage, and to look at it copies every page of it
        try:
            _child(target, folder, numbers, seed, writing)
        except BaseException:  # the parent only sees that it ended
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    outcomes: list[Outcome] = []
    late = False
    with open(reading, encoding="utf-8") as stream:
        for line in _lines(stream):
            if line is None:
                late = True
                os.kill(child, signal.SIGKILL)
                break
            outcomes.append(Outcome(**json.loads(line)))
    _, status = os.waitpid(child, 0)
    if status == 0 and len(outcomes) == len(numbers):
        return outcomes, None
    number = -os.waitstatus_to_exitcode(status)
    if late:
        return outcomes, f"did not end within {KILL_WALL_SECONDS:.0f} s"
    if number == signal.SIGPROF:
        return outcomes, f"more than {KILL_CPU_SECONDS} CPU-seconds"
    return outcomes, f"died of {signal.Signals(number).name if number > 0 else f'exit {-number}'}"


def _lines(stream: Any) -> Iterator[str | None]:
    """Lines as they come; None when none came for too long."""
    pending = ""
    while True:
        ready, _, _ = select.select([stream], [], [], KILL_WALL_SECONDS)
        if not ready:
            yield None
            return
        chunk = os.read(stream.fileno(), 65_536).decode()
        if not chunk:
            return
        *lines, pending = (pending + chunk).split("\n")
        yield from lines


def _child(target: Target, folder: Path, numbers: Sequence[int], seed: int, pipe: int) -> None:
    warnings.simplefilter("ignore")
    sys.settrace(None)  # a measurement of coverage, which takes several times as long and ends with the child
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (nowhere := folder.parent / "cwd").mkdir(exist_ok=True)
    os.chdir(nowhere)
    sys.path.append(str(outside()))
    with open(os.devnull, "w") as null:
        for stream in (1, 2):
            os.dup2(null.fileno(), stream)
    (temporary := folder.parent / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    guard = Guard([folder, *([temporary] if target.temporary else [])], outside())
    limit = virtual_size() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    for number in numbers:
        changes, words = target.case(seed, number)
        put(folder, changes)
        size = _size({**target.files, **changes})
        signal.setitimer(signal.ITIMER_PROF, KILL_CPU_SECONDS * max(1.0, size / 2**20))
        verdict, detail, measured = judged(target, folder, guard, size)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _restore(folder, target, changes)
        outcome = Outcome(number, verdict, detail, words[:300], _size(changes), measured.memory, measured.cpu_seconds)
        os.write(pipe, f"{json.dumps(asdict(outcome))}\n".encode())


def _restore(folder: Path, target: Target, changes: Mapping[str, bytes]) -> None:
    for name in changes:
        (folder / name).unlink(missing_ok=True)
    put(folder, {name: target.files[name] for name in changes if name in target.files})


def _size(changes: Mapping[str, bytes]) -> int:
    return sum(map(len, changes.values()))
