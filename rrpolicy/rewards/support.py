"""Which events two models know: off both, ρ is an extrapolation and says nothing.

An event that neither model denoises as well as its own samples is likely under neither (`diffusion.plausibility`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.plausibility import denoising_errors
from rrpolicy.diffusion.score_model import ScoreModel, check_models, pinned_mask

QUANTILE = 0.99  # of a model's own samples that it is said to know
N_NEEDED = 100  # samples of each model, so that the quantile is not the largest of a few


@dataclass(frozen=True, eq=False)
class Support:
    """
    The denoising errors up to which an event is one of the base's or of the expert's.

    :param base: the first model
    :param expert: the second one, in the same space
    :param limits: of the two models' errors, as :func:`diffusion.plausibility.denoising_errors` gives them
    """

    base: ScoreModel
    expert: ScoreModel
    limits: tuple[float, float]

    @classmethod
    def fit(
        cls, base: ScoreModel, expert: ScoreModel, base_x0: Tensor, expert_x0: Tensor, quantile: float = QUANTILE
    ) -> Self:
        """
        Take the limits from samples of the models.

        :param base_x0: clean events (N, *event_shape) of the base
        :param expert_x0: of the expert
        :param quantile: share of its own samples that a model knows, in (0, 1)
        :raises ValueError: for fewer than `N_NEEDED` samples of one of them, or another quantile
        """
        check_models(base, expert)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile is {quantile}, it must lie between 0 and 1")
        if min(len(base_x0), len(expert_x0)) < N_NEEDED:
            raise ValueError(
                f"there are {len(base_x0)} and {len(expert_x0)} samples, wanted at least {N_NEEDED} of each"
            )
        pairs = ((base, base_x0), (expert, expert_x0))
        first, second = (float(np.quantile(_errors(model, x0), quantile)) for model, x0 in pairs)
        return cls(base, expert, (first, second))

    @usual_torch()
    def score(self, x0: Tensor) -> Array:
        """
        How unlike both models an event is, (n,): its error in units of the limit, under the model that knows it better.

        :param x0: clean events (n, *event_shape), normalised
        :return: above 1 for what neither model knows
        """
        found = [_errors(model, x0) / limit for model, limit in zip((self.base, self.expert), self.limits, strict=True)]
        return np.asarray(np.minimum(*found))

    def unknown(self, x0: Tensor) -> Array:
        """Which events neither model knows, bool (n,)."""
        return np.asarray(self.score(x0) > 1)


def _errors(model: ScoreModel, x0: Tensor) -> Array:
    errors = denoising_errors(model.eps, model.process, x0, pinned_mask(model))
    return np.asarray(errors.double().cpu().numpy())
