"""What a loader did beside reading its file: paths opened, modules looked for, programs and connections, memory, time.

Python says most of it itself, through audit hooks; what a C library opens is seen by inotify, in the folder that no
file may lead to. Both are switched on in a child process that ends after its cases, since an audit hook stays.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import inspect
import os
import struct
import sys
import sysconfig
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FORBIDDEN = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "pty.spawn",
    "socket.",
    "urllib.",
    "http.client",
    "ftplib.",
    "smtplib.",
    "pickle.find_class",
    "ctypes.dlopen",
    "webbrowser.",
    "os.kill",
    "exec",
)
_CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.",
)
_IN_EVENTS = 0x001 | 0x002 | 0x020 | 0x100 | 0x040  # read, written, opened, made, moved
_LIBRARY_EXEC = {module.__file__ for module in (collections, dataclasses, inspect, typing)}  # of annotations
_IN_ISDIR = 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Measured:
    """One call, observed."""

    faults: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    memory: int = 0  # bytes by which the peak lay above what was there before


class Guard:
    """
    An observer of this process.

    :param folders: what may be read and written
    :param forbidden: watched by inotify, whoever opens something in it
    """

    def __init__(self, folders: Sequence[Path], forbidden: Path) -> None:
        library = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *sys.path]
        self._writable = tuple(map(str, folders))
        self._readable = (
            *self._writable,
            "/proc/",
            "/dev/null",
            "/dev/urandom",
            "/sys/",
            *(path for path in library if path and path != str(forbidden)),
        )
        self._forbidden = str(forbidden)
        self._faults: list[str] = []
        self._active = False
        self._inotify = _watch(forbidden)
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[Measured]:
        """Observe what is done within; it is to be read afterwards."""
        result, before = Measured(), _reset_peak()
        self._drain()
        self._faults = []
        started, modules = time.process_time(), len(sys.modules)
        self._active = True
        try:
            yield result
        finally:
            self._active = False
            result.cpu_seconds = time.process_time() - started
            result.memory = max(_status("VmHWM") - before, 0)
            found = set(self._faults + self._drain())
            if len(sys.modules) > modules and not any(fault.startswith("import") for fault in found):
                found.add(f"import of {len(sys.modules) - modules} modules")
            result.faults = sorted(found, key=lambda fault: (not fault.startswith("import"), fault))  # exec comes of it

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            self._opened(arguments)
        elif event == "import":
            self._faults.append(f"import of {arguments[0]}")
        elif event.startswith(_FORBIDDEN):
            if event != "exec" or sys._getframe(1).f_code.co_filename not in _LIBRARY_EXEC:
                self._faults.append(f"{event} {arguments!r:.80}")
        elif event.startswith(_CHANGES) and not str(arguments[0]).startswith(self._writable):
            self._faults.append(f"{event} {arguments!r:.120}")

    def _opened(self, arguments: tuple[Any, ...]) -> None:
        path, mode, flags = arguments
        if not isinstance(path, str | bytes):
            return
        place = os.path.abspath(os.fsdecode(path))
        writing = bool((flags or 0) & _WRITING) or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))
        if writing and place != "/dev/null" and not place.startswith(self._writable):
            self._faults.append(f"{place} was opened for writing")
        elif place.startswith(self._forbidden) or not place.startswith(self._readable):
            self._faults.append(f"{place} was opened")

    def _drain(self) -> list[str]:
        """Names of what was touched in the forbidden folder."""
        try:
            data = os.read(self._inotify, 65_536) if self._inotify >= 0 else b""
        except BlockingIOError:
            return []
        faults = []
        while data:
            _, mask, _, size = struct.unpack_from("iIII", data)
            name, data = data[16 : 16 + size].rstrip(b"\0").decode(), data[16 + size :]
            if not mask & _IN_ISDIR:  # Python lists the folder when it looks for modules
                faults.append(f"outside/{name} was opened")
        return faults


def _watch(folder: Path) -> int:
    """A descriptor of inotify; -1 where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):
        return -1
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_EVENTS)
    return descriptor


def _status(name: str) -> int:
    """A line of /proc/self/status in bytes; 0 where there is none."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
    except (OSError, StopIteration):
        return 0


def virtual_size() -> int:
    """Bytes of address space."""
    return _status("VmSize")


def _reset_peak() -> int:
    """Make the peak of memory what is used now, and say how much that is."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        pass
    return _status("VmHWM")
