"""Ablations of the image experiment by name; they share models and samples with it and extract another reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rrpolicy.experiments import Recipe
from rrpolicy.experiments.names import check_names


@dataclass(frozen=True)
class Variant:
    """
    :param name: in the CSV; empty for the experiment itself
    :param about: what it shows, one line
    :param recipe: entries of the recipe's sections that are changed
    """

    name: str = ""
    about: str = "the experiment itself"
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this variant's changes."""
        return {**recipe, **{name: {**recipe.get(name, {}), **changes} for name, changes in self.recipe.items()}}


MAIN = Variant()
GRADIENTS_ONLY = "gradients-only"
_NO_VALUES = {"extraction": {"value_coef": 0.0, "value_units": False}}
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
    check_names("variant", None if name is None else [name], VARIANTS)
    return MAIN if name is None else VARIANTS[name]
