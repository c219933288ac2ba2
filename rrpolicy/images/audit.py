"""The audit page: what a reward likes and dislikes in a set of images, as one HTML file that needs nothing else.

Pictures are data URIs, style is inline, there is no script, and a content security policy forbids every request.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rrpolicy.common.files import write_text
from rrpolicy.common.typing import Array
from rrpolicy.images.charts import CSS as CHART_CSS
from rrpolicy.images.charts import curve, histograms, signed
from rrpolicy.images.metrics import Estimate, auroc, label_means

PAGE_FILE = "index.html"
N_EXTREME = 24  # images in each of the two grids
N_RANKED = 240  # rows of the ranked list, spread evenly over all ranks
N_SAMPLES = 16  # of each generator
N_LEFT_OUT = 500  # rows of files that could not be read
THUMBNAIL = 160  # pixels of an embedded picture's longer side at most
ROW_THUMBNAIL = 80  # of those in the ranked list
TINY = 64  # pictures up to this size keep every pixel
ALL = "all images"

CSS = """
:root { color-scheme: light; --ink: #1d2129; --faint: #596070; --line: #dde1e8; --paper: #fff; --ground: #f5f6f9;
  --high: #0072b2; --low: #c4510a; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; } footer { padding-bottom: 2.5rem; color: var(--faint); font-size: .9rem; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.15; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 .25rem; line-height: 1.25; } h3 { font-size: 1rem; margin: 0 0 .6rem; }
p { margin: 0 0 1rem; max-width: 44rem; } .note { color: var(--faint); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem; padding: 1.25rem;
  margin: 1.25rem 0; min-width: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.facts div { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem; padding: .8rem 1rem; }
.facts dt { color: var(--faint); font-size: .9rem; } .facts dd { margin: 0; font-size: 1.45rem; font-weight: 600;
  font-variant-numeric: tabular-nums; line-height: 1.3; } .facts small { display: block; font-size: .8rem;
  font-weight: 400; color: var(--faint); }
.two { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.two > div { min-width: 0; }
ul.images { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(4rem, 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.25; margin-top: .2rem; overflow-wrap: anywhere; }
figcaption b { display: block; font-variant-numeric: tabular-nums; font-weight: 600; font-size: .9rem; }
img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; background: #10131a;
  border-radius: .3rem; } img.tiny { image-rendering: pixelated; }
.is-high b { color: var(--high); } .is-low b { color: var(--low); }
.scroll { overflow-x: auto; } .scroll.tall { overflow-y: auto; max-height: 30rem; }
.scroll:focus-visible, summary:focus-visible { outline: 3px solid var(--high); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); font-size: .9rem; padding-bottom: .3rem; }
th, td { text-align: right; padding: .3rem .35rem; border-bottom: 1px solid var(--line); font-size: .9rem; }
th { font-weight: 600; } td { white-space: nowrap; } th[scope=row], th.left, td.left { text-align: left; }
th:first-child { padding-left: 0; } td:last-child, th:last-child { padding-right: 0; }
th[scope=row] small { display: block; font-weight: 400; color: var(--low); }
td.left { white-space: normal; overflow-wrap: anywhere; } td img { width: 2.5rem; margin-left: auto; }
.beside { display: grid; gap: 1.25rem; } .beside > * { min-width: 0; }
@media (min-width: 60rem) {
  .beside { grid-template-columns: minmax(0, 1fr) fit-content(26rem); gap: 2rem; align-items: start; }
  th, td { padding: .35rem .6rem; } }
@media (max-width: 30rem) { .facts div:last-child:nth-child(odd) { grid-column: 1 / -1; } section { padding: 1rem; } }
summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
.sets { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr)); }
.sets ul.images { grid-template-columns: repeat(4, 1fr); gap: .35rem; }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


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
    title: str = "What the expert prefers",
) -> Path:
    """
    Write ``index.html``.

    :param folder: made when missing
    :param images: n images uint8 (H, W, C) with 1 or 3 channels, of any sizes; only those that are shown are asked for
    :param scores: (n,) ρ of each image in nats
    :param names: n file names; None for numbers
    :param labels: n class names; None when the images have none
    :param unwanted: labels that should score low: with both kinds there is an AUROC
    :param per_level: noise levels (k,) and the scores (k, n) at each
    :param samples: name of a generator -> its samples, shown side by side; equal places should come from equal noise
    :param left_out: name of each file that could not be read, and why
    :param not_read: numbers of files that are no pictures, such as ``"12 .avif"``
    :param title: heading of the page
    :return: path of the page
    :raises ValueError: when lengths or shapes do not fit together, naming them
    """
    audit = _Audit.checked(images, scores, names, labels, unwanted, per_level, samples or {}, left_out, not_read)
    sections = [
        _facts(audit), _extremes(audit), _distribution(audit), _levels(audit), _side_by_side(audit), _ranking(audit),
        _left_out(audit),
    ]  # fmt: skip
    page = Path(folder) / PAGE_FILE
    write_text(page, _page(title, audit, sections))
    return page


