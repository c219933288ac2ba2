"""Sections of the comparison's page about where the difference lies: features, regions, examples, one start steered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape

import numpy as np
from matplotlib.figure import Figure

from rrpolicy.common.typing import Array
from rrpolicy.comparison.attribution import CARRIED
from rrpolicy.comparison.pictures import attribution_map, distribution_picture, windows_picture
from rrpolicy.comparison.sections import Drawn, interval, number
from rrpolicy.comparison.tree import Tree
from rrpolicy.images.page import plain_text, section, table

N_DISTRIBUTIONS = 6
N_EXAMPLES = 3  # windows of each kind


def attribution(drawn: Drawn) -> str:
    """Which features and rows carry ρ."""
    comparison, found = drawn.comparison, drawn.comparison.attribution
    if found is None:
        return ""
    shares, order = found.by_column(), np.argsort(-found.by_column(), kind="stable")
    carried = found.carriers()
    rows = "".join(
        f'<tr><th scope="row">{escape(plain_text(comparison.features.columns[i]))}</th><td>{shares[i]:.0%}</td>'
        f"<td>{interval(found.of_column(int(i)))}</td><td>{_when(drawn, int(i))}</td></tr>"
        for i in order
    )
    picture = drawn.picture(
        "attribution", attribution_map(found.mean, comparison.features), "attribution by time and feature"
    )
    names = ", ".join(plain_text(comparison.features.columns[i]) for i in carried) or "nothing"
    note = (
        f"{len(carried)} of {len(shares)} features carry at least {CARRIED:.0%}: {names}. Integrated gradients of ρ "
        "from each window of the first model to that of the second, from the same start and noise; they sum to the "
        f"difference of ρ (largest gap {found.completeness:.1%} of its mean)."
    )
    heads = ("feature", "share", "nats a window", "mostly")
    content = f"{picture}{table(heads, rows, 'Attribution of ρ to features', tall=True)}"
    return section("attribution", "What carries the difference", escape(note), content)


def _when(drawn: Drawn, column: int) -> str:
    """The row at which a feature carries most."""
    assert drawn.comparison.attribution is not None
    row = int(np.abs(drawn.comparison.attribution.mean[:, column]).argmax())
    return escape(drawn.comparison.features.when(row)) or "–"


def distributions(drawn: Drawn) -> str:
    """The features that carry ρ, under both models."""
    comparison, found = drawn.comparison, drawn.comparison.attribution
    if found is None or not found.carriers():
        return ""
    base, expert = (comparison.features.windows(x0) for x0 in (comparison.samples.base, comparison.samples.expert))
    figures = []
    for i in found.carriers()[:N_DISTRIBUTIONS]:
        row = int(np.abs(found.mean[:, i]).argmax())
        name = plain_text(comparison.features.name(row, i))
        figure = distribution_picture(base[:, row, i], expert[:, row, i], name, comparison.names)
        figures.append(f"<li>{drawn.picture(f'distribution-{i}', figure, f'distribution of {name}')}</li>")
    note = "Environment units, at the moment at which each feature carries most."
    return section("distributions", "How these features are distributed", note, _list(figures))


def _list(items: list[str]) -> str:
    return f'<ul class="figures">{"".join(items)}</ul>'


def regions(drawn: Drawn) -> str:
    """Two small trees: where the models differ, and what ρ prefers."""
    found = drawn.comparison
    if found.regions is None or found.preferences is None:
        return ""
    where = _tree(found.regions, "KL there", "Typical divergence of windows from these starts, nats", math.expm1)
    what = _tree(found.preferences, "mean ρ", "Mean ρ of windows of both models, nats")
    note = (
        "Trees of at most three questions. The first explains how far the models are apart by what is known at the "
        "start of a window, the second explains ρ by the whole window. Fidelity is R² on windows that the tree was not "
        "grown from; a low one says that no small tree describes it."
    )
    content = (
        f'<div class="two"><div><h3>Where they differ, fidelity {number(found.regions.fidelity, 2)}</h3>{where}</div>'
        f"<div><h3>What ρ prefers, fidelity {number(found.preferences.fidelity, 2)}</h3>{what}</div></div>"
    )
    return section("regions", "Where the difference lives", note, content)


def _tree(tree: Tree, value: str, caption: str, unit: Callable[[float], float] = float) -> str:
    rows = "".join(
        f'<tr><td class="text">{escape(plain_text(" and ".join(leaf.conditions) or "everywhere"))}</td>'
        f"<td>{number(unit(leaf.mean))}</td><td>{leaf.share:.0%}</td></tr>"
        for leaf in tree.leaves()
    )
    return table(("region", value, "share"), rows, caption)


def examples(drawn: Drawn) -> str:
    """Windows with the highest and the lowest ρ, and those on which the ensemble disagrees most."""
    comparison, rho = drawn.comparison, drawn.comparison.rho
    if rho is None or comparison.members is None:
        return ""
    order = np.argsort(-rho, kind="stable")
    kinds = [("highest ρ", order[:N_EXAMPLES]), ("lowest ρ", order[::-1][:N_EXAMPLES])]
    if len(comparison.members) > 1:
        kinds.append(("most disputed", np.argsort(-comparison.members.std(axis=0, ddof=1), kind="stable")[:N_EXAMPLES]))
    items = []
    for kind, chosen in kinds:
        for k, i in enumerate(chosen):
            items.append(f"<li>{_example(drawn, f'{kind.split()[0]}-{k + 1}', kind, int(i))}</li>")
    note = "Each window beside that of the other model from the same start and noise."
    return section("examples", "Windows at the extremes", note, _list(items))


def _example(drawn: Drawn, file: str, kind: str, i: int) -> str:
    comparison = drawn.comparison
    assert comparison.members is not None and comparison.rho is not None
    n = len(comparison.samples)
    pair = {
        name: comparison.features.windows(x0[i % n : i % n + 1])
        for name, x0 in zip(comparison.names, (comparison.samples.base, comparison.samples.expert), strict=True)
    }
    image = drawn.picture(file, _windows(drawn, pair), f"window with {kind}")
    spread = f", ensemble ± {number(comparison.members[:, i].std(ddof=1), 2)}" if len(comparison.members) > 1 else ""
    of = escape(plain_text(comparison.names[i // n]))
    return (
        f"<figure>{image}<figcaption><b>{kind}</b>a window of {of}: ρ {number(float(comparison.rho[i]))} nats{spread}"
        "</figcaption></figure>"
    )


def _windows(drawn: Drawn, windows: Mapping[str, Array]) -> Figure:
    comparison = drawn.comparison
    carried = comparison.attribution.carriers() if comparison.attribution is not None else []
    return windows_picture(windows, comparison.features, carried, comparison.maze)


def counterfactual(drawn: Drawn) -> str:
    """One start, and what the base, the steered base and the expert make of it."""
    found = drawn.comparison.counterfactual
    if found is None:
        return ""
    items = []
    names = list(found.windows)
    for i, name in enumerate(names):
        figure = _windows(drawn, {name: found.windows[name]})
        image = drawn.picture(f"counterfactual-{i}", figure, f"windows of {name}")
        items.append(f"<li><figure>{image}<figcaption><b>{escape(plain_text(name))}</b></figcaption></figure></li>")
    note = (
        "The start at which the models differ most, with the same noise for all. Steering at 1 with an exact ρ makes "
        "the first model the second."
    )
    clip = "" if drawn.comparison.clip is None else drawn.comparison.clip.html()
    return section("counterfactual", "One start, steered", note, _list(items) + clip)
