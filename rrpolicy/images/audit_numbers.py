"""Sections of the audit page with numbers: the main figures, labels, noise levels."""

from __future__ import annotations

from collections import Counter
from html import escape

import numpy as np

from rrpolicy.common.stats import Measure, auroc, share
from rrpolicy.common.typing import Array
from rrpolicy.images.audited import Audit
from rrpolicy.images.charts import curve, histograms, signed
from rrpolicy.images.metrics import label_means
from rrpolicy.images.null import NOTHING_BEYOND, spread
from rrpolicy.images.page import beside, plain_text, section, table

ALL = "all images"
KEPT = (0.99, 0.95, 0.9, 0.5)  # shares of wanted images that thresholds are to keep
N_LABELS = 60  # with a histogram and a row of the table


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
        "null",
        "Is there anything to find?",
        said,
        table(heads, rows, f"ρ ({unit}) of the same pictures, by rewards between trainings of one model"),
    )


def facts(audit: Audit) -> str:
    """The main numbers."""
    scores, wanted, unit = audit.scores[audit.kept], audit.wanted, audit.evidence.unit
    facts = [("Images", f"{len(audit.scores):,}", "")]
    if audit.left_out:
        facts.append(("Left out", f"{len(audit.left_out):,}", "files that could not be read"))
    if audit.unlike.any():
        facts.append(("Flagged", f"{audit.unlike.sum():,}", "unlike what the models make, not counted"))
    if len(scores):
        facts += [("Highest ρ", signed(scores.max()), unit), ("Lowest ρ", signed(scores.min()), unit)]
        if audit.evidence.has_zero:
            facts.append(("Below zero", f"{(scores < 0).mean():.0%}", f"of {len(scores):,} images"))
    if wanted is not None:
        area = auroc(audit.scores[audit.judged], wanted[audit.judged])
        facts.append(("AUROC", f"{area.value:.3f}", f"95 % interval {_interval(area)}"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in facts)
    return f'<dl class="facts">{items}</dl>'


def distribution(audit: Audit) -> str:
    """A histogram and a row of the table for each label."""
    scores = audit.scores[audit.kept]
    if not len(scores):
        return ""
    every = np.array(audit.labels or [ALL] * len(audit.scores), dtype=object)
    counts = Counter(every[audit.kept])
    names = [name for name, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:N_LABELS]]
    number = {name: i for i, name in enumerate(names)}
    of_label = np.array([number.get(label, -1) for label in every[audit.kept]])
    means = label_means(scores[of_label >= 0], of_label[of_label >= 0], names)
    means = dict(sorted(means.items(), key=lambda item: -item[1].value))
    groups = {name: of_label == number[name] for name in means}
    rows = "".join(_label_row(name, mean, scores[groups[name]], audit) for name, mean in means.items())
    caption = f"ρ ({audit.evidence.unit}) of each label: mean, its 95 % interval, and quantiles"
    table_of = table(("label", "images", "mean", "95 % interval", "5 %", "95 %"), rows, caption, tall=len(names) > 20)
    note = "Each row has its own height; the dot is the mean."
    note += " Unwanted labels are orange." if audit.unwanted else ""
    note += f" The {len(names)} labels with most images, of {len(counts):,}." if len(counts) > len(names) else ""
    none_left = sorted(set(every) - set(counts))
    note += f" All images of {len(none_left)} further labels are flagged." if none_left else ""
    chart = histograms(scores, groups, audit.unwanted, f"ρ, {audit.evidence.unit}", audit.evidence.has_zero)
    return section("distribution", "Distribution of ρ", note, beside(chart, table_of))


def _label_row(name: str, mean: Measure, scores: Array, audit: Audit) -> str:
    unwanted = "<small>unwanted</small>" if name in audit.unwanted else ""
    interval = f"{signed(mean.low)} to {signed(mean.high)}" if np.isfinite(mean.low) else "–"
    low, high = (signed(np.quantile(scores, share)) for share in (0.05, 0.95))
    return (
        f'<tr><th scope="row">{escape(name)}{unwanted}</th><td>{mean.n:,}</td><td>{signed(mean.value)}</td>'
        f"<td>{interval}</td><td>{low}</td><td>{high}</td></tr>"
    )


def levels(audit: Audit) -> str:
    """AUROC at each noise level."""
    wanted = audit.wanted
    if wanted is None or not audit.levels:
        return ""
    areas = [auroc(scores[audit.judged], wanted[audit.judged]) for scores in audit.level_scores]
    rows = "".join(
        f'<tr><th scope="row">{level}</th><td>{area.value:.3f}</td><td>{_interval(area)}</td></tr>'
        for level, area in zip(audit.levels, areas, strict=True)
    )
    chart = curve(audit.levels, [a.value for a in areas], [a.low for a in areas], [a.high for a in areas])
    numbers = table(("noise level t", "AUROC", "95 % interval"), rows, "Wanted over unwanted images, by noise level")
    return section(
        "levels",
        "AUROC at each noise level",
        "The chance that a wanted image scores above an unwanted one; at t = 0 the clean image is scored.",
        beside(chart, numbers),
    )


def thresholds(audit: Audit) -> str:
    """What some thresholds would keep of wanted and of unwanted images."""
    if audit.wanted is None:
        return ""
    scores, wanted = audit.scores[audit.judged], audit.wanted[audit.judged]
    high = np.sort(scores[wanted])
    asked = {f"keeps {part:.0%} of wanted": float(high[int(round((1 - part) * len(high), 6))]) for part in KEPT}
    if audit.evidence.has_zero:
        asked["zero"] = 0.0
    rows = "".join(
        f'<tr><th scope="row">{signed(at)}</th><td class="left">{why}</td>'
        f"<td>{_share(scores[wanted] >= at)}</td><td>{_share(scores[~wanted] >= at)}</td></tr>"
        for why, at in sorted(asked.items(), key=lambda one: one[1])
    )
    heads = ("threshold", "which", "wanted kept", "unwanted kept")
    caption = "Share of images with ρ at or above a threshold, and its 95 % interval"
    note = "A threshold that is chosen on these images does better on them than on others."
    return section("thresholds", "What a threshold would keep", note, table(heads, rows, caption, left=("which",)))


def _share(flags: Array) -> str:
    found = share(flags)
    return f"{found.value:.1%}<small>{found.low:.1%}–{found.high:.1%}, n = {found.n:,}</small>"


def _interval(area: Measure) -> str:
    return f"{area.low:.3f}–{area.high:.3f}"
