"""Sections of the audit page that show pictures and files: extremes, samples, the ranking, what is left out."""

from __future__ import annotations

from html import escape

import numpy as np

from rrpolicy.common.typing import Array
from rrpolicy.images.audited import Audit
from rrpolicy.images.charts import signed
from rrpolicy.images.evidence import LIMITS
from rrpolicy.images.page import image_tag, plain_text, section, table
from rrpolicy.images.support import NOT_CHECKED

N_EXTREME = 24  # images in each of the two grids
N_WRONG = 12  # images that are ranked most wrongly, of each kind
NAME = 40  # characters of a name under a picture, its last ones
N_RANKED = 240  # rows of the ranked list, spread evenly over all ranks
N_SAMPLES = 16  # of each generator
N_LEFT_OUT = 500  # rows of files that could not be read
ROW_THUMBNAIL = 80  # of those in the ranked list


def extremes(audit: Audit) -> str:
    """The images with the highest and the lowest scores."""
    order = audit.kept_order
    if not len(order):
        return ""
    n = min(N_EXTREME, (len(order) + 1) // 2)
    highest = "".join(_figure(audit, i) for i in order[:n])
    lowest = "".join(_figure(audit, i) for i in order[::-1][:n])
    return section(
        "extremes",
        "Highest and lowest",
        "What the expert makes likelier than the base, and what it avoids." if audit.evidence.has_zero else "",
        f'<div class="two"><div><h3>Highest ρ</h3><ul class="images">{highest}</ul></div>'
        f'<div><h3>Lowest ρ</h3><ul class="images">{lowest}</ul></div></div>',
    )


def unlike(audit: Audit) -> str:
    """Flagged images, and the rule by which they are."""
    rule, flagged = audit.evidence.support, np.flatnonzero(audit.unlike)
    if not rule and not len(flagged):
        return ""
    said = f"{len(flagged):,} of {len(audit.scores):,} images are flagged." if rule != NOT_CHECKED else ""
    shown = "".join(_figure(audit, i) for i in flagged[:N_EXTREME])
    note = f" ρ says nothing of them: no share, mean or area is about them{_first(flagged)}." if shown else ""
    return section(
        "unlike",
        "Unlike anything the two models make",
        escape(f"{rule} {said}{note}".strip()),
        f'<ul class="images">{shown}</ul>' if shown else "",
    )


def _first(flagged: Array) -> str:
    return f"; the first {N_EXTREME} of them are shown" if len(flagged) > N_EXTREME else ""


def wrong(audit: Audit) -> str:
    """The wanted images that score lowest, and the unwanted ones that score highest."""
    if audit.wanted is None:
        return ""
    order = audit.order[audit.judged[audit.order]]
    wanted = audit.wanted[order]
    low = "".join(_figure(audit, i) for i in order[wanted][::-1][:N_WRONG])
    high = "".join(_figure(audit, i) for i in order[~wanted][:N_WRONG])
    return section(
        "wrong",
        "Most wrongly ranked",
        "Where ρ and the labels disagree most; either may be wrong.",
        f'<div class="two"><div><h3>Lowest wanted</h3><ul class="images">{low}</ul></div>'
        f'<div><h3>Highest unwanted</h3><ul class="images">{high}</ul></div></div>',
    )


def side_by_side(audit: Audit) -> str:
    """Samples of each generator, by prompt where there are prompts."""
    if not audit.samples:
        return ""
    if audit.prompts:
        return _by_prompt(audit)
    sets = []
    for name, drawn in audit.samples.items():
        pictures = "".join(
            f"<li>{image_tag(image, f'{name}, sample {i + 1}')}</li>" for i, image in enumerate(drawn[:N_SAMPLES])
        )
        sets.append(f'<div><h3>{escape(name)}</h3><ul class="images">{pictures}</ul></div>')
    return section(
        "samples",
        "Samples side by side",
        "The same place in every grid started from the same noise.",
        f'<div class="sets">{"".join(sets)}</div>',
    )


def _by_prompt(audit: Audit) -> str:
    rows = []
    for i, prompt in enumerate(audit.prompts[:N_SAMPLES]):
        pictures = "".join(
            f"<li><figure>{image_tag(drawn[i], f'{name}, prompt {i + 1}')}"
            f"<figcaption>{escape(name)}</figcaption></figure></li>"
            for name, drawn in audit.samples.items()
        )
        rows.append(f'<div><h3>{escape(prompt)}</h3><ul class="images">{pictures}</ul></div>')
    shown = f" The first {N_SAMPLES} of {len(audit.prompts)}." if len(audit.prompts) > N_SAMPLES else ""
    note = f"All pictures of a prompt started from the same noise.{shown}"
    return section("samples", "Samples by prompt", note, f'<div class="prompts">{"".join(rows)}</div>')


def ranking(audit: Audit) -> str:
    """A table of images from the highest to the lowest score."""
    n, order = len(audit.scores), audit.order
    ranks = np.unique(np.linspace(0, n - 1, min(n, N_RANKED)).round().astype(int))
    rows = "".join(_ranked_row(audit, int(rank), int(order[rank])) for rank in ranks)
    heads = ("rank", "image", *(("label",) if audit.labels is not None else ()), "name", f"ρ ({audit.evidence.unit})")
    note = f"All {n:,} images." if len(ranks) == n else f"{len(ranks)} of {n:,} images, spread evenly over all ranks."
    numbers = table(heads, rows, note, left=("label", "name"), tall=True)
    content = f"<details><summary>Images from highest to lowest ρ</summary>{numbers}</details>"
    return section("ranking", "Ranking", "", content)


def _ranked_row(audit: Audit, rank: int, i: int) -> str:
    flag = "<small>flagged</small>" if audit.unlike[i] else ""
    label = "" if audit.labels is None else f'<td class="left">{escape(audit.labels[i])}</td>'
    return (
        f'<tr><th scope="row">{rank + 1}</th><td>{image_tag(audit.images[i], "", ROW_THUMBNAIL)}</td>{label}'
        f'<td class="left">{escape(audit.names[i])}</td><td>{signed(audit.scores[i])}{flag}</td></tr>'
    )


def left_out(audit: Audit) -> str:
    """The files that were not scored; empty when there are none."""
    if not audit.left_out and not audit.not_read:
        return ""
    n, shown = len(audit.left_out), audit.left_out[:N_LEFT_OUT]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="left">{escape(reason)}</td></tr>' for name, reason in shown
    )
    note = f"{n:,} files that could not be read" + (f", the first {len(shown)} of them" if len(shown) < n else "")
    numbers = table(("file", "reason"), rows, note, left=("reason",), tall=True) if rows else ""
    others = f"<p>Not looked at, by suffix: {escape(audit.not_read)}.</p>" if audit.not_read else ""
    return section("left-out", "Left out", "No number on this page is about these files.", others + numbers)


