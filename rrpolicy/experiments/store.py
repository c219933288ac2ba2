"""What a run trains is made once and kept: an archive is loaded if it is there, and made by one process if it is not.

A file's name holds a digest of the numbers it was made with, so variants share what they have in common, and what a
killed run has finished is found again; the archive's card tells the CPU-seconds that it took.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rrpolicy.common.archive import read_archive
from rrpolicy.common.learner import Learner
from rrpolicy.common.locks import file_lock


class Keepable(Protocol):
    """What writes itself as one archive."""

    def save(self, path: str | Path, *, card: Mapping[str, Any] | None = None) -> None: ...


Kept = TypeVar("Kept", bound=Keepable)


def digest(values: Any) -> str:
    """Eight hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def load_or_create(path: Path, make: Callable[[], Kept], load: Callable[[Path], Kept]) -> tuple[Kept, float]:
    """
    An archive and the CPU-seconds that it took to make, here or elsewhere.

    It is loaded even by whoever has made it: a resumed run sees the same as another.
    """
    if not path.exists():
        with file_lock(_lock_of(path)):
            if not path.exists():
                _make(path, make)
    return load(path), float(read_archive(path).card["cpu_seconds"])


def being_made(path: Path) -> bool:
    """Whether another process is at it."""
    if path.exists():
        return False
    with file_lock(_lock_of(path), wait=False) as free:
        return not free


def _make(path: Path, make: Callable[[], Keepable]) -> None:
    started = time.process_time()
    made = make()
    card = {"cpu_seconds": time.process_time() - started}
    if isinstance(made, Learner):
        made.save(path, resumable=False, card=card)  # for use, without what only training needs
    else:
        made.save(path, card=card)


def _lock_of(path: Path) -> Path:
    return path.with_suffix(".lock")
