"""Files that appear whole or not at all: written beside their target, then renamed over it in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rrpolicy.common.folders import begin, finish, make_folder, remove_empty, remove_leftovers


@contextmanager
def atomic_write(target: str | Path) -> Iterator[Path]:
    """
    A path beside ``target`` to write to; it takes the target's name if all goes well and vanishes otherwise, Ctrl-C
    included. Missing parent folders are made. Any number of threads and processes may write the same target.

    :param target: a file; where it is a symbolic link, the file that it leads to is replaced and the link stays
    :raises OSError: when it cannot be written, naming the target
    """
    target = Path(target)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    made = make_folder(target.parent)
    try:
        remove_leftovers(target.parent)
        unfinished, descriptor = begin(target)
        try:
            with naming(target, unfinished):
                yield unfinished
                with open(unfinished, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(unfinished, target)
        finally:
            finish(descriptor)
            with suppress(FileNotFoundError):
                unfinished.unlink()
    finally:
        remove_empty(made)


@contextmanager
def naming(target: str | Path, written: Path) -> Iterator[None]:
    """
    Name a file in whatever goes wrong while it is being written.

    :param written: the file, or a file or folder in its place for the time being
    :raises OSError: the same one, which names the target if it named nothing or ``written``
    """
    try:
        yield
    except OSError as error:
        other = error.filename is not None and not Path(str(error.filename)).is_relative_to(written)
        if error.errno is None or other:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file in one step."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: Any) -> None:
    """
    Replace a JSON file in one step.

    :raises ValueError: for NaN or infinity, which JSON does not have
    """
    write_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
