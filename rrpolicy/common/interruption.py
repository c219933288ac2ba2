"""Ctrl-C, SIGTERM and SIGHUP: raised so that they arrive, or put off to the end of a gradient step, so that what was
learned can be saved first. A signal that the process was started to ignore stays ignored."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

NUMBERS: list[int] = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
_AGAIN_SECONDS = 0.02  # long enough to leave the callback in which a signal was lost


def stop_line(number: int) -> str:
    """What the program says when a signal has stopped it."""
    return f"rrpolicy: stopped by {signal.Signals(number).name}; what was finished is kept"


class Interrupted(KeyboardInterrupt):
    """A signal arrived that asks the program to stop."""

    def __init__(self, what: str, signal_number: int) -> None:
        super().__init__(f"{what} by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class TrainingInterrupted(Interrupted):
    """A signal arrived; the checkpoint, if one was asked for, has been written."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("training interrupted", signal_number)


class Stopped(Interrupted):
    """
    A signal arrived in the middle of something.

    Python drops what is raised while it runs a callback of its own, such as that of a weak reference, and so do
    libraries with a bare ``except``; then the exception is destroyed before anybody has seen it.

    :param lost: called when it is destroyed
    """

    def __init__(self, signal_number: int, lost: Callable[[int], None]) -> None:
        super().__init__("stopped", signal_number)
        self._lost = lost

    def __del__(self) -> None:
        self._lost(self.signal_number)


@contextmanager
def raised_signals() -> Iterator[list[int]]:
    """
    Raise :class:`Stopped` when a signal arrives, and again if it did not get through (main thread only).

    :return: the signals received so far
    """
    received: list[int] = []
    lock, over = threading.Lock(), threading.Event()

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        raise Stopped(number, lost)

    def lost(number: int) -> None:
        if not over.is_set():
            with suppress(RuntimeError):  # no thread can be started any more: the process ends
                _thread.start_new_thread(repeat, (number,))

    def repeat(number: int) -> None:
        time.sleep(_AGAIN_SECONDS)
        with lock:
            if not over.is_set():
                _send_to_main_thread(number)

    with handled(handle), _unraisable_stops_are_silent():
        try:
            yield received
        finally:
            with lock:
                over.set()


@contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect signals instead of dying in the middle of a step (main thread only)."""
    received: list[int] = []
    with handled(lambda number, frame: received.append(number)):
        yield received


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Have a function called for the signals that are not ignored; elsewhere than in the main thread nothing is."""
    previous: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not set by Python
                    previous[number] = signal.getsignal(number)
                    signal.signal(number, handler)
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def _unraisable_stops_are_silent() -> Iterator[None]:
    """Python reports on stderr what it drops; these are raised again."""
    previous = sys.unraisablehook

    def report(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            previous(unraisable)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = previous


def _send_to_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)
