"""Folders that files are written to: held by one run at a time, with room enough, and free of what dead processes left.

What is being written has a hidden name and is locked, so what a process left when it was killed is known from what
another one is still writing.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rrpolicy.common.locks import LOCKS, lock, lock_where_possible
from rrpolicy.common.processes import current

UNFINISHED = re.compile(r"\..*unfinished-\d+-\d+(\.[^.]*)?")  # hidden names
MARGIN = 2**20  # bytes of a file system that are left alone
_COUNTER = itertools.count()
CACHE_VARIABLE = "RRPOLICY_CACHE"  # folder of what can be made again; default: ~/.cache/rrpolicy
_STEM_LENGTH = 40  # of the target's name: names of files are limited to 255 bytes


def cache_folder() -> Path:
    """Where compiled planners and downloaded packages are kept; it may not be there yet."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "rrpolicy"


@contextmanager
def sole_use(folder: str | Path) -> Iterator[None]:
    """
    Hold a folder for one run, so that a second one cannot write between its files. What dead processes have left
    unfinished there is removed. Of several processes that do the same the first holds it for all.

    :param folder: made where missing, and removed again when nothing was written to it
    :raises ValueError: when another run holds it
    """
    if not current().is_main:
        yield
        return
    made = make_folder(Path(folder))
    descriptor = os.open(folder, os.O_RDONLY) if LOCKS else None
    try:
        if descriptor is not None and not lock_where_possible(descriptor, wait=False):
            raise ValueError(f"{folder} is in use by another run: wait for its end, or choose another folder")
        remove_leftovers(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        remove_empty(made)


@contextmanager
def scratch_folder(parent: str | Path) -> Iterator[Path]:
    """
    An empty folder in ``parent``, which is made where missing, for files that are to be moved to their places together.
    It is removed in the end; if the process is killed, by the next one that writes into ``parent``.
    """
    parent = Path(parent).resolve()
    made = make_folder(parent)
    try:
        remove_leftovers(parent)
        folder, descriptor = begin(parent / "scratch", folder=True)
        try:
            yield folder
        finally:
            finish(descriptor)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        remove_empty(made)


def check_space(folder: str | Path, n_bytes: int, instead_of: Iterable[str] = ()) -> None:
    """
    Compare what will be written with the room there is, before work that would be lost without it.

    :param folder: need not be there yet
    :param n_bytes: that will be written
    :param instead_of: names of files in the folder that will be removed first
    :raises OSError: naming the folder
    """
    folder = Path(folder).absolute()
    place = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(place).free
    free += sum((folder / name).stat().st_size for name in instead_of if (folder / name).is_file())
    if free < n_bytes + MARGIN:
        raise OSError(errno.ENOSPC, f"{free} bytes are free, wanted {n_bytes + MARGIN}", str(folder))


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were missing, innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, innermost first, that hold nothing."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


# ---------------------------------------------------------------------- what is unfinished


def begin(target: Path, folder: bool = False) -> tuple[Path, int | None]:
    """
    Make an empty file beside a target, under a hidden name of its own, and lock it where that is possible.

    :param target: its suffix is kept, since it tells libraries the format
    :param folder: make a folder instead
    :return: the path, and what keeps it locked until :func:`finish`
    :raises OSError: when it cannot be made, naming the target
    """
    while True:
        name = f".{target.stem[:_STEM_LENGTH]}.unfinished-{os.getpid()}-{next(_COUNTER)}{target.suffix}"
        path = target.with_name(name)
        try:
            if folder:
                path.mkdir()
            else:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            descriptor = os.open(path, os.O_RDONLY) if LOCKS else None  # Windows does not rename what is open
        except (FileExistsError, FileNotFoundError):
            if target.parent.is_dir():
                continue  # the same number is a process elsewhere; or taken for a leftover before it was locked
            raise
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), str(target)) from error
        if descriptor is None or (lock_where_possible(descriptor) and path.exists()):
            return path, descriptor
        os.close(descriptor)


def finish(descriptor: int | None) -> None:
    """Unlock what :func:`begin` has made."""
    if descriptor is not None:
        os.close(descriptor)


def remove_leftovers(folder: str | Path) -> None:
    """Remove from a folder what was being written there by processes that are dead now."""
    if not LOCKS:  # nothing tells the dead from the living
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for path in [Path(entry.path) for entry in entries if UNFINISHED.fullmatch(entry.name)]:
            _remove_if_free(path)


def _remove_if_free(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if not lock(descriptor, wait=False):
                return
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(descriptor)
