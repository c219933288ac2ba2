"""CSV files, read as a whole or refused with one line that names the file."""

from __future__ import annotations

import csv
import io
import os

from rrpolicy.common.faults import FileFault
from rrpolicy.common.schema import read_small

MAX_BYTES = 2**23
_MAX_CELL = 2**16
_MOST = 2**19  # lines and cells, since a short one takes some hundred bytes in memory


def read_table(path: str | os.PathLike[str], delimiter: str = ",") -> list[list[str]]:
    """
    The lines of a CSV file, the heading first; lines may differ in length.

    :param path: UTF-8, with a byte order mark or without
    :param delimiter: between cells
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that is no text, too large, or damaged, naming it
    """
    try:
        lines, n_cells = [], 0
        with io.TextIOWrapper(io.BytesIO(read_small(path, MAX_BYTES)), encoding="utf-8-sig", newline="") as text:
            for line in csv.reader(text, delimiter=delimiter):
                lines.append(line)
                n_cells += len(line)
                if max(len(lines), n_cells) > _MOST:
                    raise ValueError(f"it has more than {_MOST} lines or cells")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise FileFault(path, f"is no table that can be read: {error}") from error
    if any(len(cell) > _MAX_CELL for line in lines for cell in line):
        raise FileFault(path, f"has a cell of more than {_MAX_CELL} characters")
    return lines
