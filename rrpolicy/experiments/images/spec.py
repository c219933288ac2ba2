"""What the image experiment consists of: classes that an expert never saw, two kinds of experts, two seeds.

A unit is a base and an expert with everything that is measured of them; the control's expert has seen all classes.
Variants share models and samples with the experiment and extract another reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rrpolicy.experiments import Recipe, section, spec
from rrpolicy.experiments.spec import Variant, check_names, variant_of

FINE_TUNED, SCRATCH = "fine-tuned", "scratch"
CASES: Mapping[str, str] = {
    FINE_TUNED: "the expert goes on from the base, on the images that are left",
    SCRATCH: "the expert begins anew on the images that are left",
}
CONTROL = "none"  # nothing is held out: the base goes on with all images
SEEDS = (13, 14)  # the recipe was found with seed 0; 1, 2 and 11 were looked at with earlier code
Pair = tuple[str, ...]


@dataclass(frozen=True)
class Unit(spec.Unit):
    """
    A unit of the image experiment: one base, one expert and the reward between them.

    :param held_out: classes that the expert has not seen; none for the control
    :param case: a name of :data:`CASES`
    :param seed: of training, samples and the images that are scored
    """

    held_out: Pair
    case: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Held-out classes, kind of expert and seed as they stand in the CSV."""
        return pair_text(self.held_out), self.case, self.seed


def pair_text(held_out: Pair) -> str:
    """``trouser+sneaker``; ``none`` for the control."""
    return "+".join(held_out) or CONTROL


def pairs_of(recipe: Recipe) -> list[Pair]:
    """
    The classes that are held out together, as the recipe's section ``[pairs]`` lists them.

    :raises ValueError: when it lists none
    """
    pairs = section(recipe, "pairs").get("removed")
    if not pairs or not all(isinstance(pair, list | tuple) and pair for pair in pairs):
        raise ValueError(f"recipe section [pairs]: removed is {pairs!r}, wanted lists of class names")
    return [tuple(str(name) for name in pair) for pair in pairs]


def with_pairs(recipe: Recipe, pairs: Sequence[str] | None) -> Recipe:
    """
    The recipe itself if it lists the pairs wanted, else with these in their place.

    :param pairs: such as ``trouser+sneaker`` or ``none``
    """
    asked = list(dict.fromkeys(name for name in pairs or () if name != CONTROL))
    if set(asked) <= {pair_text(pair) for pair in pairs_of(recipe)}:
        return recipe
    return {**recipe, "pairs": {"removed": [name.split("+") for name in asked]}}


def select(
    recipe: Recipe,
    pairs: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
) -> list[Unit]:
    """
    The units to be done, all of a seed before the next seed.

    :param recipe: names the pairs
    :param pairs: only these, such as ``trouser+sneaker`` or ``none``; None for all, or the first and the control for a
        quick run
    :param cases: only these; None for both, or the first for a quick run; the control is always fine-tuned
    :param seeds: only these; None for :data:`SEEDS`, or the first for a quick run
    :param quick: one seed, one pair and the control, one kind of expert, for what is not given
    :raises ValueError: for a name that is not known
    """
    known = {pair_text(pair): pair for pair in (*pairs_of(recipe), ())}
    check_names("pair", pairs, known)
    check_names("case", cases, CASES)
    few = 1 if quick else None
    pairs = pairs or [*[name for name in known if name != CONTROL][:few], CONTROL]
    cases, seeds = cases or list(CASES)[:few], seeds or SEEDS[:few]
    units = (
        Unit(known[pair], case, seed)
        for seed in seeds
        for pair in pairs
        for case in cases
        if pair != CONTROL or case == FINE_TUNED
    )
    return list(dict.fromkeys(units))


# ---------------------------------------------------------------------- variants

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

variant_named = partial(variant_of, VARIANTS, MAIN)
