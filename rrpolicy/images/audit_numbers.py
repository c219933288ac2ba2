"""Sections of the audit page that are about numbers: what to see first, labels, noise levels."""

from __future__ import annotations

from html import escape

import numpy as np

from rrpolicy.images.audited import Audit
from rrpolicy.images.charts import curve, histograms, signed
from rrpolicy.images.metrics import Estimate, auroc, label_means
from rrpolicy.images.null import NOTHING_BEYOND, spread
from rrpolicy.images.page import beside, plain_text, section, table

ALL = "all images"


def null(audit: Audit) -> str:
    """How far ρ spreads, beside rewards between two trainings of one model."""
    if audit.null is None:
        return ""
    kept, others = audit.kept, audit.null.spreads(audit.kept)
    here, widest, unit = spread(audit.scores[kept]), max(others), audit.evidence.unit
    said = f"ρ's spread here is {here:.3f}, between two trainings of one model {widest:.3f}"
    said += f", the widest of {len(others)}" if len(others) > 1 else ""
    said += f": {NOTHING_BEYOND}." if audit.covered else ": it is beyond what two trainings of one model show."
    both = [("this reward", here, audit.scores), *zip(audit.null.names, others, audit.null.scores, strict=True)]
    rows = "".join(
        f'<tr><th scope="row">{escape(plain_text(name))}</th><td>{value:.3f}</td>'
        f"<td>{np.abs(rho[kept]).mean() if kept.any() else 0:.3f}</td></tr>"
        for name, value, rho in both
    )
    heads = ("reward", "standard deviation", "mean |ρ|")
    return section(
        "null", "Is there anything to find?", said,
        table(heads, rows, f"ρ ({unit}) of the same pictures, by rewards between trainings of one model"),
    )  # fmt: skip


def facts(audit: Audit) -> str:
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


def distribution(audit: Audit) -> str:
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


def levels(audit: Audit) -> str:
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


def _interval(area: Estimate) -> str:
    return f"{area.low:.3f}–{area.high:.3f}"