@dataclass(frozen=True, eq=False)
class _Audit:
    """What the page shows, checked."""

    images: Sequence[Array]  # n, uint8 (H, W, C)
    scores: Array  # (n,) nats
    names: list[str]
    labels: list[str] | None
    unwanted: frozenset[str]
    levels: list[int]
    level_scores: Array  # (k, n) nats
    samples: dict[str, Sequence[Array]]
    left_out: list[tuple[str, str]]
    not_read: str

    @classmethod
    def checked(
        cls, images: Any, scores: Any, names: Any, labels: Any, unwanted: Any, per_level: Any, samples: Any,
        left_out: Any, not_read: str,
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
            [str(i) for i in range(n)] if names is None else [_text(name) for name in names],
            None if labels is None else [_text(label) for label in labels],
            frozenset(map(_text, unwanted)),
            [int(levels[i]) for i in order],
            at_levels[order],
            {_text(name): drawn for name, drawn in samples.items()},
            [(_text(name), _text(reason)) for name, reason in left_out],
            _text(not_read),
        )

    @property
    def order(self) -> Array:
        """Indices from the highest score to the lowest."""
        return np.argsort(-self.scores, kind="stable")

    @property
    def wanted(self) -> Array | None:
        """Bool (n,); None unless there are wanted and unwanted images."""
        flags = np.array([label not in self.unwanted for label in self.labels or ()], dtype=bool)
        return flags if flags.any() and not flags.all() else None


# ---------------------------------------------------------------------- sections


def _facts(audit: _Audit) -> str:
    """The numbers to see first."""
    scores, wanted = audit.scores, audit.wanted
    facts = [("Images", f"{len(scores):,}", ""), ("Highest ρ", signed(scores.max()), "nats"),
             ("Lowest ρ", signed(scores.min()), "nats"), ("Below zero", f"{(scores < 0).mean():.0%}", "of all images")]
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
    return _section(
        "extremes", "Highest and lowest", "What the expert makes likelier than the base, and what it avoids.",
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
    table = _table(("label", "images", "mean", "5 %", "95 %"), rows, "ρ in nats of each label: mean and quantiles")
    note = "Each row has its own height; the dot is the mean."
    note += " Unwanted labels are orange." if audit.unwanted else ""
    chart = histograms(audit.scores, groups, audit.unwanted)
    return _section("distribution", "Distribution of ρ", note, _beside(chart, table))


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
    table = _table(("noise level t", "AUROC", "95 % interval"), rows, "Wanted over unwanted images, by noise level")
    return _section(
        "levels", "AUROC at each noise level",
        "The chance that a wanted image scores above an unwanted one; at t = 0 the clean image is scored.",
        _beside(chart, table),
    )  # fmt: skip


def _side_by_side(audit: _Audit) -> str:
    if not audit.samples:
        return ""
    sets = []
    for name, drawn in audit.samples.items():
        pictures = "".join(f"<li>{_image(image, f'{name}, sample {i + 1}')}</li>"
                           for i, image in enumerate(drawn[:N_SAMPLES]))  # fmt: skip
        sets.append(f'<div><h3>{escape(name)}</h3><ul class="images">{pictures}</ul></div>')
    return _section(
        "samples", "Samples side by side", "The same place in every grid started from the same noise.",
        f'<div class="sets">{"".join(sets)}</div>',
    )  # fmt: skip


def _ranking(audit: _Audit) -> str:
    n, order = len(audit.scores), audit.order
    ranks = np.unique(np.linspace(0, n - 1, min(n, N_RANKED)).round().astype(int))
    rows = "".join(_ranked_row(audit, int(rank), int(order[rank])) for rank in ranks)
    heads = ("rank", "image", *(("label",) if audit.labels is not None else ()), "name", "ρ (nats)")
    note = f"All {n:,} images." if len(ranks) == n else f"{len(ranks)} of {n:,} images, spread evenly over all ranks."
    table = _table(heads, rows, note, left=("label", "name"), tall=True)
    content = f"<details><summary>Images from highest to lowest ρ</summary>{table}</details>"
    return _section("ranking", "Ranking", "", content)


def _ranked_row(audit: _Audit, rank: int, i: int) -> str:
    label = "" if audit.labels is None else f'<td class="left">{escape(audit.labels[i])}</td>'
    return (
        f'<tr><th scope="row">{rank + 1}</th><td>{_image(audit.images[i], "", ROW_THUMBNAIL)}</td>{label}'
        f'<td class="left">{escape(audit.names[i])}</td><td>{signed(audit.scores[i])}</td></tr>'
    )


def _left_out(audit: _Audit) -> str:
    if not audit.left_out and not audit.not_read:
        return ""
    n, shown = len(audit.left_out), audit.left_out[:N_LEFT_OUT]
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td class="left">{escape(reason)}</td></tr>'
                   for name, reason in shown)  # fmt: skip
    note = f"{n:,} files that could not be read" + (f", the first {len(shown)} of them" if len(shown) < n else "")
    table = _table(("file", "reason"), rows, note, left=("reason",), tall=True) if rows else ""
    others = f"<p>Not looked at, by suffix: {escape(audit.not_read)}.</p>" if audit.not_read else ""
    return _section("left-out", "Left out", "No number on this page is about these files.", others + table)


