"""Ablations and controls by name: each changes one thing of the experiment and goes through the same code.

An ablation takes something away from the method; a control takes the reason away, so that there is nothing to find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rrpolicy.experiments import Recipe, section
from rrpolicy.experiments.names import check_names

ExpertKind = Literal["tuned", "scratch", "second-base", "base"]
Source = Literal["base", "expert"]
Part = Literal["pair", "plans", "training", "peers"]
AGENTS = ("base", "discriminator", "steered", "expert")


@dataclass(frozen=True)
class Variant:
    """
    :param name: in the CSV; empty for the experiment itself
    :param about: what it shows, one line
    :param recipe: entries of the recipe's sections that are changed
    :param expert: fine-tuned from the base, trained from scratch, the base of the next seed, or the base itself
    :param sources: whose data the models are compared at
    :param unseen_base: steer the base of the next seed, of which the reward knows nothing
    :param n_rounds: on-policy rounds that follow the extraction
    :param shuffled: fit ρ to targets that belong to other events
    :param agents: who runs in the environment
    :param part: what is measured: the pair itself, other ways to plan with its base, agents trained on its reward, or
        other methods on the same data
    :param goals: which of each maze's goals are done unless others are asked for; None for all, empty for bases alone
    """

    name: str = ""
    about: str = "the experiment itself"
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    expert: ExpertKind = "tuned"
    sources: tuple[Source, ...] = ("base", "expert")
    unseen_base: bool = False
    n_rounds: int = 0
    shuffled: bool = False
    agents: tuple[str, ...] = ("base", "steered", "expert")
    part: Part = "pair"
    goals: tuple[int, ...] | None = None

    @property
    def has_goal(self) -> bool:
        """Whether the expert, and so the reward, depends on the goal."""
        return self.expert in ("tuned", "scratch")

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this variant's changes."""
        return {**recipe, **{name: {**section(recipe, name), **changes} for name, changes in self.recipe.items()}}


MAIN = Variant(agents=AGENTS)
_SMALL_DATA = {"base_transitions": 10_000, "expert_transitions": 10_000}
_LONG = {"total_timesteps": 16_000}
_NOISED = {"n_clean_levels": 0}
_CONTROL = ("base", "steered")

VARIANTS: Mapping[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("data-10k", "10 000 transitions for each agent", {"data": _SMALL_DATA}),
        Variant("step-head", "the per-step head steers, there is no other", {"extraction": {"heads": ["step"]}}),
        Variant("gradients-only", "no value matching", {"extraction": {"value_coef": 0.0}}),
        Variant("noised-states", "the step head never sees clean states", {"extraction": {"step_kwargs": _NOISED}}),
        Variant("rows-alike", "no weighting of rows", {"extraction": {"row_weighting": False}}),
        Variant("one-round", "one on-policy round", n_rounds=1),
        Variant("two-rounds", "two on-policy rounds", n_rounds=2),
        Variant("base-windows", "compared at base data only", sources=("base",)),
        Variant("expert-windows", "compared at expert data only", sources=("expert",)),
        Variant("expert-from-scratch", "the expert does not start from the base", expert="scratch"),
        Variant("ddim", "steering by DDIM, not DPM-Solver++", {"steering": {"sampler": "ddim"}}, agents=AGENTS),
        Variant("long-base", "bases alone, which learn four times as long", {"base": _LONG}, goals=()),
        Variant("plans", "bases alone: more denoising steps, the likeliest of several plans", part="plans", goals=()),
        Variant("unseen-base", "a base of another seed is steered by the same reward", unseen_base=True),
        Variant("second-base", "control: the expert is a second base", expert="second-base", agents=_CONTROL),
        Variant("identical", "control: the expert is the base", expert="base", agents=_CONTROL),
        Variant("shuffled", "control: targets belong to other events", shuffled=True, agents=_CONTROL),
        Variant("training", "PPO and SAC trained on the reward and on the true one", part="training", goals=(0, 3)),
        Variant("peers", "AIRL, GAIL and behaviour cloning on the expert's data", part="peers", goals=(0, 3)),
    )
}


def variant_named(name: str | None) -> Variant:
    """
    :param name: of :data:`VARIANTS`; None for the experiment itself
    :raises ValueError: for another name
    """
    check_names("variant", None if name is None else [name], VARIANTS)
    return MAIN if name is None else VARIANTS[name]
