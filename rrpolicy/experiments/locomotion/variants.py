"""Ablations, sweeps and uses of the locomotion experiment by name; all of them share what was trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rrpolicy.experiments import Recipe, section
from rrpolicy.experiments.names import check_names

Part = Literal["pair", "sweep", "transfer", "use", "finetuning", "offline"]
AGENTS = ("base", "discriminator", "offline", "steered", "exact", "expert", "cloning", "demonstrator")
_FEW = ("base", "steered", "expert")


@dataclass(frozen=True)
class Variant:
    """
    :param name: in the CSV; empty for the experiment itself
    :param about: what it shows, one line
    :param recipe: entries of the recipe's sections that are changed
    :param agents: who runs in the environment
    :param part: what is measured: the pair, steering with other options, other bases, ρ as a reward, or who else learns
        from rewards
    """

    name: str = ""
    about: str = "the experiment itself"
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    agents: tuple[str, ...] = _FEW
    part: Part = "pair"

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this variant's changes."""
        return {**recipe, **{name: {**section(recipe, name), **changes} for name, changes in self.recipe.items()}}


MAIN = Variant(agents=AGENTS)
_UNET = {"policy": "UnetPolicy", "policy_kwargs": {"multipliers": [1, 2]}}  # eight rows are halved once
_TRANSFORMER = {"policy": "TransformerPolicy", "policy_kwargs": {}}
_ALIKE = {"first_action_weight": 1.0}
_STATES = {"controller": "inverse-dynamics"}
# Gradients leave ρ of a window free up to a function of its pinned first state: values tie windows of different states
# together. The step head scores single states and actions, which can be paid.
_AS_REWARD = {"extraction": {"heads": ["window", "step"], "value_coef": 0.03}}

VARIANTS: Mapping[str, Variant] = {
    one.name: one
    for one in (
        Variant("sweep", "the same ρ at other scales, denoising steps, chunks of actions and best-of-N", part="sweep"),
        Variant("transfer", "the same ρ steers other bases: seed, early checkpoint, other data", part="transfer"),
        Variant("use", "ρ of steps and windows against the true reward and return", _AS_REWARD, part="use"),
        Variant("finetune", "SAC from the base's data, paid ρ or the true reward", _AS_REWARD, part="finetuning"),
        Variant("offline-rl", "TD3+BC on the data of the base and of both, true rewards told", part="offline"),
        Variant("one-round", "one closed-loop round", {"rounds": {"n_rounds": 1}}),
        Variant("rows-alike", "no weighting of rows", {"extraction": {"row_weighting": False}}, (*_FEW, "offline")),
        Variant(
            "actions-alike",
            "no weighting of first actions, which are acted upon",
            {"extraction": _ALIKE},
            (*_FEW, "offline"),
        ),
        Variant("values", "with value matching", {"extraction": {"value_coef": 0.03}}, (*_FEW, "offline")),
        Variant("unet", "U-Net as the backbone of both agents", {"agent": _UNET}, (*_FEW, "exact")),
        Variant("transformer", "a transformer as the backbone", {"agent": _TRANSFORMER}, (*_FEW, "exact")),
        Variant(
            "inverse-dynamics",
            "states are planned, actions follow, so none weigh more",
            {"agent": _STATES, "extraction": _ALIKE},
            (*_FEW, "exact"),
        ),
    )
}


def variant_named(name: str | None) -> Variant:
    """
    :param name: of :data:`VARIANTS`; None for the experiment itself
    :raises ValueError: for another name
    """
    check_names("variant", None if name is None else [name], VARIANTS)
    return MAIN if name is None else VARIANTS[name]
