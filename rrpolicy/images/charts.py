"""Charts for pages that must stand alone: histograms in rows, and a line with its band.

Shapes are SVG stretched to whatever width there is; text is HTML laid over them, so it keeps its size on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from rrpolicy.common.typing import Array

N_BINS = 48
LABEL = 60  # characters of a group's name, its last ones
N_ROBUST = 8  # scores from which on single ones do not stretch the axis
OUTER, ROOM = 0.005, 0.5  # share of scores left aside at each end, and room beyond the others, of their width
CSS = """
.rows { display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); column-gap: .75rem; align-items: end; }
.rows b { font-weight: 500; text-align: right; overflow-wrap: anywhere; line-height: 1.15; padding-bottom: .1rem; }
.plot { position: relative; height: 2.6rem; border-bottom: 1px solid var(--line); }
.plot svg, .curve svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot i, .curve i { position: absolute; width: .6rem; height: .6rem; margin: -.3rem; border-radius: 50%; }
.plot i { bottom: 0; background: var(--ink); border: 1.5px solid #fff; box-sizing: border-box; margin-top: 0; }
.curve i { background: var(--high); }
.ticks { position: relative; height: 1.5rem; grid-column: 2; }
.ticks span, .curve span { position: absolute; transform: translateX(-50%); font-size: .8rem; color: var(--faint);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.ticks span { top: .3rem; }
.axis { grid-column: 2; text-align: right; font-size: .85rem; color: var(--faint); }
.curve { position: relative; height: 15rem; margin: .5rem .6rem 0 2.4rem; }
.curve span.y { transform: translate(-100%, -50%); left: -.5rem; }
.curve span.chance { transform: translateY(-125%); left: .3rem; }
.curve-ticks { margin: 0 .6rem 0 2.4rem; }
path, line, polyline { vector-effect: non-scaling-stroke; }
.grid { stroke: var(--line); stroke-width: 1; }
.mark { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 4 4; }
.bars { fill: var(--high); } .bars.low { fill: var(--low); }
.band { fill: var(--high); opacity: .18; } .line { fill: none; stroke: var(--high); stroke-width: 2.5; }
"""

Scale = Callable[[float], float]


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, as typeset: +0.31, −7.60."""
    return f"{value:+.{digits}f}".replace("-", "−")


def histograms(
    scores: Any,
    groups: Mapping[str, Any],
    unwanted: Collection[str] = (),
    axis: str = "ρ in nats",
    has_zero: bool = True,
) -> str:
    """
    One histogram per group over a shared axis, each scaled to its own height, with a dot at its mean.

    Few scores far from all others do not stretch the axis: they are drawn in its last bars, and counted below.

    :param scores: (n,)
    :param groups: name -> bool (n,), in the order they are drawn
    :param unwanted: groups drawn in the warning colour
    :param axis: what the scores are
    :param has_zero: whether their zero means something and is marked
    :return: HTML
    """
    values = np.asarray(scores, dtype=np.float64)
    least, most = axis_ends(values)
    beyond = _beyond(values, least, most)
    margin = 0.03 * (most - least) or 0.5
    low, high = least - margin, most + margin
    x, ticks = _scale(low, high), _ticks(low, high)
    grid = "".join(_upright(x(tick), "mark" if tick == 0 and has_zero else "grid") for tick in ticks)
    edges = np.linspace(low, high, N_BINS + 1)
    rows = []
    for name, mask in groups.items():
        of_group = values[np.asarray(mask)]
        shown = of_group.clip(low, high)
        bars = f'<path class="bars{" low" if name in unwanted else ""}" d="{_bars(shown, edges, x)}"/>'
        mean = f'<i style="left:{x(float(np.clip(of_group.mean(), low, high))):.2f}%"></i>' if len(of_group) else ""
        short = name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"
        rows.append(f'<b>{escape(short)}</b><div class="plot">{_svg(grid + bars)}{mean}</div>')
    digits = _digits(ticks)
    labels = "".join(
        f'<span style="left:{x(tick):.2f}%">{signed(tick, digits) if tick else "0"}</span>' for tick in ticks
    )
    return (
        f'<div class="rows" role="img" aria-label="Histograms of ρ; the table below has the numbers">{"".join(rows)}'
        f'<div class="ticks">{labels}</div><div class="axis">{escape(axis)}{beyond}</div></div>'
    )


def axis_ends(values: Array) -> tuple[float, float]:
    """
    Ends of an axis that shows nearly all values well.

    :param values: (n,), n >= 1
    :return: lowest and highest value; from 8 values on, no further than half the width beyond the inner ones, which are
        those without 0.5 %, and at least one, at each end
    """
    ordered = np.sort(values)
    low, high = float(ordered[0]), float(ordered[-1])
    if len(ordered) < N_ROBUST:
        return low, high
    outer = max(1, round(OUTER * len(ordered)))
    inner_low, inner_high = float(ordered[outer]), float(ordered[-1 - outer])
    room = ROOM * (inner_high - inner_low)
    return max(low, inner_low - room), min(high, inner_high + room)


def _beyond(values: Array, low: float, high: float) -> str:
    """How many values lie beyond the ends, and how far."""
    below, above = int((values < low).sum()), int((values > high).sum())
    told = [
        f"{n:,} {side}, {reach} {signed(end)}"
        for n, side, reach, end in (
            (below, "further left", "down to", values.min()),
            (above, "further right", "up to", values.max()),
        )
        if n
    ]
    return f"<br>In the last bars: {'; '.join(told)}" if told else ""


def curve(levels: Sequence[int], values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> str:
    """
    AUROC over noise levels, with its interval as a band and the line of pure chance.

    :param levels: (n,) noise levels, increasing
    :param values: (n,) areas
    :param lows: (n,) lower ends of the intervals
    :param highs: (n,) upper ends
    :return: HTML
    """
    floor = min(0.4, float(np.floor(min(lows) * 10) / 10))
    x, upwards = _scale(min(levels), max(max(levels), min(levels) + 1)), _scale(floor, 1.0)
    marks = [float(tick) for tick in np.arange(floor, 1.01, 0.1)]
    grid = "".join(
        f'<line class="grid" x1="0" x2="100" y1="{100 - upwards(tick):.2f}" y2="{100 - upwards(tick):.2f}"/>'
        for tick in marks
    )
    half = f"{100 - upwards(0.5):.2f}"
    there, back = list(zip(levels, highs, strict=True)), list(zip(levels, lows, strict=True))[::-1]
    line = list(zip(levels, values, strict=True))
    shapes = (
        f'{grid}<line class="mark" x1="0" x2="100" y1="{half}" y2="{half}"/>'
        f'<path class="band" d="M{_points(there + back, x, upwards)}Z"/>'
        f'<path class="line" d="M{_points(line, x, upwards)}"/>'
    )
    dots = "".join(f'<i style="left:{x(a):.2f}%;top:{100 - upwards(b):.2f}%"></i>' for a, b in line)
    names = "".join(f'<span class="y" style="top:{100 - upwards(tick):.2f}%">{tick:.1f}</span>' for tick in marks)
    shown = sorted({levels[round(i)] for i in np.linspace(0, len(levels) - 1, min(len(levels), 7))})
    below = "".join(f'<span style="left:{x(level):.2f}%">{level}</span>' for level in shown)
    return (
        '<div role="img" aria-label="AUROC over noise levels; the table below has the numbers">'
        f'<div class="curve">{_svg(shapes)}{dots}{names}'
        f'<span class="chance" style="top:{half}%">chance</span></div>'
        f'<div class="ticks curve-ticks">{below}</div><div class="axis curve-ticks">noise level t</div></div>'
    )


def _bars(values: Array, edges: Array, x: Scale) -> str:
    """The bars of one histogram as a single outline; the highest nearly fills the row."""
    counts = np.histogram(values, edges)[0]
    tallest = max(int(counts.max()), 1)
    return "".join(
        f"M{x(edges[i]):.2f} 100V{100 - 92 * count / tallest:.1f}H{x(edges[i + 1]):.2f}V100Z"
        for i, count in enumerate(counts)
        if count
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between two ends."""
    rough = (high - low) / 6
    power = 10.0 ** float(np.floor(np.log10(rough)))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [float(i * step) for i in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    """Decimals that distinguish neighbouring ticks."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return max(0, -int(np.floor(np.log10(step) + 1e-9)))


def _upright(at: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{at:.2f}" x2="{at:.2f}" y1="0" y2="100"/>'


def _scale(low: float, high: float) -> Scale:
    """low..high to 0..100."""
    return lambda value: 100 * (float(value) - low) / (high - low)


def _points(pairs: Sequence[tuple[float, float]], x: Scale, upwards: Scale) -> str:
    return "L".join(f"{x(a):.2f} {100 - upwards(b):.2f}" for a, b in pairs)


def _svg(content: str) -> str:
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{content}</svg>'
