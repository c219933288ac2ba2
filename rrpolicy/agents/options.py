"""Options of planning: how a planner turns a denoiser into actions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from rrpolicy.common.arguments import number, whole
from rrpolicy.common.schema import native

if TYPE_CHECKING:
    from rrpolicy.diffusion.sampling import Solver, SolverName

AUTO: Final = "auto"
"""The clip that fits an agent's normaliser and its data."""

N_ACTION_STEPS = 8  # executed before planning again by default, where the window is long enough


@dataclass(frozen=True)
class PlanningOptions:
    """
    How a planner turns a denoiser into actions.

    :param n_action_steps: environment steps executed before planning again; None: 8, or less for a short window
    :param n_sampling_steps: denoising steps per plan
    :param sampler: ``"ddim"``, ``"ddpm"``, ``"dpm++"``, or a function of a `diffusion.sampling.Step`, which no
        archive holds
    :param warm_start: noise level from which the previous plan, shifted, is refined; None plans from noise
    :param clip: bound of normalised plan entries while sampling; None for none. ``"auto"``, for a `DiffusionAgent`:
        1.5 for the normaliser's modes ``"limits"`` and ``"isotropic"``; for ``"gaussian"`` at least 5, for
        ``"quantiles"`` at least 1.5, and as much as the data that it learns from reach
    :param lookahead: rows of the plan by which a controller's target is ahead of the present, fractions allowed where
        it is a law; not used where actions are planned
    :param n_candidates: plans sampled per environment, of which the one that the planner finds best is kept: an agent
        the one that is likeliest by its own denoising (`diffusion.plausibility`)
    :raises ValueError: for an option of another type
    """

    n_action_steps: int | None = None
    n_sampling_steps: int = 5
    sampler: SolverName | Solver = "ddim"
    warm_start: int | None = None
    clip: float | Literal["auto"] | None = AUTO
    lookahead: float = 1.0
    n_candidates: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, native(getattr(self, field.name))
            if name != "sampler" and not self._left_open(name, value):
                value = number(name, value) if name in ("clip", "lookahead") else whole(name, value)
            object.__setattr__(self, name, value)

    @staticmethod
    def _left_open(name: str, value: Any) -> bool:
        """Whether this is no number, but allowed."""
        return (value is None and name in ("n_action_steps", "clip", "warm_start")) or (
            name == "clip" and value == AUTO
        )

    def settled(self, longest_execution: int, clip: float) -> Planning:
        """
        The options as an agent has them.

        :param longest_execution: most steps of a window that can be executed
        :param clip: where it is ``"auto"``
        """
        steps = min(N_ACTION_STEPS, longest_execution) if self.n_action_steps is None else self.n_action_steps
        return Planning(**{**vars(self), "n_action_steps": steps, "clip": clip if self.clip == AUTO else self.clip})


@dataclass(frozen=True)
class Planning(PlanningOptions):
    """`PlanningOptions` of which nothing is left open: those of a planner."""

    n_action_steps: int = N_ACTION_STEPS
    clip: float | None = 1.5

    @staticmethod
    def _left_open(name: str, value: Any) -> bool:
        return value is None and name in ("clip", "warm_start")

    def to_dict(self) -> dict[str, Any]:
        """
        JSON values.

        :raises ValueError: for a sampler that is a function
        """
        if not isinstance(self.sampler, str):
            name = getattr(self.sampler, "__name__", type(self.sampler).__name__)
            raise ValueError(
                f"sampler is the function {name}, which no archive holds: save agent.with_planning(sampler='ddim'), "
                f"and give it to what is loaded, with_planning(sampler={name})"
            )
        return asdict(self)
