"""The page of a comparison: one self-contained HTML file, with its pictures beside it as files, too."""

from __future__ import annotations

from pathlib import Path

from rrpolicy.common.files import write_text
from rrpolicy.common.version import __version__
from rrpolicy.comparison import sections, where_sections
from rrpolicy.comparison.result import Findings
from rrpolicy.comparison.sections import Drawn
from rrpolicy.images.charts import CSS as CHART_CSS
from rrpolicy.images.page import page, plain_text

PAGE_FILE = "index.html"
CSS = """
img.figure { aspect-ratio: auto; background: #fff; max-width: 60rem; }
ul.figures { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.figures > li { min-width: 0; } .figures figcaption { font-size: .85rem; }
video { display: block; width: 100%; max-width: 60rem; margin-top: 1rem; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
dt, li, b, small, figcaption, caption { overflow-wrap: anywhere; }
"""

SECTIONS = (
    sections.facts,
    sections.null,
    where_sections.attribution,
    where_sections.distributions,
    where_sections.regions,
    where_sections.examples,
    where_sections.counterfactual,
    sections.fit,
    sections.calibration,
    sections.levels,
    sections.limits,
)
"""Parts of the page, from top to bottom; each is made of what was found, and empty where that was left out."""


def write_page(comparison: Findings, folder: str | Path) -> Path:
    """
    Write ``index.html`` and its pictures.

    :param folder: made when missing
    :return: path of the page
    """
    drawn = Drawn(comparison, Path(folder))
    base, expert = (plain_text(name) for name in comparison.names)
    made = [section(drawn) for section in SECTIONS]
    path = Path(folder) / PAGE_FILE
    footer = (
        f"{len(comparison.samples):,} windows of each model, seed {comparison.seed}, rrpolicy {__version__}. "
        "This page holds all it needs and makes no requests."
    )
    write_text(path, page(f"{base} and {expert}: what changed", comparison.verdict, made, footer, CHART_CSS + CSS))
    return path
