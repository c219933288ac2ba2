"""Messages about files of strangers: one line, printable, short, and always with the file's name.

What stands in a file never reaches a terminal as it is: control characters and megabytes of text are left out.
"""

from __future__ import annotations

import os
import reprlib

LONGEST = 300  # characters of a message; a long path may add to it
_SHORTEST_FAULT = 100  # characters that are left for the fault behind a long path
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple = 2, 3, 4, 4
_REPR.maxstring, _REPR.maxlong, _REPR.maxother = 60, 30, 80


class RrpolicyWarning(UserWarning):
    """Something that a user should know of the data, models or agents given; the program shows it as one line."""


def printable(value: object, limit: int = 120) -> str:
    """
    A value as one line of printable text.

    :param value: text and exceptions are taken as they are, anything else by a shortened ``repr``
    :param limit: largest number of characters; what is longer is cut and ends with ``...``
    """
    if isinstance(value, BaseException):
        value = str(value) or type(value).__name__
    text = value if isinstance(value, str) else _REPR.repr(value)
    cut = len(text) > 4 * limit
    line = " ".join(text[: 4 * limit].split())
    line = shown(line)
    return line if len(line) <= limit and not cut else f"{line[: limit - 3]}..."


def shown(line: str) -> str:
    """A line in which nothing controls the terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def at(path: str | os.PathLike[str], fault: object) -> str:
    """
    The message that a file is at fault: its path, a colon and the fault.

    :param path: the file or folder
    :param fault: what is wrong with it, text or an exception
    """
    name = printable(os.fspath(path), 4096)
    return f"{name}: {printable(fault, max(LONGEST - len(name) - 2, _SHORTEST_FAULT))}"


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
