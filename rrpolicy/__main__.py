"""``python -m rrpolicy`` is the program ``rrpolicy``, which can be stopped from its first moment on."""

import os
import signal
import threading
from importlib import import_module
from typing import Any, NoReturn

from rrpolicy.common.interruption import NUMBERS, stop_line


def main() -> None:
    """
    Run the program and exit. Nothing has been begun while it is being loaded, so a signal ends it then and there; once
    a command runs, signals are raised in it, and when it is done they come too late.
    """
    threading.excepthook = _report
    heeded = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, _leave)
    try:
        import_module("rrpolicy.cli").main()  # imports torch, which takes seconds
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)


def _report(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, whose fault is raised again, and told, where its log is used next."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def _leave(number: int, frame: Any) -> NoReturn:
    os.write(2, f"{stop_line(number)}\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    main()
