"""Sections of the comparison's page with numbers: distances, the null, the fit, noise levels, limits."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rrpolicy.common.stats import Measure
from rrpolicy.comparison.divergence import total_variation_bound
from rrpolicy.comparison.pictures import png, write_png
from rrpolicy.comparison.result import Findings
from rrpolicy.images.page import plain_text, section, table

LIMITS = (
    "Both models are compared at their own samples and at the conditions that are named above, not in an environment.",
    "KL is that of the denoising processes. It is the windows' own when both models are exact scores of noised "
    "densities, and an upper bound of it for ancestral sampling otherwise; the part below the cleanest noise level is "
    "extrapolated.",
    "ρ compares two models with one another: it says what the second makes likelier than the first, not what is good.",
    "Attribution and trees explain ρ, a network that was fitted to the two models; its fit stands below.",
    "Intervals are of the windows that were drawn. They do not cover another training of either model; the null does.",
)


@dataclass(eq=False)
class Drawn:
    """
    A comparison and the folder that its pictures are written to.

    :param folder: made when missing
    """

    comparison: Findings
    folder: Path
    written: list[str] = field(default_factory=list)

    def picture(self, name: str, figure: Figure, description: str) -> str:
        """An ``<img>`` that holds a figure, which is also written as ``NAME.png``."""
        content = png(figure)
        write_png(content, self.folder / f"{name}.png")
        self.written.append(f"{name}.png")
        source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return f'<img class="figure" src="{source}" alt="{escape(description)}">'


def number(value: float, digits: int = 3) -> str:
    """A number as typeset; a dash where it is not known."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}".replace("-", "−").replace("inf", "∞")


def interval(measure: Measure, digits: int = 3) -> str:
    """The interval of a number, small, below it."""
    return (
        f"{number(measure.value, digits)}<small>{number(measure.low, digits)} to {number(measure.high, digits)}</small>"
    )


def facts(drawn: Drawn) -> str:
    """The main numbers."""
    found = drawn.comparison
    base, expert = (escape(plain_text(name)) for name in found.names)
    forward, backward = found.forward.total, found.backward.total
    items = [
        (f"KL({expert}‖{base})", number(forward.value), _range(forward, "nats a window")),
        (f"KL({base}‖{expert})", number(backward.value), _range(backward, "nats a window")),
        ("Total variation", _variation(found), "held-out samples; Pinsker, Bretagnolle–Huber"),
        ("Null test", f"p = {number(found.null.p_value, 2)}", f"{len(found.null.null)} equal trainings"),
    ]
    if found.null.null:
        items.append(("Against the null", f"{number(found.null.times_null)} ×", "the median of equal trainings"))
    if found.fit is not None:
        items.append(("R² of ρ", f"{found.fit.r2_held_out:.2f}", f"steered {found.fit.r2_steered:.2f}"))
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in items)
    return f'<dl class="facts">{shown}</dl>'


def _variation(found: Findings) -> str:
    """Both bounds, the lower one where there is a fit."""
    most = f"{found.total_variation:.2f}"
    return f"≤ {most}" if found.fit is None else f"{found.fit.calibration.separation.low:.2f} to {most}"


def _range(measure: Measure, unit: str) -> str:
    return f"{unit}, 95 % {number(measure.low)} to {number(measure.high)}"


def null(drawn: Drawn) -> str:
    """Whether two trainings of one model differ as much."""
    test = drawn.comparison.null
    if not test.null:
        return section("null", "Is there anything to find?", escape(test.sentence), "")
    values = [("the two models", test.effect), *((f"equal training {i + 1}", one) for i, one in enumerate(test.null))]
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{number(value)}</td><td>{total_variation_bound(value):.2f}</td></tr>'
        for name, value in values
    )
    note = (
        f"{test.sentence} The null: {test.source}. p is that of one more draw from their log-normal distribution "
        f"(Student's t); by ranks alone it is {number(test.rank_p_value, 2)}."
    )
    caption = "Mean of both KL, nats a window, and the bound of total variation"
    content = table(("pair", "KL", "total variation ≤"), rows, caption)
    return section("null", "Is there anything to find?", escape(note), content)