# ---------------------------------------------------------------------- pieces of HTML


def _page(title: str, audit: _Audit, sections: Sequence[str]) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{CSS}{CHART_CSS}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>ρ is a log density ratio extracted from two image generators: how much likelier the expert makes an image than the
base does, in nats. Above zero the expert prefers it, below zero it avoids it.</p>
</header>
<main>
{chr(10).join(section for section in sections if section)}
</main>
<footer><p>{len(audit.scores):,} images. This page holds all it needs and makes no requests.</p></footer>
</body>
</html>
"""


def _section(name: str, heading: str, note: str, content: str) -> str:
    about = f'<p class="note">{note}</p>' if note else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{about}{content}</section>'


def _beside(chart: str, table: str) -> str:
    return f'<div class="beside">{chart}{table}</div>'


def _table(heads: Sequence[str], rows: str, caption: str, left: Collection[str] = (), tall: bool = False) -> str:
    columns = "".join(
        f'<th scope="col"{" class=left" if i == 0 or head in left else ""}>{head}</th>' for i, head in enumerate(heads)
    )
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _figure(audit: _Audit, i: int) -> str:
    score, label = audit.scores[i], "" if audit.labels is None else audit.labels[i]
    kind = "is-high" if score >= 0 else "is-low"
    picture = _image(audit.images[i], f"{label or audit.names[i]}, ρ {signed(score)}")
    return (
        f'<li class="{kind}"><figure title="{escape(audit.names[i])}">{picture}'
        f"<figcaption><b>{signed(score)}</b>{escape(label or audit.names[i])}</figcaption></figure></li>"
    )


def _interval(area: Estimate) -> str:
    return f"{area.low:.3f}–{area.high:.3f}"


def _image(image: Array, description: str, side: int = THUMBNAIL) -> str:
    """An ``<img>`` that holds its picture: a thumbnail in JPEG, or a tiny image pixel by pixel."""
    pixels = _picture(image)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    tiny = max(picture.size) <= TINY
    if not tiny:
        picture.thumbnail((side, side))
    kind, file = "png" if tiny else "jpeg", io.BytesIO()
    picture.save(file, kind.upper(), optimize=True)
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img{" class=tiny" if tiny else ""} {size} src="{source}" alt="{escape(description)}">'


def _picture(image: Any) -> Array:
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(f"an image is {pixels.dtype} {pixels.shape}, wanted uint8 (H, W, C) with 1 or 3 channels")
    return pixels


def _text(value: object) -> str:
    """A name that UTF-8 can hold, whatever bytes a file system had for it."""
    return str(value).encode(errors="backslashreplace").decode()