def evidence(audit: Audit) -> str:
    """Facts about the reward and its scores, and the limits of what they mean."""
    facts = [(escape(plain_text(name)), escape(plain_text(value))) for name, value in audit.evidence.facts]
    rows = "".join(f'<tr><th scope="row">{name}</th><td class="left">{value}</td></tr>' for name, value in facts)
    numbers = table(("fact", "value"), rows, "Where the numbers come from", left=("value",)) if rows else ""
    limits = "".join(f"<li>{escape(limit)}</li>" for limit in LIMITS)
    return section("evidence", "Evidence and limits", "", f"{numbers}<ul>{limits}</ul>")


def _figure(audit: Audit, i: int) -> str:
    score, label = audit.scores[i], "" if audit.labels is None else audit.labels[i]
    middle = 0.0 if audit.evidence.has_zero else audit.middle
    kind = "is-high" if score >= middle else "is-low"
    picture = image_tag(audit.images[i], f"{label or audit.names[i]}, ρ {signed(score)}")
    name = audit.names[i] if len(audit.names[i]) <= NAME else f"…{audit.names[i][1 - NAME :]}"
    text = f"{escape(label)}<span>{escape(name)}</span>" if label else f"<span>{escape(name)}</span>"
    return (
        f'<li class="{kind}"><figure title="{escape(audit.names[i])}">{picture}'
        f"<figcaption><b>{signed(score)}</b>{text}</figcaption></figure></li>"
    )
