"""Folders to prepare files in, inside the folder that they are for. Each carries the number of its process, so that
what a killed process left is removed by the next one that writes there."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_MARGIN = 2**20  # bytes of a file system that are left alone


@contextmanager
def scratch_folder(target: Path, prefix: str) -> Iterator[Path]:
    """
    A new folder inside ``target``, which vanishes with everything that is still in it.

    :param target: is there; folders of this prefix in it whose processes are dead are removed first
    :param prefix: such as ``".collect-"``
    """
    remove_leftovers(target, prefix)
    with tempfile.TemporaryDirectory(
        dir=target.resolve(), prefix=f"{prefix}{os.getpid()}-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


def remove_leftovers(target: Path, prefix: str) -> None:
    """Remove the scratch folders of dead processes."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,9})-\w+")
    for path in target.iterdir():
        match = pattern.fullmatch(path.name)
        if match and path.is_dir() and not path.is_symlink() and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def check_space(folder: Path, n_bytes: int, instead_of: Iterable[str] = ()) -> None:
    """
    Compare what will be written with the room there is.

    :param folder: is there
    :param n_bytes: that will be written
    :param instead_of: names of files in the folder that will be removed first
    :raises OSError: naming the folder
    """
    free = shutil.disk_usage(folder).free
    free += sum((folder / name).stat().st_size for name in instead_of if (folder / name).is_file())
    if free < n_bytes + _MARGIN:
        raise OSError(errno.ENOSPC, f"{free} bytes are free, wanted {n_bytes + _MARGIN}", str(folder))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there and belongs to somebody else
        return True
    return True
