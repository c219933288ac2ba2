"""Ablations of the image experiment by name; they share models and samples with it and extract another reward."""

from __future__ import annotations

from collections.abc import Mapping

from rrpolicy.experiments.spec import Variant, variant_of

MAIN = Variant()
GRADIENTS_ONLY = "gradients-only"
_NO_VALUES = {"extraction": {"value_coef": 0.0, "value_units": False}, "scratch_extraction": {"value_coef": 0.0}}
_CONVOLUTIONS = {"extraction": {"window_kwargs": {"network": "conv", "width": 48}}}
_NO_ROUND = {"rounds": {"n": 0}}
VARIANTS: Mapping[str, Variant] = {
    one.name: one
    for one in (
        Variant(GRADIENTS_ONLY, "without value matching", _NO_VALUES),
        Variant("convolutions", "ρ's network is a plain one and starts from nothing", _CONVOLUTIONS),
        Variant("no-round", "as many gradient steps, none of them where ρ leads the base", _NO_ROUND),
    )
}


def variant_named(name: str | None) -> Variant:
    """
    :param name: of :data:`VARIANTS`; None for the experiment itself
    :raises ValueError: for another name
    """
    return variant_of(VARIANTS, name, MAIN)
