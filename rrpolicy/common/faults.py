"""What is wrong with a file that was given: one line that names the file, and only regular files are opened at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rrpolicy.common.messages import LONGEST, at, printable


class FileFault(ValueError):
    """
    A fault of a file or folder that came from elsewhere.

    :param place: the file or folder
    :param words: what is wrong, cut and made printable as `common.messages.at` does
    """

    def __init__(self, place: str | os.PathLike[str], words: object) -> None:
        super().__init__(at(place, words))
        self.words = printable(words, LONGEST)


def regular_size(path: Path) -> int:
    """
    The size of a regular file in bytes. Pipes, devices and sockets, which could block or never end, are refused.

    :raises FileNotFoundError: when there is no such file
    :raises FileFault: when it is no regular file or cannot be looked at
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise FileFault(path, f"cannot be looked at: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FileFault(path, "is not a regular file")
    return found.st_size
