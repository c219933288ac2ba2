"""Rewards as vectors: sums, differences and multiples of relative rewards are relative rewards themselves.

ρ is a difference of log densities, so -ρ leads from the expert to the base, and ρ_AB + ρ_BC is ρ_AC; 2ρ steers twice as
far. A sum is computed by its parts, is differentiated by theirs, and is saved with them in one archive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rrpolicy.common.archive import write_archive
from rrpolicy.common.arguments import number
from rrpolicy.common.kinds import MAX_REWARDS
from rrpolicy.common.spaces import Env
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel, layout_of, normalizer_of

Term = tuple[float, Any]  # a factor and a `RelativeReward`
Archived = tuple[dict[str, Any], dict[str, dict[str, Tensor]]]  # a configuration and groups of tensors
KIND = "rewards"  # of archives of sums and ensembles


class RewardAlgebra:
    """
    The operators ``+``, ``-``, ``*`` of rewards over one space, and what a planner compares to know that space.

    A class that has them says in :meth:`terms` of which rewards it is the sum.
    """

    process: DiffusionProcess
    event_shape: tuple[int, ...]
    layout: TrajectoryLayout | None
    normalizer: Normalizer | None

    def terms(self) -> list[Term]:
        """Factors and rewards whose sum this is."""
        own: Any = self
        return [(1.0, own)]

    def scaled(self, factor: float) -> Any:
        """This reward times a number."""
        return CombinedReward([(factor * weight, reward) for weight, reward in self.terms()])

    def plus(self, other: RewardAlgebra) -> Any:
        """This reward plus another one over the same space."""
        return CombinedReward([*self.terms(), *other.terms()])

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, RewardAlgebra):
            return NotImplemented
        return other.plus(self) if other.sums_members and not self.sums_members else self.plus(other)

    def __sub__(self, other: Any) -> Any:
        return self + other.scaled(-1.0) if isinstance(other, RewardAlgebra) else NotImplemented

    def __mul__(self, factor: Any) -> Any:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return self.scaled(_factor(factor))

    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return self.scaled(-1.0)

    @property
    def n_clean_levels(self) -> int:
        """Cleanest levels, at which the step head takes states without their noise."""
        raise NotImplementedError

    @property
    def map_level(self) -> int:
        """Noise level at which single clean states are scored: high ones order far states better, low ones near."""
        return self.n_clean_levels // 3

    @property
    def far_level(self) -> int:
        """
        Highest noise level at which the step head takes states without their noise. Over a whole maze it mostly orders
        best; detours of a few cells may be ordered better by ``map_level``.
        """
        return max(self.n_clean_levels - 1, 0)

    @property
    def sums_members(self) -> bool:
        """Whether a sum with this reward is taken member by member, as that of an ensemble."""
        return False


def _factor(value: Any) -> float:
    factor = float(number("the factor of a reward", value))
    if not math.isfinite(factor):
        raise ValueError(f"the factor of a reward is {value}, it must be finite")
    return factor


def check_one_space(rewards: Sequence[Any]) -> None:
    """
    Check that rewards are over one space.

    :param rewards: with the members that `RewardAlgebra` names, and ``pinned``
    :raises ValueError: naming the field that differs and both values, or when there are none
    """
    if not rewards:
        raise ValueError("rewards is empty, wanted at least one")
    first = rewards[0]
    for other in rewards[1:]:
        for field in ("event_shape", "layout", "normalizer"):
            if (mine := getattr(first, field)) != (its := getattr(other, field)):
                raise ValueError(f"rewards differ in {field}: {mine} and {its}")
        if not first.process.same_levels(other.process):
            raise ValueError(f"rewards differ in their noise levels: {first.process} and {other.process}")
        if not torch.equal(first.pinned.cpu(), other.pinned.cpu()):
            raise ValueError("rewards differ in their pinned entries")


def check_space(model: ScoreModel, reward: RewardAlgebra, name: str) -> None:
    """
    Check that a reward is over the events of a model.

    :param name: of the model, for the error
    :raises ValueError: naming the field that differs and both values
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("event shape", tuple(model.event_shape), tuple(reward.event_shape)),
        ("n_diffusion_steps", model.process.n_diffusion_steps, reward.process.n_diffusion_steps),
        ("layout", layout_of(model), reward.layout),
        ("normalizer", normalizer_of(model), reward.normalizer),
    ]
    if not model.process.same_levels(reward.process):
        pairs.insert(2, ("schedule", model.process.schedule, reward.process.schedule))
    for field, mine, other in pairs:
        if mine != other:
            raise ValueError(f"{name} and reward differ in {field}: the {name} has {mine}, the reward has {other}")


