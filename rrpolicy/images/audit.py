"""The audit page: images of a set with high and low scores of a reward, as one self-contained HTML file.

Pictures are data URIs, style is inline, there is no script, and a content security policy forbids every request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rrpolicy.common.files import write_text
from rrpolicy.common.typing import Array
from rrpolicy.images import audit_numbers as numbers
from rrpolicy.images import audit_pictures as pictures
from rrpolicy.images.audited import Audit
from rrpolicy.images.charts import CSS as CHART_CSS
from rrpolicy.images.evidence import UNKNOWN, Evidence
from rrpolicy.images.null import Null
from rrpolicy.images.page import page

PAGE_FILE = "index.html"


SECTIONS = (
    numbers.null,
    numbers.facts,
    pictures.extremes,
    pictures.unlike,
    numbers.distribution,
    numbers.levels,
    numbers.thresholds,
    pictures.wrong,
    pictures.side_by_side,
    pictures.ranking,
    pictures.left_out,
    pictures.evidence,
)
"""Parts of the page, from top to bottom; each is made of what is audited."""


def write_audit(
    folder: str | Path,
    images: Sequence[Array] | Array,
    scores: Any,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[str | None] | None = None,
    unwanted: Collection[str] = (),
    per_level: tuple[Sequence[int], Any] | None = None,
    samples: Mapping[str, Sequence[Array] | Array] | None = None,
    prompts: Sequence[str] = (),
    left_out: Sequence[tuple[str, str]] = (),
    not_read: str = "",
    unlike: Any = None,
    null: Null | None = None,
    title: str | None = None,
    evidence: Evidence = UNKNOWN,
) -> Path:
    """
    Write ``index.html``.

    :param folder: made when missing
    :param images: n images uint8 (H, W, C) with 1 or 3 channels, of any sizes; only those that are shown are read
    :param scores: (n,) ρ of each image
    :param names: n file names; None for numbers
    :param labels: n class names, None for an image without, which is neither wanted nor unwanted; None without any
    :param unwanted: labels that should score low: with both kinds there is an AUROC
    :param per_level: noise levels (k,) and the scores (k, n) at each
    :param samples: name of a generator -> its samples, shown side by side; equal places should come from equal noise
    :param prompts: of the samples, one for each place; the page then has the samples prompt by prompt
    :param left_out: name of each file that could not be read, and why
    :param not_read: numbers of files that are no pictures, such as ``"12 .avif"``
    :param unlike: bool (n,), images that are flagged as unlike anything that the two models make: they are shown apart
        and in the ranking, and no share, mean or area is about them
    :param null: scores of the images by rewards between two trainings of one model
    :param title: heading of the page; None: what evidence and null allow
    :param evidence: what the scores mean and where they come from
    :return: path of the page
    :raises ValueError: when lengths or shapes do not fit together, naming them
    """
    audit = Audit.checked(
        images,
        scores,
        names,
        labels,
        unwanted,
        per_level,
        samples or {},
        prompts,
        left_out,
        not_read,
        unlike,
        null,
        evidence,
    )
    sections = [section(audit) for section in SECTIONS]
    path = Path(folder) / PAGE_FILE
    write_text(
        path,
        page(
            audit.title if title is None else title,
            evidence.meaning,
            sections,
            f"{len(audit.scores):,} images. This page holds all it needs and makes no requests.",
            CHART_CSS,
        ),
    )
    return path