def fit(drawn: Drawn) -> str:
    """How far ρ explains the two models."""
    found = drawn.comparison.fit
    if found is None:
        return ""
    levels = "".join(
        f'<tr><th scope="row">{level}</th><td>{number(value, 2)}</td></tr>'
        for level, value in found.r2_by_level.items()
    )
    curls = ", ".join(number(one, 2) for one in found.null_curl) or "unknown"
    rows = [
        ("R² at noised samples", number(found.r2_held_out, 2), "the share of the score difference that ∇ρ explains"),
        ("R² where the steered base goes", number(found.r2_steered, 2), "where steering with ρ has to hold"),
        ("share that no scalar explains", interval(found.curl, 2), f"antisymmetric part; equal trainings: {curls}"),
        ("agreement of the ensemble", number(found.agreement, 2), "lowest correlation of two extractions"),
        ("KL by ρ alone", number(found.lower_bound), "a lower bound of KL (Donsker–Varadhan)"),
    ]
    if found.unknown is not None:
        about = "steered windows that neither model makes, of whose own samples 1 % are called so"
        rows.append(("off both models", interval(found.unknown, 2), about))
    body = "".join(
        f'<tr><th scope="row">{name}</th><td>{value}</td><td class="text">{note}</td></tr>'
        for name, value, note in rows
    )
    fits = table(("measure", "value", "what it is"), body, "How well ρ fits", ("what it is",))
    content = (
        f'<div class="two"><div>{fits}</div>'
        f"<div>{table(('noise level', 'R²'), levels, 'R² by noise level, 0 the cleanest')}</div></div>"
    )
    return section("fit", "Can ρ be believed?", "", content)


def calibration(drawn: Drawn) -> str:
    """ρ as log odds."""
    if drawn.comparison.fit is None:
        return ""
    found = drawn.comparison.fit.calibration
    rows = [("AUROC of ρ", interval(found.auroc)), ("log loss of ρ", interval(found.log_loss))]
    if found.classifier_auroc is not None and found.classifier_log_loss is not None:
        rows += [
            ("AUROC of a classifier", interval(found.classifier_auroc)),
            ("log loss of that classifier", interval(found.classifier_log_loss)),
            ("correlation with its log odds", number(found.correlation, 2)),
        ]
    rows.append(("total variation, at least", interval(found.separation, 2)))
    rows += [("slope", number(found.slope, 2)), ("intercept", number(found.intercept, 2))]
    left = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    right = "".join(
        f'<tr><th scope="row">{number(one.rho)}</th><td>{one.predicted:.2f}</td>'
        f"<td>{interval(one.observed, 2)}</td></tr>"
        for one in found.bins
    )
    note = (
        "Where ρ is a log density ratio, it is the log odds of a sample being the second model's, at equal numbers of "
        "both: slope 1, intercept 0. The classifier was trained on other samples of the two models."
    )
    content = (
        f'<div class="two"><div>{table(("measure", "value"), left, "ρ as a classifier")}</div>'
        f"<div>{table(('mean ρ', 'predicted', 'observed'), right, 'Share of the second model by ρ')}</div></div>"
    )
    return section("calibration", "Are its values log odds?", note, content)


def levels(drawn: Drawn) -> str:
    """What each noise level adds."""
    found = drawn.comparison
    rest = np.cumsum(found.forward.parts.mean(axis=0)[::-1])[::-1]
    pairs = zip(found.forward.levels, found.forward.by_level(), rest, found.backward.by_level(), strict=True)
    rows = "".join(
        f'<tr><th scope="row">{level}</th><td>{interval(there)}</td><td>{number(float(noised))}</td>'
        f"<td>{interval(back)}</td></tr>"
        for level, there, noised, back in pairs
    )
    base, expert = (escape(plain_text(name)) for name in found.names)
    heads = ("noise level", f"KL({expert}‖{base})", "from here on", f"KL({base}‖{expert})")
    content = table(heads, rows, "Nats a window that each noise level adds, with 95 % intervals", tall=True)
    note = (
        "Low levels are about details, high ones about where a window goes. Level 0 includes what lies below it; two "
        "networks differ most there by their errors. The third column is the KL of windows noised to that level."
    )
    return section("levels", "At which noise levels", note, content)


def limits(drawn: Drawn) -> str:
    """What the numbers do not say."""
    groups = drawn.comparison.samples.groups
    resampled = "by window" if groups is None else "by episode"
    items = "".join(f"<li>{escape(one)}</li>" for one in (*LIMITS, f"Intervals are resampled {resampled}."))
    return section("limits", "What this does not say", "", f"<ul>{items}</ul>")
