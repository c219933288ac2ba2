"""Independent pieces of work in other processes: of this machine through joblib, of several through a Dask cluster.

A piece depends on nothing but itself, so it does not matter where it is done. One whose worker dies is begun once more;
if that worker dies, too, the piece is named. Each worker does one piece at a time, on one torch thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import cloudpickle
import torch
from joblib import Parallel, delayed

from rrpolicy.common.arguments import whole
from rrpolicy.common.device import prefer, preferred

Item = TypeVar("Item")
Made = TypeVar("Made")
Pieces: TypeAlias = Generator[tuple[Item, Made], None, None]

MOST_STARTS = 2  # of a piece: a second one after its worker has died
LOOK_SECONDS = 0.1  # between two looks at what a cluster has done
CONNECT_SECONDS = 20.0


@dataclass(frozen=True)
class Jobs:
    """
    Where pieces of work are done.

    :param n: processes on this machine; 1 is this process itself
    :param scheduler: address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, whose workers see the same folders;
        None for this machine
    :raises ValueError: for fewer than one process, or both
    """

    n: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        whole("jobs", self.n, 1)
        if self.scheduler is not None and self.n != 1:
            raise ValueError(f"jobs is {self.n} and scheduler {self.scheduler!r}: a cluster has its own workers")

    @property
    def elsewhere(self) -> bool:
        """Whether other processes than this one work."""
        return self.n > 1 or self.scheduler is not None

    def run(self, work: Callable[[Item], Made], items: Sequence[Item]) -> Pieces[Item, Made]:
        """
        Do all pieces.

        :param work: of one piece; it is sent to each worker once and keeps its state there
        :param items: the pieces; ``str`` names them
        :return: each piece with what was made, in the order in which they are finished; closing it ends the work
        :raises ChildProcessError: for a piece that ended two workers
        :raises ValueError: without the extra ``scale`` or a scheduler that answers, where one is named
        """
        if not self.elsewhere:
            return ((item, work(item)) for item in items)
        call = _Call.of(work)
        return _locally(self.n, call, items) if self.scheduler is None else _on_cluster(self.scheduler, call, items)

    def begin(self, work: Callable[[Item], Made], item: Item) -> Callable[[], Made]:
        """
        Begin one piece beside what this process does itself; with ``n=1`` it is done when its result is asked for.

        :param work: of the piece
        :param item: the piece; ``str`` names it
        :return: what waits for the piece and returns what was made, once
        :raises ValueError: for a cluster, whose workers do not work beside this process
        """
        if self.scheduler is not None:
            raise ValueError(f"scheduler is {self.scheduler!r}: a piece begins beside this process on this machine")
        if not self.elsewhere:
            return partial(work, item)
        # with two of them joblib does not do the piece in this process
        return partial(_result, Parallel(2, return_as="generator")([delayed(_Call.of(work))(item)]), item)


# ---------------------------------------------------------------------- in the worker

_one_at_a_time = threading.Lock()  # a worker of Dask may have several threads; random states are those of the process
_known: dict[str, Callable[[Any], Any]] = {}  # the work that this process does


@dataclass(frozen=True)
class _Call(Generic[Item, Made]):
    """
    One piece of work, as it is sent.

    :param key: digest of the work
    :param folder: in which this process runs, and so the workers, since paths may be relative
    :param device: what ``"auto"`` stands for, here and so in the workers
    :param pickled: the work; empty where it comes as an argument
    """

    key: str
    folder: str
    device: str
    pickled: bytes

    @classmethod
    def of(cls, work: Callable[[Item], Made]) -> _Call[Item, Made]:
        pickled = cloudpickle.dumps(work)
        return cls(hashlib.sha256(pickled).hexdigest(), str(Path.cwd()), preferred(), pickled)

    def __call__(self, item: Item) -> Made:
        """
        Do one piece, in a worker.

        :raises ValueError: where the worker does not see the folder
        """
        with _one_at_a_time:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
            torch.set_num_threads(1)
            prefer(self.device)
            if not Path(self.folder).is_dir():
                raise ValueError(f"there is no {self.folder} on {socket.gethostname()}: workers must see the same one")
            with contextlib.chdir(self.folder):
                if self.key not in _known:
                    _known.clear()  # room for the new one
                    _known[self.key] = cloudpickle.loads(self.pickled)
                made: Made = _known[self.key](item)
                return made


def _numbered(call: _Call[Item, Made], number: int, item: Item) -> tuple[int, Made]:
    return number, call(item)


# ---------------------------------------------------------------------- on this machine


def _locally(n: int, call: _Call[Item, Made], items: Sequence[Item]) -> Pieces[Item, Made]:
    """
    Do the pieces in ``n`` processes. When one dies joblib ends them all; the pieces that were being done are then begun
    again one by one, so that the one which ends its process is known.
    """
    waiting, suspects = list(range(len(items))), list[int]()
    begun = list[int]()

    def calls(numbers: Sequence[int]) -> Iterator[Any]:
        for number in numbers:
            begun.append(number)
            yield delayed(_numbered)(call, number, items[number])

    while numbers := suspects[:1] or waiting:
        begun.clear()
        try:
            parallel = Parallel(n, return_as="generator_unordered", batch_size=1, pre_dispatch=n)
            for number, made in parallel(calls(list(numbers))):
                (suspects if number in suspects else waiting).remove(number)
                yield items[number], made
        except BrokenProcessPool as error:
            if suspects:
                raise _died(items[suspects[0]]) from error
            suspects = [number for number in begun if number in waiting]
            waiting = [number for number in waiting if number not in suspects]


def _result(results: Iterator[Made], item: Item) -> Made:
    """What a piece that was begun has made."""
    try:
        return next(results)
    except BrokenProcessPool as error:
        raise ChildProcessError(f"{item}: its worker died, for want of memory or by a fault of its own") from error


def _died(item: Any) -> ChildProcessError:
    return ChildProcessError(f"{item}: {MOST_STARTS} workers died of it, for want of memory or by a fault of their own")


# ---------------------------------------------------------------------- on a cluster


def _on_cluster(scheduler: str, call: _Call[Item, Made], items: Sequence[Item]) -> Pieces[Item, Made]:
    """Do the pieces on a Dask cluster, which gives those of a dead worker to another one."""
    distributed, client = _connected(scheduler)
    run, starts = uuid.uuid4().hex[:8], Counter[int]()
    try:
        client.subscribe_topic(run, lambda event: starts.update([event[1]]))
        # a task and not scattered, so that it is made again where every worker that holds it has died
        pickled = client.submit(bytes, call.pickled, key=f"work-{run}")
        light: _Call[Item, Made] = _Call(call.key, call.folder, call.device, b"")
        futures = {
            client.submit(_announced, light, pickled, run, number, item, key=f"{item}-{run}-{number}"): number
            for number, item in enumerate(items)
        }
        while futures:
            time.sleep(LOOK_SECONDS)
            for future in [one for one in futures if one.done()]:
                number = futures.pop(future)
                try:
                    made = future.result()
                except distributed.KilledWorker as error:
                    raise _died(items[number]) from error
                except CancelledError as error:
                    raise ConnectionError(f"the scheduler at {scheduler} is gone; what was finished is kept") from error
                yield items[number], made
            for number in futures.values():
                if starts[number] > MOST_STARTS:
                    raise _died(items[number])
    finally:
        client.close()


def _announced(call: _Call[Item, Made], pickled: bytes, run: str, number: int, item: Item) -> Made:
    """Do one piece in a worker of Dask, and tell so before, since a worker that dies tells nothing."""
    import distributed

    distributed.get_worker().log_event(run, number)
    whole: _Call[Item, Made] = _Call(call.key, call.folder, call.device, pickled)
    return whole(item)


def _connected(scheduler: str) -> tuple[Any, Any]:
    """
    The package ``distributed`` and a client.

    :raises ValueError: without the extra ``scale``, or when no scheduler answers
    """
    try:
        import distributed
    except ImportError as error:
        raise ValueError(f"a Dask cluster needs the scale extra: pip install 'rrpolicy[scale]' ({error})") from error
    try:
        return distributed, distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler}: {error}") from error
