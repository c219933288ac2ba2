"""The uncertainty of one extracted reward: a Laplace approximation of its last layer (Daxberger et al. 2021).

ρ is linear in the weights w of the last layer, ρ = φ(x, t)·w, and so is its gradient. Regressed on score differences
and values, as in extraction, w has a Gaussian posterior, with the precision

    Λ = Σ J_φᵀ J_φ / σ_g² + Σ φ φᵀ / σ_v² + λ I,

where the noise is the mean square of what the weights leave, and λ has the largest evidence (MacKay 1992). Score
differences are no noisy measurements: what is left of them is what the network cannot say, alike at events that are
near each other. So Λ⁻¹ is too small, and is multiplied by the factor that squared errors at held-out events ask for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import flag, whole
from rrpolicy.common.device import precise
from rrpolicy.common.seeding import checked_seed
from rrpolicy.common.torch_mode import usual_tensor, usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.score_model import ScoreModel, check_models
from rrpolicy.rewards.algebra import Archived, Term, archived_terms, check_space
from rrpolicy.rewards.last_layer import feature_slopes, last_layer, rho_features
from rrpolicy.rewards.matching import value_spread
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.sources import Data, target_source
from rrpolicy.rewards.targets import Targets, level_means, value_targets
from rrpolicy.rewards.uncertain import UncertainReward

N_VALUE_DRAWS = 16  # of each held-out value: their noise must not hide the errors of ρ
N_DIRECTIONS = 64  # of events along which gradients are compared; all where an event has no more entries
N_ROUNDS = 50  # of fixed points
PIECE = 256  # events at once
ROUNDING = 1e-5  # of float32 matrices, in parts of their largest entry
FORM, POSTERIOR = "laplace", "posterior"  # in archives: the form, and the group of tensors


class LaplaceReward(UncertainReward):
    """
    A relative reward with the posterior of its window head's last layer; :meth:`fit` makes one.

    It scores and steers as its reward does. The step head has no posterior. Sums and multiples are those of the reward
    alone, without the posterior.

    :param reward: with a window head that ends with a linear layer
    :param covariance: (F, F) of that layer's weights and, last, of its bias
    :param max_uncertainty: standard deviation in nats beyond which ρ counts less, see `Ensemble`; None for no limit
    :raises ValueError: for another reward, or what is no covariance of that size
    """

    covariance: Tensor

    def __init__(self, reward: RelativeReward, covariance: Tensor, max_uncertainty: float | None = None) -> None:
        super().__init__()
        n = len(_weights(last_layer(reward)))
        if covariance.shape != (n, n):
            raise ValueError(f"covariance has shape {tuple(covariance.shape)}, the last layer needs ({n}, {n})")
        if not _is_covariance(covariance):
            raise ValueError("covariance is not symmetric with variances of 0 and more")
        self._take_space([reward])
        self.parts = nn.ModuleList([reward])
        self.register_buffer("covariance", covariance.detach().clone(), persistent=False)
        self._take_limit(max_uncertainty)

    @classmethod
    @usual_torch()
    def fit(
        cls,
        reward: RelativeReward,
        base: ScoreModel,
        expert: ScoreModel,
        data: Data = None,
        *,
        n_events: int = 1024,
        n_value_draws: int = N_VALUE_DRAWS,
        tempered: bool = True,
        max_uncertainty: float | None = None,
        seed: int = 0,
    ) -> Self:
        """
        Fit the posterior of an extracted reward, which is not changed.

        :param reward: as the extraction left it, with values (``value_coef`` above 0): without them ρ has no nats
        :param base: the model that it was extracted from
        :param expert: the other one
        :param data: where scores are compared, as in `RewardExtractor.learn`; best held out
        :param n_events: noised events that the posterior is fitted to, and as many by which it is tempered
        :param n_value_draws: later noise levels per value
        :param tempered: multiply the covariance by what squared errors at further events ask for, see
            :func:`temperature`
        :param max_uncertainty: as in the constructor
        :param seed: of events and noise
        :raises ValueError: for another reward or models of another space, and for data without values
        """
        check_models(base, expert)
        layer = last_layer(reward)
        check_space(base, reward, "base")
        n, draws = whole("n_events", n_events, 2), whole("n_value_draws", n_value_draws, 1)
        generator = torch.Generator().manual_seed(checked_seed(seed))
        targets = target_source(base, expert, data, None, seed, draws)(2 * n, generator).to(reward.device)
        if targets.value is None:
            raise ValueError("data was recorded without values, which the posterior needs")
        index = torch.arange(2 * n, device=reward.device)
        covariance = _covariance(reward, layer, targets.rows(index[:n]))
        made = cls(reward, covariance.float(), max_uncertainty)
        if flag("tempered", tempered):
            held_out = targets.rows(index[n:])
            again = value_targets(base, expert, held_out.x_t, held_out.t, generator, draws)
            made.covariance *= made.middle()._temperature(held_out, again)
        return made

    @torch.no_grad()
    def _temperature(self, held_out: Targets, again: Tensor) -> float:
        assert held_out.value is not None
        x_t, t = held_out.x_t, held_out.t
        rho, sigma = self(x_t, t), self.process.sigma(torch.arange(self.process.n_diffusion_steps, device=t.device))
        noise = level_means((held_out.value - again) ** 2 / 2, t, sigma)[t]
        return temperature((rho - held_out.value) * (rho - again), noise, self.spread(x_t, t) ** 2)

    def with_options(self, **options: Any) -> Self:
        """The same reward with another ``max_uncertainty``."""
        made = copy.copy(self)  # what is checked already is not checked again for every interval
        made._take_limit(**{"max_uncertainty": self.max_uncertainty, **options})
        return made

    @property
    def _reward(self) -> RelativeReward:
        return self.parts[0]  # type: ignore[return-value]

    # ------------------------------------------------------------------ tensors

    def forward(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """ρ (B,) of noised events, with gradients, as `RelativeReward.forward`."""
        rho: Tensor = self.parts[0](x_t, t, head)
        return rho if self.max_uncertainty is None else self._damped(rho, self.spread(x_t.detach(), t, head))

    @usual_torch()
    def gradient(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """∇ρ (B, *event_shape), damped beyond ``max_uncertainty``; zero at pinned entries."""
        gradient: Tensor = self._reward.gradient(x_t, t, head)  # type: ignore[arg-type]
        return gradient if self.max_uncertainty is None else self._damped(gradient, self.spread(x_t, t, head))

    @usual_torch()
    @torch.no_grad()
    def spread(self, x_t: Tensor, t: Tensor, head: str | None = None) -> Tensor:
        """
        Standard deviation (B,) of ρ of noised events, nats.

        :raises ValueError: for the step head
        """
        if head not in (None, "window"):
            raise ValueError(f"head is {head!r}, the posterior is that of the window head")
        return self._spread_of(rho_features(self._reward, usual_tensor(x_t), usual_tensor(t)))

    def _spread_of(self, features: Tensor) -> Tensor:
        covariance = self.covariance.to(precise(features.device))
        wide = features.to(covariance.dtype)
        return (wide @ covariance * wide).sum(dim=1).clamp(min=0).sqrt().to(features.dtype)

    # ------------------------------------------------------------------ numpy, in environment units

    def predict(self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None) -> Array:
        """ρ (n,) of clean data in environment units, as `RelativeReward.predict`."""
        rho = self._reward.predict(observations, actions, levels)
        if self.max_uncertainty is None:
            return rho
        spread = torch.as_tensor(self.predict_spread(observations, actions, levels))
        return self._damped(torch.as_tensor(rho), spread).numpy()

    @usual_torch()
    @torch.no_grad()
    def predict_spread(
        self, observations: Array, actions: Array | None = None, levels: Sequence[int] | None = None
    ) -> Array:
        """
        Standard deviation (n,) of ρ of clean windows in environment units, nats.

        :raises ValueError: for single steps, which the step head scores, and as `RelativeReward.predict`
        """
        x0 = self._reward.packed(observations, actions)
        if x0.ndim == 2:
            raise ValueError(f"observations has shape {np.shape(observations)}: the posterior is that of windows")
        chosen = [0] if levels is None else list(levels)
        parts = []
        for level in chosen:
            t = torch.full((len(x0),), level, dtype=torch.int64, device=x0.device)
            x_t = torch.where(self.pinned, x0, self.process.alpha(level) * x0)
            parts.append(rho_features(self._reward, x_t, t))
        return np.asarray(self._spread_of(torch.stack(parts).mean(dim=0)).cpu().numpy())

    def _reach(self, level: float) -> float:
        return NormalDist().inv_cdf((1 + level) / 2)

    # ------------------------------------------------------------------ algebra and archives

    def terms(self) -> list[Term]:
        """The reward alone."""
        return [(1.0, self._reward)]

    def archived(self) -> Archived:
        config, weights = archived_terms(FORM, [self.terms()], max_uncertainty=self.max_uncertainty)
        return config, {**weights, POSTERIOR: {"covariance": self.covariance}}


# ---------------------------------------------------------------------- the posterior


def _covariance(reward: RelativeReward, layer: nn.Linear, targets: Targets) -> Tensor:
    """The posterior covariance (F, F) of the last layer's weights, float64."""
    weights = _weights(layer).to(precise(reward.device))
    parts = [targets.rows(index) for index in torch.arange(len(targets), device=reward.device).split(PIECE)]
    precision = torch.zeros(len(weights), len(weights), dtype=weights.dtype, device=weights.device)
    spread = value_spread(targets, reward.process)  # as extraction has it
    for design in (_slopes, partial(_values, spread)):
        squares, left, n = torch.zeros_like(precision), 0.0, 0.0
        for part in parts:
            rows, wanted, weight = (one.to(weights.dtype) for one in design(reward, part))
            squares += (rows * weight[:, None]).T @ rows
            left += float((weight * (rows @ weights - wanted) ** 2).sum())
            n += float(weight.sum())
        precision += squares * (n / max(left, 1e-30) if n else 0.0)
    return posterior_covariance(precision, weights)


