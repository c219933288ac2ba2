"""Two processes that learn together, as threads of one: what they exchange goes through memory."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from rrpolicy.common.processes import Processes

SECONDS = 60.0  # after which a thread that waits for the other one gives up


@dataclass(frozen=True)
class Together(Processes):
    """
    One of some threads.

    :param barrier: at which they meet
    :param slots: what each has brought
    """

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    slots: list[Any] = field(default_factory=lambda: [None])

    def _brought(self, values: Tensor) -> list[Tensor]:
        self.slots[self.rank] = values.detach().clone()
        self.barrier.wait(SECONDS)
        found = list(self.slots)
        self.barrier.wait(SECONDS)
        return found

    def gathered(self, rows: Tensor) -> Tensor:
        return torch.cat(self._brought(rows))

    def total(self, values: Tensor) -> Tensor:
        return torch.stack(self._brought(values)).sum(dim=0)


def run_together(work: Callable[[int], Any], patch: pytest.MonkeyPatch, n: int = 2) -> list[Any]:
    """
    Do something in ``n`` threads at once.

    :param work: called with the number of its thread
    :return: what each has made
    """
    barrier, slots, local = threading.Barrier(n), [None] * n, threading.local()
    made: list[Any] = [None] * n
    patch.setattr("rrpolicy.common.learner.current", lambda: getattr(local, "one", Processes()))

    def one(rank: int) -> None:
        local.one = Together(rank, n, "cpu", barrier, slots)
        try:
            made[rank] = work(rank)
        except BaseException as error:
            made[rank] = error
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults := [value for value in made if isinstance(value, BaseException)]:
        raise next((one for one in faults if not isinstance(one, threading.BrokenBarrierError)), faults[0])
    return made
