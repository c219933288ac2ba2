"""The audit page: what a reward likes and dislikes in a set of images, as one HTML file that needs nothing else.

Pictures are data URIs, style is inline, there is no script, and a content security policy forbids every request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.files import write_text
from rrpolicy.common.typing import Array
from rrpolicy.images.charts import CSS as CHART_CSS
from rrpolicy.images.charts import curve, histograms, signed
from rrpolicy.images.evidence import LIMITS, UNKNOWN, Evidence
from rrpolicy.images.metrics import Estimate, auroc, label_means
from rrpolicy.images.page import beside, image_tag, page, plain_text, section, table

PAGE_FILE = "index.html"
N_EXTREME = 24  # images in each of the two grids
N_RANKED = 240  # rows of the ranked list, spread evenly over all ranks
N_SAMPLES = 16  # of each generator
N_LEFT_OUT = 500  # rows of files that could not be read
ROW_THUMBNAIL = 80  # of those in the ranked list
ALL = "all images"



def write_audit(
    folder: str | Path,
    images: Sequence[Array] | Array,
    scores: Any,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    unwanted: Collection[str] = (),
    per_level: tuple[Sequence[int], Any] | None = None,
    samples: Mapping[str, Sequence[Array] | Array] | None = None,
    left_out: Sequence[tuple[str, str]] = (),
    not_read: str = "",
    title: str | None = None,
    evidence: Evidence = UNKNOWN,
) -> Path:
    """
    Write ``index.html``.

    :param folder: made when missing
    :param images: n images uint8 (H, W, C) with 1 or 3 channels, of any sizes; only those that are shown are asked for
    :param scores: (n,) ρ of each image
    :param names: n file names; None for numbers
    :param labels: n class names; None when the images have none
    :param unwanted: labels that should score low: with both kinds there is an AUROC
    :param per_level: noise levels (k,) and the scores (k, n) at each
    :param samples: name of a generator -> its samples, shown side by side; equal places should come from equal noise
    :param left_out: name of each file that could not be read, and why
    :param not_read: numbers of files that are no pictures, such as ``"12 .avif"``
    :param title: heading of the page; None: what the evidence allows
    :param evidence: what the scores mean and where they come from
    :return: path of the page
    :raises ValueError: when lengths or shapes do not fit together, naming them
    """
    audit = _Audit.checked(
        images, scores, names, labels, unwanted, per_level, samples or {}, left_out, not_read, evidence
    )
    sections = [
        _facts(audit), _extremes(audit), _distribution(audit), _levels(audit), _side_by_side(audit), _ranking(audit),
        _left_out(audit), _evidence(audit),
    ]  # fmt: skip
    path = Path(folder) / PAGE_FILE
    write_text(path, page(
        evidence.title if title is None else title, evidence.meaning, sections,
        f"{len(audit.scores):,} images. This page holds all it needs and makes no requests.", CHART_CSS,
    ))
    return path


@dataclass(frozen=True, eq=False)
class _Audit:
    """What the page shows, checked."""

    images: Sequence[Array]  # n, uint8 (H, W, C)
    scores: Array  # (n,)
    names: list[str]
    labels: list[str] | None
    unwanted: frozenset[str]
    levels: list[int]
    level_scores: Array  # (k, n)
    samples: dict[str, Sequence[Array]]
    left_out: list[tuple[str, str]]
    not_read: str
    evidence: Evidence

    @classmethod
    def checked(
        cls, images: Any, scores: Any, names: Any, labels: Any, unwanted: Any, per_level: Any, samples: Any,
        left_out: Any, not_read: str, evidence: Evidence,
    ) -> _Audit:  # fmt: skip
        values, n = np.asarray(scores, dtype=np.float64), len(images)
        if not n or values.shape != (n,) or not np.isfinite(values).all():
            raise ValueError(f"scores has shape {values.shape} for {n} images, wanted finite numbers ({n},), n >= 1")
        for name, given in (("names", names), ("labels", labels)):
            if given is not None and len(given) != n:
                raise ValueError(f"{name} has {len(given)} entries, wanted one for each of {n} images")
        known = set() if labels is None else {str(label) for label in labels}
        if missing := sorted(set(unwanted) - known):
            raise ValueError(f"unwanted is {missing}, which no image is labelled with")
        levels, at_levels = ([], np.zeros((0, n))) if per_level is None else per_level
        at_levels = np.asarray(at_levels, dtype=np.float64)
        if at_levels.shape != (len(levels), n) or not np.isfinite(at_levels).all():
            raise ValueError(f"per_level has scores {at_levels.shape}, wanted finite numbers ({len(levels)}, {n})")
        order = np.argsort(np.asarray(levels, dtype=int), kind="stable")
        return cls(
            images,
            values,
            [str(i) for i in range(n)] if names is None else [plain_text(name) for name in names],
            None if labels is None else [plain_text(label) for label in labels],
            frozenset(map(plain_text, unwanted)),
            [int(levels[i]) for i in order],
            at_levels[order],
            {plain_text(name): drawn for name, drawn in samples.items()},
            [(plain_text(name), plain_text(reason)) for name, reason in left_out],
            plain_text(not_read),
            evidence,
        )

    @property
    def order(self) -> Array:
        """Indices from the highest score to the lowest."""
        return np.argsort(-self.scores, kind="stable")

    @cached_property
    def middle(self) -> float:
        """The median score."""
        return float(np.median(self.scores))

    @property
    def wanted(self) -> Array | None:
        """Bool (n,); None unless there are wanted and unwanted images."""
        flags = np.array([label not in self.unwanted for label in self.labels or ()], dtype=bool)
        return flags if flags.any() and not flags.all() else None


# ---------------------------------------------------------------------- sections


def _facts(audit: _Audit) -> str:
    """The numbers to see first."""
    scores, wanted = audit.scores, audit.wanted
    unit = audit.evidence.unit
    facts = [("Images", f"{len(scores):,}", ""), ("Highest ρ", signed(scores.max()), unit),
             ("Lowest ρ", signed(scores.min()), unit)]  # fmt: skip
    if audit.evidence.has_zero:
        facts.append(("Below zero", f"{(scores < 0).mean():.0%}", "of all images"))
    if audit.left_out:
        facts.insert(1, ("Left out", f"{len(audit.left_out):,}", "files that could not be read"))
    if wanted is not None:
        area = auroc(scores, wanted)
        facts.append(("AUROC", f"{area.value:.3f}", f"95 % interval {_interval(area)}"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in facts)
    return f'<dl class="facts">{items}</dl>'


def _extremes(audit: _Audit) -> str:
    n, order = min(N_EXTREME, (len(audit.scores) + 1) // 2), audit.order
    highest = "".join(_figure(audit, i) for i in order[:n])
    lowest = "".join(_figure(audit, i) for i in order[::-1][:n])
    return section(
        "extremes", "Highest and lowest",
        "What the expert makes likelier than the base, and what it avoids." if audit.evidence.has_zero else "",
        f'<div class="two"><div><h3>Highest ρ</h3><ul class="images">{highest}</ul></div>'
        f'<div><h3>Lowest ρ</h3><ul class="images">{lowest}</ul></div></div>',
    )  # fmt: skip


def _distribution(audit: _Audit) -> str:
    labels = audit.labels or [ALL] * len(audit.scores)
    names = sorted(set(labels))
    means = label_means(audit.scores, [names.index(label) for label in labels], names)
    means = dict(sorted(means.items(), key=lambda item: -item[1].value))
    groups = {name: np.array([label == name for label in labels]) for name in means}
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}{"<small>unwanted</small>" if name in audit.unwanted else ""}</th>'
        f"<td>{mean.n:,}</td><td>{signed(mean.value)}</td>"
        f"<td>{signed(np.quantile(audit.scores[groups[name]], 0.05))}</td>"
        f"<td>{signed(np.quantile(audit.scores[groups[name]], 0.95))}</td></tr>"
        for name, mean in means.items()
    )
    caption = f"ρ ({audit.evidence.unit}) of each label: mean and quantiles"
    numbers = table(("label", "images", "mean", "5 %", "95 %"), rows, caption)
    note = "Each row has its own height; the dot is the mean."
    note += " Unwanted labels are orange." if audit.unwanted else ""
    chart = histograms(audit.scores, groups, audit.unwanted, f"ρ, {audit.evidence.unit}", audit.evidence.has_zero)
    return section("distribution", "Distribution of ρ", note, beside(chart, numbers))


def _levels(audit: _Audit) -> str:
    wanted = audit.wanted
    if wanted is None or not audit.levels:
        return ""
    areas = [auroc(scores, wanted) for scores in audit.level_scores]
    rows = "".join(
        f'<tr><th scope="row">{level}</th><td>{area.value:.3f}</td><td>{_interval(area)}</td></tr>'
        for level, area in zip(audit.levels, areas, strict=True)
    )
    chart = curve(audit.levels, [a.value for a in areas], [a.low for a in areas], [a.high for a in areas])
    numbers = table(("noise level t", "AUROC", "95 % interval"), rows, "Wanted over unwanted images, by noise level")
    return section(
        "levels", "AUROC at each noise level",
        "The chance that a wanted image scores above an unwanted one; at t = 0 the clean image is scored.",
        beside(chart, numbers),
    )  # fmt: skip


def _side_by_side(audit: _Audit) -> str:
    if not audit.samples:
        return ""
    sets = []
    for name, drawn in audit.samples.items():
        pictures = "".join(f"<li>{image_tag(image, f'{name}, sample {i + 1}')}</li>"
                           for i, image in enumerate(drawn[:N_SAMPLES]))  # fmt: skip
        sets.append(f'<div><h3>{escape(name)}</h3><ul class="images">{pictures}</ul></div>')
    return section(
        "samples", "Samples side by side", "The same place in every grid started from the same noise.",
        f'<div class="sets">{"".join(sets)}</div>',
    )  # fmt: skip


def _ranking(audit: _Audit) -> str:
    n, order = len(audit.scores), audit.order
    ranks = np.unique(np.linspace(0, n - 1, min(n, N_RANKED)).round().astype(int))
    rows = "".join(_ranked_row(audit, int(rank), int(order[rank])) for rank in ranks)
    heads = ("rank", "image", *(("label",) if audit.labels is not None else ()), "name", f"ρ ({audit.evidence.unit})")
    note = f"All {n:,} images." if len(ranks) == n else f"{len(ranks)} of {n:,} images, spread evenly over all ranks."
    numbers = table(heads, rows, note, left=("label", "name"), tall=True)
    content = f"<details><summary>Images from highest to lowest ρ</summary>{numbers}</details>"
    return section("ranking", "Ranking", "", content)


def _ranked_row(audit: _Audit, rank: int, i: int) -> str:
    label = "" if audit.labels is None else f'<td class="left">{escape(audit.labels[i])}</td>'
    return (
        f'<tr><th scope="row">{rank + 1}</th><td>{image_tag(audit.images[i], "", ROW_THUMBNAIL)}</td>{label}'
        f'<td class="left">{escape(audit.names[i])}</td><td>{signed(audit.scores[i])}</td></tr>'
    )


def _left_out(audit: _Audit) -> str:
    if not audit.left_out and not audit.not_read:
        return ""
    n, shown = len(audit.left_out), audit.left_out[:N_LEFT_OUT]
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td class="left">{escape(reason)}</td></tr>'
                   for name, reason in shown)  # fmt: skip
    note = f"{n:,} files that could not be read" + (f", the first {len(shown)} of them" if len(shown) < n else "")
    numbers = table(("file", "reason"), rows, note, left=("reason",), tall=True) if rows else ""
    others = f"<p>Not looked at, by suffix: {escape(audit.not_read)}.</p>" if audit.not_read else ""
    return section("left-out", "Left out", "No number on this page is about these files.", others + numbers)


def _evidence(audit: _Audit) -> str:
    facts = [(escape(plain_text(name)), escape(plain_text(value))) for name, value in audit.evidence.facts]
    rows = "".join(f'<tr><th scope="row">{name}</th><td class="left">{value}</td></tr>' for name, value in facts)
    numbers = table(("fact", "value"), rows, "Where the numbers come from", left=("value",)) if rows else ""
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS)
    return section("evidence", "Evidence and limits", "", f"{numbers}<ul>{limits}</ul>")


# ---------------------------------------------------------------------- pieces of HTML


def _figure(audit: _Audit, i: int) -> str:
    score, label = audit.scores[i], "" if audit.labels is None else audit.labels[i]
    middle = 0.0 if audit.evidence.has_zero else audit.middle
    kind = "is-high" if score >= middle else "is-low"
    picture = image_tag(audit.images[i], f"{label or audit.names[i]}, ρ {signed(score)}")
    return (
        f'<li class="{kind}"><figure title="{escape(audit.names[i])}">{picture}'
        f"<figcaption><b>{signed(score)}</b>{escape(label or audit.names[i])}</figcaption></figure></li>"
    )


def _interval(area: Estimate) -> str:
    return f"{area.low:.3f}–{area.high:.3f}"


