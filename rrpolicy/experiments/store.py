"""The artifact store: an archive is loaded if it is there, and made by one process, once, if it is not.

A file's name holds a digest of the numbers and of the code's commit that it was made with, so variants share what they
have in common, what a killed run has finished is found again, and other code makes its own; the archive's card holds
the commit and the CPU-seconds that it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rrpolicy.common.archive import read_archive
from rrpolicy.common.learner import Learner
from rrpolicy.common.locks import file_lock
from rrpolicy.common.version import __version__
from rrpolicy.experiments.recipes import Recipe


class Keepable(Protocol):
    """An object that can be saved as one archive."""

    def save(self, path: str | Path, *, card: Mapping[str, Any] | None = None) -> None: ...


Kept = TypeVar("Kept", bound=Keepable)


COMMIT_VARIABLE = "RRPOLICY_COMMIT"
PACKAGE = Path(__file__).resolve().parents[1]


def code_commit() -> str:
    """
    The version of this code: the git commit of a checkout, with ``+`` when the package has been changed since, else the
    version of the wheel. ``$RRPOLICY_COMMIT`` overrides it, to use what another commit made.
    """
    return os.environ.get(COMMIT_VARIABLE) or _commit_of(PACKAGE)


@cache
def _commit_of(package: Path) -> str:
    try:
        if Path(_git(package, "rev-parse", "--show-toplevel")).resolve() != package.parent:
            return __version__
        changed = _git(package, "status", "--porcelain", "--", str(package))
        return _git(package, "rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return __version__


def _git(folder: Path, *arguments: str) -> str:
    given = ["git", "-C", str(folder), *arguments]
    return subprocess.run(given, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def digest(values: Any) -> str:
    """Eight hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@dataclass
class ArtifactStore:
    """
    Archives of what an experiment trains, each made once and found again by the numbers it was made with.

    :param folder: of the archives
    :param recipe: every number, a variant's changes included
    """

    folder: Path
    recipe: Recipe

    def path(self, place: str, name: str, sections: Iterable[str], *made_with: Any) -> Path:
        """
        Where an archive lies.

        :param place: sub-folder, such as a unit's name
        :param name: of the archive, without its digest
        :param sections: of the recipe that it depends on
        :param made_with: everything else that it depends on, such as JSON can hold
        """
        values = [{part: self.recipe.get(part) for part in sections}, *made_with, code_commit()]
        return self.folder / place / f"{name}-{digest(values)}.zip"


def create_once(path: Path, make: Callable[[Path], None]) -> Path:
    """
    Write a file unless it is there; one process does, others wait for it.

    :param make: writes the file
    :return: the path
    """
    if not path.exists():
        with file_lock(path.with_suffix(".lock")):
            if not path.exists():
                make(path)
    return path


def load_or_create(path: Path, make: Callable[[], Kept], load: Callable[[Path], Kept]) -> tuple[Kept, float]:
    """
    An archive and the CPU-seconds that it took to make, here or elsewhere.

    It is loaded even by the process that has made it, so a resumed run gives the same results.
    """
    create_once(path, lambda path: _save(path, make))
    return load(path), float(read_archive(path).card["cpu_seconds"])


def _save(path: Path, make: Callable[[], Keepable]) -> None:
    started = time.process_time()
    made = make()
    card = {"cpu_seconds": time.process_time() - started, "commit": code_commit()}
    if isinstance(made, Learner):
        made.save(path, resumable=False, card=card)  # for use, without what only training needs
    else:
        made.save(path, card=card)