class CompositeReward(RewardAlgebra, nn.Module):
    """What sums and ensembles share: the space of their parts, and ρ in environment units by that of each part."""

    kind: ClassVar[str] = KIND
    source: ClassVar[str] = "extraction"
    parts: nn.ModuleList

    def _take_space(self, rewards: Sequence[Any]) -> None:
        check_one_space(rewards)
        first = rewards[0]
        self.process, self.event_shape = first.process, tuple(first.event_shape)
        self.layout, self.normalizer = first.layout, first.normalizer
        self.heads = tuple(head for head in first.heads if all(head in other.heads for other in rewards))

    @property
    def pinned(self) -> Tensor:
        """Conditioned entries, bool ``event_shape``."""
        return self.parts[0].pinned  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where it computes, and its events have to be."""
        return self.pinned.device

    @property
    def n_clean_levels(self) -> int:
        """Cleanest levels, at which the step heads of all parts take states without their noise."""
        return min(int(part.n_clean_levels) for part in self.parts)  # type: ignore[arg-type]

    def save(self, path: str | Path, *, card: Mapping[str, Any] | None = None) -> None:
        """
        Write all parts as one archive (no pickle), which :func:`rrpolicy.rewards.load_reward` reads.

        :param path: file; ``.zip`` is added when missing
        :param card: facts about the reward
        :raises ValueError: for more than :data:`MAX_REWARDS` rewards
        """
        config, weights = self.archived()
        write_archive(path, KIND, config, {**weights, **self._any_reward().normalizer_tensors()}, card)

    def archived(self) -> Archived:
        """
        What archives hold of it: the fields of `kinds.RewardsFields`, and the weights of each reward, once.

        :raises ValueError: for more than :data:`MAX_REWARDS` rewards
        """
        raise NotImplementedError

    def _any_reward(self) -> Any:
        return self.terms()[0][1]

    def check_environment(self, env: Env | str) -> None:
        """As `RelativeReward.check_environment`."""
        self.parts[0].check_environment(env)  # type: ignore[operator]


class CombinedReward(CompositeReward):
    """
    A weighted sum of relative rewards over one space, which steers and scores as one.

    :param terms: (factor, reward); a reward that occurs twice is computed once
    :raises ValueError: for no reward, a factor that is not finite, or rewards over different spaces, naming the field
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        weights: dict[int, float] = {}
        rewards: dict[int, Any] = {}
        for weight, reward in terms:
            weights[id(reward)] = weights.get(id(reward), 0.0) + _factor(weight)
            rewards[id(reward)] = reward
        self._take_space(list(rewards.values()))
        self.parts = nn.ModuleList(rewards.values())
        self.weights = tuple(weights.values())

    def terms(self) -> list[Term]:
        return list(zip(self.weights, self.parts, strict=True))

    def forward(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """ρ (B,) of noised events, with gradients, as `RelativeReward.forward`."""
        values = [weight * part(x_t, t, head) for weight, part in zip(self.weights, self.parts, strict=True)]
        return torch.stack(values).sum(dim=0)

    def gradient(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """∇ρ (B, *event_shape); zero at pinned entries."""
        gradients = [weight * part.gradient(x_t, t, head) for weight, part in self.terms()]
        return torch.stack(gradients).sum(dim=0)

    @usual_torch()
    def predict(self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None) -> Array:
        """ρ (n,) of clean data in environment units, as `RelativeReward.predict`."""
        scores = [weight * part.predict(observations, actions, levels) for weight, part in self.terms()]
        return sum(scores[1:], start=scores[0])

    def archived(self) -> Archived:
        return archived_terms("sum", [self.terms()])


def archived_terms(form: str, members: Sequence[Sequence[Term]], **options: Any) -> Archived:
    """
    Sums of rewards as archives hold them, each reward once.

    :param form: ``"sum"``, ``"ensemble"`` or ``"laplace"``
    :param members: the factors and rewards of each sum; only of an ensemble there are several
    :param options: further fields of the configuration
    :return: the configuration, and a group ``"weights-i"`` of tensors for each reward
    :raises ValueError: for more than :data:`MAX_REWARDS` rewards
    """
    numbers: dict[int, int] = {}
    rewards: list[Any] = []
    for _, reward in (term for terms in members for term in terms):
        if id(reward) not in numbers:
            numbers[id(reward)] = len(rewards)
            rewards.append(reward)
    if len(rewards) > MAX_REWARDS:
        raise ValueError(f"there are {len(rewards)} rewards, an archive holds at most {MAX_REWARDS}")
    config = {
        "form": form,
        "members": [
            {"factors": [factor for factor, _ in terms], "rewards": [numbers[id(reward)] for _, reward in terms]}
            for terms in members
        ],
        "rewards": [reward.to_config() for reward in rewards],
        **options,
    }
    return config, {f"weights-{i}": dict(reward.state_dict()) for i, reward in enumerate(rewards)}
