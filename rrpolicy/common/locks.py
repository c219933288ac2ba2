"""Locks on files, so that two processes do not make the same thing; a lock ends with its process, however that dies.

They are the system's file locks. Where there are none every lock is granted; files appear as a whole nevertheless.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCKS = fcntl is not None
"""Whether this system has file locks."""


@contextmanager
def file_lock(path: str | Path, wait: bool = True) -> Iterator[bool]:
    """
    Hold a lock file, which is made if missing and stays.

    :param path: of the lock file
    :param wait: until whoever holds it lets go; otherwise do without
    :return: whether it is held now
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield lock_where_possible(descriptor, wait)
    finally:
        os.close(descriptor)


def lock(descriptor: int, wait: bool = True) -> bool:
    """Lock an open file or folder until it is closed; returns whether that was possible."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def lock_where_possible(descriptor: int, wait: bool = True) -> bool:
    """As :func:`lock`; granted on network file systems that refuse such locks."""
    try:
        return lock(descriptor, wait)
    except OSError:
        return True
