"""Several rewards of one pair of models as one: their mean, how far they disagree, and what is left of ρ where they do.

Rewards that were extracted with different seeds agree where the two models say what ρ is and are free elsewhere, so
their spread is an uncertainty (Lakshminarayanan, Pritzel, Blundell 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import number
from rrpolicy.common.stats import student_quantile
from rrpolicy.common.torch_mode import usual_tensor, usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.rewards.algebra import Archived, RewardAlgebra, archived_terms
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.uncertain import UncertainReward

Score = Literal["mean", "lower"]


class Ensemble(UncertainReward):
    """
    The mean of several rewards over one space, which steers and scores as one reward does.

    :param rewards: at least two, such as extractions with different seeds
    :param score: ``"mean"``, or ``"lower"`` for the mean minus ``n_deviations`` standard deviations
    :param n_deviations: of the lower bound
    :param max_uncertainty: standard deviation in nats beyond which ρ counts less: ρ and its gradient are multiplied by
        min(1, max_uncertainty / standard deviation); None for no such limit
    :raises ValueError: for fewer than two rewards, other scores, or rewards over different spaces, naming the field
    """

    def __init__(
        self,
        rewards: Sequence[RewardAlgebra],
        score: Score = "mean",
        n_deviations: float = 1.0,
        max_uncertainty: float | None = None,
    ) -> None:
        super().__init__()
        if len(rewards) < 2:
            raise ValueError(f"rewards has {len(rewards)}, an ensemble needs at least 2")
        if score not in ("mean", "lower"):
            raise ValueError(f"score is {score!r}, it must be 'mean' or 'lower'")
        self._take_space(rewards)
        self.parts = nn.ModuleList(rewards)  # type: ignore[arg-type]
        self.score: Score = score
        self.n_deviations: float = number("n_deviations", n_deviations, lowest=0)
        self._take_limit(max_uncertainty)

    def with_options(self, **options: Any) -> Ensemble:
        """The same rewards with another ``score``, ``n_deviations`` or ``max_uncertainty``."""
        return Ensemble(list(self.parts), **{**self._options(), **options})  # type: ignore[arg-type]

    def middle(self) -> Ensemble:
        return self.with_options(score="mean", max_uncertainty=None)

    # ------------------------------------------------------------------ tensors

    def members(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """ρ of each reward (K, B), with gradients."""
        return torch.stack([part(x_t, t, head) for part in self.parts])

    def forward(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """The score (B,) of noised events in nats, with gradients, as `RelativeReward.forward`."""
        return self._scored(self.members(x_t, t, head))

    @usual_torch()
    def gradient(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """
        The gradient of the mean or of the lower bound, zero at pinned entries; beyond ``max_uncertainty`` it is
        damped as a whole: the factor is not differentiated, which would lead to wherever the rewards agree.
        """
        with torch.enable_grad():
            inputs = usual_tensor(x_t.detach()).requires_grad_(True)
            values = self.members(inputs, usual_tensor(t), head)
            (gradient,) = torch.autograd.grad(self._undamped(values).sum(), inputs)
        return self._damped(gradient, values.detach().std(dim=0))

    @usual_torch()
    @torch.no_grad()
    def spread(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """Standard deviation (B,) of the rewards of noised events, nats."""
        return self.members(x_t, t, head).std(dim=0)

    # ------------------------------------------------------------------ numpy, in environment units

    def predict(self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None) -> Array:
        """The score (n,) of clean data in environment units, as `RelativeReward.predict`."""
        found = torch.as_tensor(self.predict_members(observations, actions, levels))
        return self._scored(found).numpy()

    def predict_members(
        self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None
    ) -> Array:
        """ρ (K, n) of clean data in environment units by each reward."""
        scores = [torch.as_tensor(part.predict(observations, actions, levels)) for part in self.parts]  # type: ignore[operator]
        return torch.stack(scores).numpy()

    def predict_spread(self, observations: Array, actions: Array | None = None) -> Array:
        return np.asarray(self.predict_members(observations, actions).std(axis=0, ddof=1))

    # ------------------------------------------------------------------ algebra

    @property
    def sums_members(self) -> bool:
        return True

    def scaled(self, factor: float) -> Ensemble:
        """Every reward times a number."""
        return Ensemble([part.scaled(factor) for part in self._rewards()], **self._options())

    def plus(self, other: RewardAlgebra) -> Ensemble:
        """Every reward plus another one, or plus those of an equally large ensemble in their order."""
        if not isinstance(other, Ensemble):
            return Ensemble([part + other for part in self._rewards()], **self._options())
        if len(other.parts) != len(self.parts):
            raise ValueError(f"ensembles of {len(self.parts)} and {len(other.parts)} rewards cannot be added")
        pairs = zip(self._rewards(), other._rewards(), strict=True)
        return Ensemble([mine + its for mine, its in pairs], **self._options())

    def terms(self) -> list[tuple[float, RelativeReward]]:
        """Those of the mean."""
        n = len(self.parts)
        return [(weight / n, reward) for part in self._rewards() for weight, reward in part.terms()]

    def archived(self) -> Archived:
        return archived_terms("ensemble", [part.terms() for part in self._rewards()], **self._options())

    # ------------------------------------------------------------------ parts of the score

    def _rewards(self) -> list[Any]:
        return list(self.parts)

    def _options(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "n_deviations": self.n_deviations,
            "max_uncertainty": self.max_uncertainty,
        }

    def _undamped(self, values: Tensor) -> Tensor:
        mean = values.mean(dim=0)
        if self.score == "mean":
            return mean
        variance = values.var(dim=0)
        return mean - self.n_deviations * torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)

    def _scored(self, values: Tensor) -> Tensor:
        return self._damped(self._undamped(values), values.detach().std(dim=0))

    def _reach(self, level: float) -> float:
        """Where one more extraction lies, of which the members are a sample: Student's t."""
        n = len(self.parts)
        return student_quantile(n - 1, level) * (1 + 1 / n) ** 0.5
