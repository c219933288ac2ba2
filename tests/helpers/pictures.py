"""Coarse pictures and films of a moment, which cost next to nothing."""

from __future__ import annotations

import pytest


def small_pictures(
    patch: pytest.MonkeyPatch, seconds: float = 0.4, when: tuple[float, ...] = (0.0, 0.08, 0.16)
) -> None:
    """
    Make what experiments and demos draw small.

    :param seconds: of a film
    :param when: seconds of a film that a picture shows
    """
    patch.setattr("rrpolicy.experiments.locomotion.film.SECONDS", seconds)
    patch.setattr("rrpolicy.experiments.demos.robot.WHEN", when)
    patch.setattr("rrpolicy.experiments.report.DPI", 30)
    patch.setattr("rrpolicy.experiments.images.figures.DPI", 30)