def posterior_covariance(precision: Tensor, weights: Tensor) -> Tensor:
    """
    (Λ + λ I)⁻¹ with the λ of the largest evidence, λ ‖w‖² = Σ e / (e + λ) over eigenvalues e of Λ (MacKay 1992).

    :param precision: Λ (F, F) of the data alone
    :param weights: w (F,)
    """
    values, vectors = torch.linalg.eigh(precision)
    values, size = values.clamp(min=0), float((weights**2).sum().clamp(min=1e-30))
    prior = len(weights) / size
    for _ in range(N_ROUNDS):
        prior = max(float((values / (values + prior)).sum()) / size, 1e-30)
    return (vectors / (values + prior)) @ vectors.T


def temperature(squares: Tensor, noise: Tensor, variance: Tensor) -> float:
    """
    By what factor c variances have to be multiplied so that they are those of errors, by weighted least squares of
    squares = c · variance; at least 1.

    :param squares: squared errors (n,), each the product of two errors against values whose noise is independent, so
        that it cancels on average
    :param noise: variances (n,) of one such value: noisy squares count less
    :param variance: (n,) to be multiplied
    """
    product, noise, variance = (one.double() for one in (squares, noise, variance))
    factor = 1.0
    for _ in range(N_ROUNDS):
        weight = variance / (noise + factor * variance).clamp(min=1e-30) ** 2
        factor = max(float((weight * product).sum() / (weight * variance).sum().clamp(min=1e-30)), 1.0)
    return factor


