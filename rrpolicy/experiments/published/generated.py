"""Pages that a command writes as a whole: summaries of experiments beside their CSVs, and the zoo's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import write_text
from rrpolicy.experiments import images, locomotion, maze2d
from rrpolicy.experiments.published.keys import NUMBER
from rrpolicy.experiments.published.pages import Page
from rrpolicy.experiments.results import Result
from rrpolicy.zoo import table as zoo_table

Summary = tuple[Callable[[Path], list[Result]], Callable[[Sequence[Result]], str]]
SUMMARIES: Mapping[str, Summary] = {
    "maze2d": (maze2d.read_results, maze2d.summary),
    "locomotion": (locomotion.read_results, locomotion.summary),
    "own_environments": (locomotion.read_results, locomotion.summary),
    "images": (images.read_results, images.summary),
    "images_2026-11-26": (images.read_results, images.summary),
}


def compare_generated(root: Path, write: bool = False) -> list[Page]:
    """
    Compare generated pages with what their commands would write.

    :param root: of the checkout
    :param write: whether they are rewritten
    :raises ValueError: when there are no results
    """
    if not (root / "docs" / "results").is_dir():
        raise FileFault(root, "is no checkout with docs/results/")
    summaries = {root / "docs" / "results" / name / "summary.md": made for name, made in SUMMARIES.items()}
    pages = {path: summary(read(path.parent.with_suffix(".csv"))) for path, (read, summary) in summaries.items()}
    pages[root / "zoo" / "README.md"] = zoo_table(root / "zoo")
    return [_compared(str(path.relative_to(root)), path, made, write) for path, made in pages.items()]


def _compared(name: str, path: Path, made: str, write: bool) -> Page:
    page, stands = Page(name, made, keyed=len(NUMBER.findall(made))), path.read_text(encoding="utf-8")
    if stands != made and write:
        write_text(path, made)
    elif stands != made:
        lines = set(stands.splitlines())
        differs = [line for line in made.splitlines() if line not in lines]
        page.faults.append(f"{name}: differs from its rows, e.g. {''.join(differs[:1])[:100]}")
    return page
