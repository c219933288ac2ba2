"""What the locomotion experiment consists of: robots, kinds of data for each, three seeds, and its variants.

Nuti et al. 2023, section 5.2. A unit is a pair of agents with everything that is measured of it; variants share what
was trained for the experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from rrpolicy.experiments.recipes import Recipe, all_recipes, cases_of, environment_of, recipe_of, section
from rrpolicy.experiments.spec import Unit, Variant, check_names, variant_of
from rrpolicy.experiments.task import Task

PAPER = ("hopper", "halfcheetah", "walker2d")  # names of the recipes of the paper's robots
CASES: Mapping[str, str] = {
    "noisy": "base: the demonstrator with noise on its actions; the same gait",
    "replay": "base: the replay buffer of a SAC run, expert: its last policy",
    "mixture": "base: other agents; another gait",
}
SEEDS = (1, 2, 3)  # seen while recipes were found with seed 0; those that report: tuning_log.toml


def known_robots() -> list[str]:
    """Names of recipes that define how their demonstrations are made; the paper's robots come first."""
    names = [name for name, recipe in all_recipes().items() if cases_of(recipe)]
    return sorted(names, key=lambda name: PAPER.index(name) if name in PAPER else len(PAPER))


@dataclass(frozen=True)
class RobotUnit(Unit):
    """
    One pair of agents of a robot.

    :param robot: name of a recipe, see :func:`known_robots`
    :param case: a kind of demonstrations, of :data:`CASES` or one that the recipe's section ``[data]`` has
    :param seed: of training and episodes
    :param env_id: the environment; default: the recipe's
    """

    robot: str
    case: str
    seed: int
    env_id: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.env_id:
            object.__setattr__(self, "env_id", environment_of(recipe_of(self.robot)))

    @property
    def key(self) -> tuple[str, str, int]:
        """Robot, case and seed as they stand in the CSV."""
        return self.robot, self.case, self.seed

    @property
    def task(self) -> Task:
        return Task(self.env_id)


def known_cases(recipe: Recipe) -> list[str]:
    """The kinds of demonstrations that a robot may have: the paper's, and those that its recipe makes."""
    return list(dict.fromkeys([*CASES, *cases_of(recipe)]))


def of_case(recipe: Recipe, case: str) -> Recipe:
    """
    A robot's recipe for one kind of data: entries of ``[case.NAME.SECTION]`` override those of ``[SECTION]``.

    :param recipe: of a robot
    :param case: a kind of demonstrations
    :raises ValueError: when the recipe has a case that is not known
    """
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]] = recipe.get("case", {})
    check_names("recipe section [case]", list(changes), known_cases(recipe))
    common = {name: values for name, values in recipe.items() if name != "case"}
    own = {name: {**section(common, name), **values} for name, values in changes.get(case, {}).items()}
    return {**common, **own}


def select(
    robots: Sequence[str] | None = None,
    cases: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
) -> list[RobotUnit]:
    """
    The units to be done, all robots of a seed before the next seed.

    :param robots: only these; None for the paper's
    :param cases: only these; None for all that a robot has, or the first for a quick run
    :param seeds: only these; None for :data:`SEEDS`, or the first for a quick run
    :param quick: one seed, one kind of data, for what is not given
    :raises ValueError: for a name that is not known
    """
    known = known_robots()
    check_names("robot", robots, known)
    chosen = {name: recipe_of(name) for name in robots or [name for name in PAPER if name in known]}
    check_names("case", cases, dict.fromkeys(case for recipe in chosen.values() for case in known_cases(recipe)))
    few = 1 if quick else None
    units = []
    for seed in seeds or SEEDS[:few]:
        for name, recipe in chosen.items():
            own = list(CASES) if name in PAPER else cases_of(recipe)
            units += [RobotUnit(name, case, seed, environment_of(recipe)) for case in cases or own[:few]]
    return list(dict.fromkeys(units))