def _is_covariance(matrix: Tensor) -> bool:
    """Whether a matrix (F, F) is symmetric, and its smallest eigenvalue no further below 0 than float32 rounds."""
    wide = matrix.detach().double().cpu()
    size = float(wide.abs().max())
    if not math.isfinite(size) or not torch.allclose(wide, wide.T, rtol=0.0, atol=ROUNDING * size):
        return False
    return float(torch.linalg.eigvalsh(wide)[0]) >= -ROUNDING * size * len(wide)


def _weights(layer: nn.Linear) -> Tensor:
    """The last layer's weights and, where it has one, its bias (F,)."""
    parts = [layer.weight.detach()[0]] if layer.bias is None else [layer.weight.detach()[0], layer.bias.detach()]
    return torch.cat(parts)


def _slopes(reward: RelativeReward, part: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """
    Slopes of features (n·k, F) and of ρ as the scores have it (n·k,), in units of the level's score differences, and
    for how many entries of an event each stands.
    """
    free = (~reward.pinned).flatten().nonzero().flatten()
    k = min(len(free), N_DIRECTIONS)
    drawn = torch.randn(len(free), k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = torch.zeros(k, reward.pinned.numel(), device=reward.device)
    along[:, free] = torch.linalg.qr(drawn).Q.T.to(along)
    scale = reward.gradient_scale[part.t]
    known = scale > 0  # at other levels the models are one
    units = torch.where(known, scale, 1.0)
    difference = part.eps_difference.flatten(1) / (reward.process.sigma(part.t) * units)[:, None]
    rows = feature_slopes(reward, part.x_t, part.t, along.view(k, *reward.event_shape)) / units[:, None]
    weight = known * (len(free) / k)
    return rows.flatten(0, 1), (difference @ along.T).T.flatten(), weight.repeat(k)


def _values(spread: Tensor, reward: RelativeReward, part: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Features of ρ (n, F) and values (n,), in units of their spread (T,) at each level, and what each counts."""
    assert part.value is not None
    scale = spread.clamp(min=1e-3)[part.t]
    rows = rho_features(reward, part.x_t, part.t)
    return rows / scale[:, None], part.value / scale, torch.ones_like(part.value)
