"""Labels of pictures from a table, such as any classifier's output, in place of sub-folders."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rrpolicy.common.faults import FileFault
from rrpolicy.common.messages import printable
from rrpolicy.common.tables import read_table
from rrpolicy.images.folders import Picture, path_text

DELIMITERS = (",", ";", "\t")
PATHS = ("path", "filename", "file", "name")  # columns that name a picture, the first that there is
NAMED = 3  # of what does not fit, that are named


class Labelled(NamedTuple):
    """Pictures with the labels of a table, None where it has none, and what of both does not fit."""

    pictures: list[Picture]
    told: str


def read_labels(path: Path, folder: Path, pictures: list[Picture]) -> Labelled:
    """
    Give pictures the labels of a table, and no others.

    A row is a picture's when it has its path below ``folder``, or the path as it is found; else its file name, where
    one picture alone has that.

    :param path: CSV or TSV with the columns ``path`` or ``filename`` and ``label``; other columns are not used
    :param folder: in which the pictures were found
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that is no such table, two labels of one picture, or when no row fits any picture
    """
    first = path.open("rb").readline(2**16).decode(errors="replace") if path.is_file() else ""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=first.count)
    heading, *lines = read_table(path, delimiter) or [[]]
    columns = [name.strip().lower() for name in heading]
    key = next((name for name in PATHS if name in columns), None)
    if key is None or "label" not in columns:
        there = printable(", ".join(heading), 100)
        raise FileFault(path, f"wanted the columns path (or filename) and label, there are: {there or 'none'}")
    at, label_at = columns.index(key), columns.index("label")
    by_path = {name: i for i, one in enumerate(pictures) for name in _names(one.path, folder)}
    counts = Counter(one.path.name for one in pictures)
    by_name = {one.path.name: i for i, one in enumerate(pictures) if counts[one.path.name] == 1}
    labels: dict[int, str] = {}
    strangers, named = [], set()
    for line in lines:
        if len(line) <= max(at, label_at) or not (label := line[label_at].strip()):
            continue
        given = os.path.normpath(line[at].strip().replace("\\", "/"))
        found, name = by_path.get(given), given.rpartition("/")[2]
        if found is None and name in by_name:
            found = by_name[name]
            named.add(found)
        if found is None:
            strangers.append(line[at])
        elif labels.setdefault(found, label) != label:
            twice = printable(path_text(pictures[found].path), 100)
            raise FileFault(path, f"has two labels of {twice}: {printable([labels[found], label], 60)}")
    if not labels:
        raise FileFault(path, f"labels none of the {len(pictures)} pictures, such as {path_text(pictures[0].path)}")
    without = [path_text(one.path) for i, one in enumerate(pictures) if i not in labels]
    by_names = f", {len(named):,} of them by file name alone" if named else ""
    told = [f"{len(labels):,} pictures labelled by {path_text(path)}{by_names}"]
    told += [
        f"{len(some):,} {what}: {_some(some)}"
        for what, some in (("pictures without a row", without), ("rows without a picture", strangers))
        if some
    ]
    return Labelled([Picture(one.path, labels.get(i)) for i, one in enumerate(pictures)], "; ".join(told))


def _names(path: Path, folder: Path) -> set[str]:
    below = {path.relative_to(folder).as_posix()} if path.is_relative_to(folder) else set()
    return below | {os.path.normpath(path)}


def _some(names: list[str]) -> str:
    return printable(", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else ""), 150)