# ---------------------------------------------------------------------- variants

Part = Literal["pair", "sweep", "clean", "transfer", "discriminators", "distilled", "use", "finetuning", "offline"]
AGENTS = ("base", "discriminator", "offline", "steered", "exact", "expert", "cloning", "demonstrator")
_FEW = ("base", "steered", "expert")


@dataclass(frozen=True)
class RobotVariant(Variant):
    """
    See :class:`spec.Variant`; beside that:

    :param agents: names of the agents that run in the environment
    :param part: what is measured: the pair, steering with other options, other bases, ρ as a reward, or policies
        trained on rewards
    """

    agents: tuple[str, ...] = _FEW
    part: Part = "pair"


MAIN = RobotVariant(agents=AGENTS)
_UNET = {"policy": "UnetPolicy", "policy_kwargs": {"multipliers": [1, 2]}}  # eight rows are halved once
_TRANSFORMER = {"policy": "TransformerPolicy", "policy_kwargs": {}}
_ALIKE = {"first_action_weight": 1.0}
_STATES = {"controller": "inverse-dynamics"}
# Gradients leave ρ of a window free up to a function of its pinned first state: values tie windows of different states
# together. The step head scores single states and actions, as a reward for each step.
_AS_REWARD = {"extraction": {"heads": ["window", "step"], "value_coef": 0.03}}

VARIANTS: Mapping[str, RobotVariant] = {
    one.name: one
    for one in (
        RobotVariant(
            "sweep", "the same ρ at other scales, denoising steps, chunks of actions and best-of-N", part="sweep"
        ),
        RobotVariant("clean-gradients", "∇ρ at the clean estimate, as Q-Guided Flow takes it", part="clean"),
        RobotVariant("transfer", "the same ρ steers other bases: seed, early checkpoint, other data", part="transfer"),
        RobotVariant("discriminators", "the baseline at other scales, with and without a bound", part="discriminators"),
        RobotVariant(
            "distilled", "students of planner and expert, which act or plan without a reward", part="distilled"
        ),
        RobotVariant("use", "ρ of steps and windows against the true reward and return", _AS_REWARD, part="use"),
        RobotVariant(
            "finetune",
            "SAC from the base's data, with ρ in three forms or the true reward",
            _AS_REWARD,
            part="finetuning",
        ),
        RobotVariant(
            "finetune-held",
            "the same, a fifth as long, held to the clone by a KL in the place of SAC's entropy",
            {**_AS_REWARD, "finetuning": {"prior": 10.0, "total_timesteps": 10_000, "eval_freq": 2_500}},
            part="finetuning",
        ),
        RobotVariant("offline-rl", "TD3+BC on the data of the base and of both, with true rewards", part="offline"),
        RobotVariant("few", "base, steered base with and without rounds, and expert alone", agents=(*_FEW, "offline")),
        RobotVariant("one-round", "one closed-loop round", {"rounds": {"n_rounds": 1}}),
        RobotVariant(
            "no-row-weighting", "no weighting of rows", {"extraction": {"row_weighting": False}}, (*_FEW, "offline")
        ),
        RobotVariant(
            "actions-alike",
            "no weighting of first actions, which are acted upon",
            {"extraction": _ALIKE},
            (*_FEW, "offline"),
        ),
        RobotVariant("values", "with value matching", {"extraction": {"value_coef": 0.03}}, (*_FEW, "offline")),
        RobotVariant("unet", "U-Net as the backbone of both agents", {"agent": _UNET}, (*_FEW, "exact")),
        RobotVariant("transformer", "a transformer as the backbone", {"agent": _TRANSFORMER}, (*_FEW, "exact")),
        RobotVariant(
            "inverse-dynamics",
            "states are planned, actions follow, so none weigh more",
            {"agent": _STATES, "extraction": _ALIKE},
            (*_FEW, "exact"),
        ),
    )
}

variant_named = partial(variant_of, VARIANTS, MAIN)
