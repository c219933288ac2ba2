"""Pages that a command writes as a whole: summaries of experiments beside their CSVs, and the zoo's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rrpolicy.common.faults import FileFault
from rrpolicy.experiments import images, locomotion, maze2d
from rrpolicy.experiments.published.pages import Page
from rrpolicy.experiments.results import Result

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
    found = []
    for name, (read, summary) in SUMMARIES.items():
        path = root / "docs" / "results" / name / "summary.md"
        page = Page(str(path.relative_to(root)), summary(read(path.parent.with_suffix(".csv"))))
        stands = path.read_text(encoding="utf-8")
        page.keyed = len(page.text.split("|"))
        if stands != page.text:
            lines = set(stands.splitlines())
            differs = [line for line in page.text.splitlines() if line not in lines]
            page.faults.append(f"{page.name}: differs from its rows, e.g. {''.join(differs[:1])[:100]}")
            if write:
                path.write_text(page.text, encoding="utf-8")
                page.faults = []
        found.append(page)
    return found
