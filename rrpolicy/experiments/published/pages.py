"""Pages with numbers: each number with a decimal point, and each fraction, has a key or is listed as having no row.

Below a paragraph or a table stands ``<!-- numbers: COMMON WORDS`` with a line ``TEXT = KEY`` for each of its numbers,
in their order, and ``-->``. A table between ``<!-- table: ... -->`` and ``<!-- end -->`` is made by its specification.
Code, links, dates and comments are not looked at.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import write_text
from rrpolicy.experiments.published.keys import figure, rendered
from rrpolicy.experiments.published.rows import Rows
from rrpolicy.experiments.published.tables import table

MARK = re.compile(r"<!-- (numbers|table):(.*?)-->\n?", re.S)
END = "<!-- end -->"
HIDDEN = re.compile(
    r"```.*?```|`[^`]*`|<!--.*?-->|\]\([^)\s]*\)|https?://\S+|\$[^$\n]+\$|\d{4}-\d\d-\d\d|arXiv[: ]\d+\.\d+", re.S
)
TOKEN = re.compile(r"(?<![\w.,/−+-])[−+-]?(?:\d+\.\d+|\.\d+|\d+/\d+)(?![\w/]|\.\d)")
LISTED = "numbers_without_rows.toml"


@dataclass
class Page:
    """
    A page, compared with the rows.

    :param name: relative to the root
    :param text: as it stands, or as it should stand
    :param faults: what does not agree, a line each
    :param keyed: how many numbers have rows, those of tables included
    :param unkeyed: numbers that have no key, in their order
    """

    name: str
    text: str
    faults: list[str] = field(default_factory=list)
    keyed: int = 0
    unkeyed: list[str] = field(default_factory=list)


def compare(name: str, text: str, rows: Rows) -> Page:
    """
    Compare a page with the rows.

    :param name: of the page
    :param text: Markdown
    :param rows: where its numbers are
    :return: the page as it should stand, with what differs
    """
    page, end = Page(name, ""), 0
    for mark in MARK.finditer(text):
        if mark.start() < end:
            continue
        before, kind = text[end : mark.start()], mark[1]
        if kind == "numbers":
            page.text += "".join(_numbers(page, before, mark, rows))
            end = mark.end()
        else:
            stop = text.find(END, mark.end())
            page.unkeyed += TOKEN.findall(visible(before))
            page.text += before + mark[0]
            page.text += _table(page, mark[2], text[mark.end() : stop], rows) if stop >= 0 else ""
            end = stop if stop >= 0 else mark.end()
            if stop < 0:
                page.faults.append(f"{name}: a table has no {END}: {mark[2].strip().splitlines()[0]}")
    page.text += text[end:]
    page.unkeyed += TOKEN.findall(visible(text[end:]))
    return page


def visible(text: str) -> str:
    """The prose of Markdown; what is hidden is replaced by as many blanks, line ends kept."""
    return HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _table(page: Page, specification: str, stands: str, rows: Rows) -> str:
    try:
        made = table(specification, rows)
    except ValueError as error:
        page.faults.append(f"{page.name}: table {specification.split()[0]}: {error}")
        return stands
    page.keyed += len(TOKEN.findall(visible(made)))
    if made.strip() != stands.strip():
        old, new = stands.strip().splitlines(), made.strip().splitlines()
        differs = [line for line in new if line not in old]
        page.faults.append(f"{page.name}: a table does not stand as its rows make it, e.g. {(differs or new)[0]}")
    return made


def _numbers(page: Page, before: str, mark: re.Match[str], rows: Rows) -> Iterator[str]:
    """The text before a block of keys and the block, both as they should stand."""
    common, *lines = mark[2].splitlines()
    prose, at, keyed = visible(before), 0, []
    out, block = "", [f"<!-- numbers:{common}"]
    for line in (one for one in lines if one.strip()):
        written, _, key = (part.strip() for part in line.partition(" ="))
        words = r"\s+".join(map(re.escape, written.split()))  # which may stand on two lines
        place = re.compile(rf"(?<![\w.,]){words}(?![\w]|\.\d)").search(prose, at)
        if place is None:
            page.faults.append(f"{page.name}: {written!r} does not stand (in this order) above its key {key}")
            block.append(line)
            continue
        try:
            should = rendered(written, figure(key, rows, shlex.split(common)))
        except ValueError as error:
            page.faults.append(f"{page.name}: {written!r}: {error}")
            should = written
        if should != written:
            page.faults.append(f"{page.name}: {written} is {should} in its rows: {common.strip()} {key}")
        out += before[at : place.start()] + (should if should != written else before[slice(*place.span())])
        keyed.append(place.span())
        at = place.end()
        block.append(f"{should} = {key}".rstrip())
    tokens = list(TOKEN.finditer(prose))
    loose = [one for one in tokens if not any(low <= one.start() < high for low, high in keyed)]
    page.keyed += len(tokens) - len(loose)
    page.unkeyed += [one[0] for one in loose]
    yield out + before[at:]
    yield "\n".join([*block, "-->\n"])


# ---------------------------------------------------------------------- numbers without rows


def read_listed(path: Path) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """
    The list of numbers that have no key: results without rows, and settings, which are no results.

    :param path: TOML with the tables ``[results."PAGE"]`` and ``[settings."PAGE"]``, each: what made them = numbers
    :return: both, by page
    :raises ValueError: when the file is something else, or ``n_results`` is not the number of results
    """
    try:
        listed = tomllib.loads(path.read_text(encoding="utf-8"))
        found = [
            {
                page: Counter(text for texts in groups.values() for text in texts)
                for page, groups in listed[kind].items()
            }
            for kind in ("results", "settings")
        ]
        limit = int(listed["n_results"])
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFault(path, f"is no list of numbers: {error}") from error
    if (n := sum(counts.total() for counts in found[0].values())) != limit:
        raise FileFault(path, f"lists {n} results without rows, n_results is {limit}: it may only shrink")
    return found[0], found[1]


def unlisted(page: Page, listed: Sequence[Mapping[str, Counter[str]]]) -> list[str]:
    """Faults of a page whose numbers without keys are not those that are listed for it."""
    known = sum((one.get(page.name, Counter()) for one in listed), Counter())
    found = Counter(page.unkeyed)
    more, gone = (", ".join(sorted(one.elements())) for one in (found - known, known - found))
    faults = [f"{page.name}: no key, and not listed: {more}"] if more else []
    return [*faults, f"{page.name}: listed, and not there without a key any more: {gone}"] if gone else faults


# ---------------------------------------------------------------------- a checkout


def pages_of(root: Path) -> list[Path]:
    """README, the pages below ``docs`` that are not generated, and the changelog of none."""
    docs = sorted((root / "docs").rglob("*.md"))
    generated = {root / "docs" / "_build", root / "docs" / "api", root / "docs" / "results"}
    return [root / "README.md", *(page for page in docs if not generated & set(page.parents))]


def verify(root: Path, rows: Rows, write: bool = False) -> list[Page]:
    """
    Compare all pages of a checkout with its rows.

    :param root: of the checkout
    :param rows: its results
    :param write: whether pages are rewritten as they should stand
    :return: the pages; their faults are what is still to be done by hand after writing
    :raises ValueError: for a list of numbers without rows that is damaged
    """
    listed = read_listed(root / "docs" / "results" / LISTED)
    found = []
    for path in pages_of(root):
        text = path.read_text(encoding="utf-8")
        page = compare(str(path.relative_to(root)), text, rows)
        if write and page.text != text:
            write_text(path, page.text)
            page = compare(page.name, page.text, rows)
        page.faults += unlisted(page, listed)
        found.append(page)
    names = {page.name for page in found}
    for name in sorted({name for one in listed for name in one} - names):
        found.append(Page(name, "", [f"{name}: numbers are listed for a page that is not there"]))
    return found
