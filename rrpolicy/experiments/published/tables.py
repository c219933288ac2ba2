"""Tables made from rows: a specification of rows and columns stands in the page, above the table that it makes.

``head:`` names the first columns, ``row: LABEL = CONDITIONS`` and ``column: HEADING = KEY`` follow, a line each. A key
of a cell is the specification's own words, those of its row and those of its column; keys joined with ``&`` stand side
by side. Options of a key: ``digits``, ``style=bare`` (no zero before the point), ``show`` (value, interval, hits or
seeds), ``mark`` (bold or italic), ``miss`` (bold where the value is, e.g., ``<.8``) and ``wrap`` (such as ``()``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rrpolicy.experiments.published.keys import Figure, figure, like
from rrpolicy.experiments.published.rows import Rows
from rrpolicy.experiments.report import NOTHING, markdown, seeds_text
from rrpolicy.experiments.tuning_log import Tuning

OPTIONS = {"digits": "3", "style": "", "show": "interval", "mark": "", "miss": "", "wrap": ""}
SHOWN = ("value", "interval", "hits", "seeds")


@dataclass
class Specification:
    """
    A table before its numbers.

    :param common: words that every key begins with
    :param head: headings of the labels' columns
    :param rows: label cells and words of each row
    :param columns: heading and keys of each column
    """

    common: list[str]
    head: list[str] = field(default_factory=list)
    rows: list[tuple[list[str], list[str]]] = field(default_factory=list)
    columns: list[tuple[str, str]] = field(default_factory=list)


def specification(text: str) -> Specification:
    """
    Read a specification.

    :param text: what stands between ``<!-- table:`` and ``-->``
    :raises ValueError: for a line that is none of those known
    """
    first, *lines = text.strip().splitlines()
    spec = Specification(shlex.split(first))
    for line in lines:
        kind, _, rest = line.strip().partition(":")
        label, _, words = (part.strip() for part in rest.partition(" = "))
        if kind == "head":
            spec.head = [cell.strip() for cell in rest.split("|")]
        elif kind == "row":
            spec.rows.append(([cell.strip() for cell in label.split("|")], shlex.split(words)))
        elif kind == "column":
            spec.columns.append((label, words))
        else:
            raise ValueError(f"a line of a table begins with head:, row: or column:, got {line.strip()!r}")
    if not (spec.head and spec.rows and spec.columns):
        raise ValueError("a table needs head:, row: and column: lines")
    return spec


def table(text: str, rows: Rows) -> str:
    """
    The Markdown of a table.

    :param text: its specification
    :param rows: where its numbers are
    :raises ValueError: for a specification or key that cannot be followed; a cell without rows is no fault
    """
    spec = specification(text)
    lines = [
        [*labels, *(_cell(keys, [*spec.common, *words], rows) for _, keys in spec.columns)]
        for labels, words in spec.rows
    ]
    return markdown([*spec.head, *(heading for heading, _ in spec.columns)], lines)


def _cell(keys: str, common: Sequence[str], rows: Rows) -> str:
    return " ".join(_part(key.strip(), common, rows) for key in keys.split("&"))


def _part(key: str, common: Sequence[str], rows: Rows) -> str:
    shared, options = _split(common)
    words, own = _split(shlex.split(key))
    options = {**OPTIONS, **options, **own}
    try:
        found = figure(shlex.join(words), rows, shared)
    except ValueError as error:
        if str(error).startswith("no row of"):
            return NOTHING
        raise
    text = seeds_of(found.seeds, rows.log.get(shared[0])) if options["show"] == "seeds" else _text(found, options)
    before, after = options["wrap"][:1], options["wrap"][1:]
    return before + _marked(text, found, options) + after


def _split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words of a key, and its options."""
    options = dict(word.split("=", 1) for word in words if word.partition("=")[0] in OPTIONS and "=" in word)
    return [word for word in words if word.partition("=")[0] not in OPTIONS], options


def _text(found: Figure, options: Mapping[str, str]) -> str:
    show, numbers = options["show"], found.numbers
    if show not in SHOWN:
        raise ValueError(f"show must be one of {', '.join(SHOWN)}, got {show!r}")
    if show == "hits":
        return f"{numbers[0]:.0f}/{numbers[1]:.0f}"
    digits = int(options["digits"])
    template = ("" if options["style"] == "bare" else "0") + ("." + "0" * digits if digits else "")
    value, *interval = (like(template or "0", number) for number in numbers)
    return value if show == "value" or len(interval) < 2 else f"{value} [{', '.join(interval[:2])}]"


def seeds_of(seeds: Sequence[int], tuning: Tuning | None) -> str:
    """``4–6``, or ``1–3, seen while tuning``."""
    seen = tuning is not None and {tuning.role(seed) for seed in seeds} == {"seen"}
    return seeds_text(seeds) + (", seen while tuning" if seen else "")


def _marked(text: str, found: Figure, options: Mapping[str, str]) -> str:
    miss = options["miss"]
    missed = miss and (found.numbers[0] < float(miss[1:]) if miss[0] == "<" else found.numbers[0] > float(miss[1:]))
    mark = {"bold": "**", "italic": "*"}.get("bold" if missed else options["mark"], "")
    return f"{mark}{text}{mark}"
