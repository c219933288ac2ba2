"""Ctrl-C and SIGTERM, put off to the end of a gradient step, so that what was learned can be saved first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; the checkpoint, if one was asked for, has been written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"training interrupted by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying in the middle of a step (main thread only)."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda n, _: received.append(n)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
