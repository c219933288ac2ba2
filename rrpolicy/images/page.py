"""Pieces of pages that must stand alone: pictures are data URIs, style is inline, and there is no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from rrpolicy.common.typing import Array

THUMBNAIL = 160  # pixels of an embedded picture's longer side at most
TINY = 64  # pictures up to this size keep every pixel

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
h2 { font-size: 1.3rem; margin: 0 0 .25rem; line-height: 1.25; } h3 { font-size: 1rem; margin: 0 0 .6rem;
  overflow-wrap: anywhere; }
p { margin: 0 0 1rem; max-width: 44rem; overflow-wrap: anywhere; } .note { color: var(--faint); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: .75rem; padding: 1.25rem;
  margin: 1.25rem 0; min-width: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.facts div { min-width: 0; background: var(--paper); border: 1px solid var(--line); border-radius: .75rem;
  padding: .8rem 1rem; }
.facts dt { color: var(--faint); font-size: .9rem; } .facts dd { margin: 0; font-size: 1.45rem; font-weight: 600;
  overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; line-height: 1.3; } .facts small { display: block; font-size: .8rem;
  font-weight: 400; color: var(--faint); }
.two { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.two > div { min-width: 0; }
ul.images { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(4.75rem, 1fr)); }
.images > li { min-width: 0; } figcaption span { display: block; color: var(--faint); }
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
th[scope=row] { overflow-wrap: anywhere; min-width: 6.5rem; } td small { color: var(--faint); }
th[scope=row] small { color: var(--low); } th small, td small { display: block; font-weight: 400; font-size: .8rem; }
td.left { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; } td img { width: 2.5rem; margin-left: auto; }
.beside { display: grid; gap: 1.25rem; } .beside > * { min-width: 0; }
@media (min-width: 60rem) {
  .beside { grid-template-columns: minmax(0, 1fr) fit-content(36rem); gap: 2rem; align-items: start; }
  th, td { padding: .35rem .6rem; } }
@media (max-width: 30rem) { .facts div:last-child:nth-child(odd) { grid-column: 1 / -1; } section { padding: 1rem; } }
summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
.sets { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr)); }
.prompts { display: grid; gap: 1.25rem; } .prompts > div, .sets > div { min-width: 0; }
.prompts ul.images { grid-template-columns: repeat(auto-fill, minmax(6.5rem, 10rem)); }
.sets ul.images { grid-template-columns: repeat(4, 1fr); gap: .35rem; }
"""
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def page(title: str, meaning: str, sections: Sequence[str], footer: str, css: str = "") -> str:
    """
    A whole page, which may load nothing.

    :param title: text
    :param meaning: text, the first paragraph
    :param sections: HTML; empty ones are left out
    :param footer: text
    :param css: further style
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{CSS}{css}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(meaning)}</p>
</header>
<main>
{chr(10).join(section for section in sections if section)}
</main>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""


def section(name: str, heading: str, note: str, content: str) -> str:
    """A section with a heading, a note where there is one, and HTML."""
    about = f'<p class="note">{note}</p>' if note else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{heading}</h2>{about}{content}</section>'


def beside(chart: str, table: str) -> str:
    """A chart and its table, side by side where there is room."""
    return f'<div class="beside">{chart}{table}</div>'


def table(heads: Sequence[str], rows: str, caption: str, left: Collection[str] = (), tall: bool = False) -> str:
    """
    A table that scrolls.

    :param heads: text of its columns, the first of which names the rows
    :param rows: HTML
    :param caption: text
    :param left: heads of columns of text
    """
    columns = "".join(
        f'<th scope="col"{" class=left" if i == 0 or head in left else ""}>{head}</th>' for i, head in enumerate(heads)
    )
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def image_tag(image: Array, description: str, side: int = THUMBNAIL) -> str:
    """An ``<img>`` that holds its picture: a thumbnail in JPEG, or a tiny image pixel by pixel."""
    pixels = checked_picture(image)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    tiny = max(picture.size) <= TINY
    if not tiny:
        picture.thumbnail((side, side))
    kind, file = "png" if tiny else "jpeg", io.BytesIO()
    picture.save(file, kind.upper(), optimize=True)
    source = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img{" class=tiny" if tiny else ""} {size} src="{source}" alt="{escape(description)}">'


def checked_picture(image: Any) -> Array:
    """
    An image as an array, after checks of its type and shape.

    :raises ValueError: for something else than uint8 (H, W, C) with 1 or 3 channels
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(f"an image is {pixels.dtype} {pixels.shape}, wanted uint8 (H, W, C) with 1 or 3 channels")
    return pixels


def plain_text(value: object) -> str:
    """A name that UTF-8 can hold, whatever bytes a file system had for it."""
    return str(value).encode(errors="backslashreplace").decode()
