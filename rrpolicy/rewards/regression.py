"""Small networks fitted to recorded rows: the mean of numbers given inputs, or the log of the mean exponential.

Least squares has the conditional mean as its minimum; the loss e^z − z − 1 of the residual z, in units of a temperature
τ, has τ log E[exp(y / τ) | x] (Gumbel regression: Garg, Hejna, Geist, Ermon 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import number, whole
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array

LARGEST = 5.0  # residual beyond which the exponential loss goes on as a line: a rare row decides no gradient step
CHUNK = 65_536  # rows predicted at a time, which bounds the memory


@dataclass(frozen=True)
class RegressionSettings:
    """
    Numbers of a fit.

    :param total_timesteps: gradient steps
    :param batch_size: rows of each
    :param learning_rate: of Adam; it falls to zero by a cosine
    :param width: of the two hidden layers
    :raises ValueError: for a number out of range
    """

    total_timesteps: int = 3_000
    batch_size: int = 512
    learning_rate: float = 2e-3
    width: int = 128

    def __post_init__(self) -> None:
        for name in ("total_timesteps", "batch_size", "width"):
            whole(name, getattr(self, name), 1)
        number("learning_rate", self.learning_rate, above=0)


@dataclass(frozen=True, eq=False)
class Regression:
    """
    A function of rows, (n, n_inputs) in units of their own -> (n,).

    :param network: (n, n_inputs) float32 standardised -> (n, 1)
    :param centre: (n_inputs,) mean of the rows that it was fitted to
    :param scale: (n_inputs,) their standard deviation
    """

    network: nn.Sequential
    centre: Array
    scale: Array

    @classmethod
    def mean(cls, inputs: Array, wanted: Array, seed: int, settings: RegressionSettings) -> Self:
        """
        Fit E[y | x].

        :param inputs: x (n, n_inputs)
        :param wanted: y (n,)
        :param seed: of weights and batches
        :param settings: of the fit
        """
        return cls._fit(inputs, wanted, float(wanted.mean()), float(wanted.std()) or 1.0, torch.square, seed, settings)

    @classmethod
    def log_mean_exp(
        cls, inputs: Array, wanted: Array, temperature: float, seed: int, settings: RegressionSettings
    ) -> Self:
        """
        Fit τ log E[exp(y / τ) | x]. Where y is often more than ``LARGEST`` τ above it, what is fitted is lower.

        :param inputs: x (n, n_inputs)
        :param wanted: y (n,)
        :param temperature: τ, in units of y
        :param seed: of weights and batches
        :param settings: of the fit
        """
        mean = float(wanted.mean())
        above = torch.as_tensor((wanted - mean) / temperature, dtype=torch.float64).logsumexp(0) - math.log(len(wanted))
        start = mean + temperature * min(float(above), LARGEST)
        return cls._fit(inputs, wanted, start, temperature, _exponential, seed, settings)

    @classmethod
    @usual_torch()
    def _fit(
        cls,
        inputs: Array,
        wanted: Array,
        start: float,
        unit: float,
        loss: Callable[[Tensor], Tensor],
        seed: int,
        settings: RegressionSettings,
    ) -> Self:
        """A network that begins near ``start`` and learns in units of ``unit``."""
        scale = inputs.std(axis=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _mlp(inputs.shape[1], settings.width)
        fitted = cls(network, inputs.mean(axis=0), np.where(scale > 0, scale, 1.0))
        targets = torch.as_tensor((wanted - start) / unit, dtype=torch.float32)
        _descend(network, fitted._inputs(inputs), targets, loss, seed, settings)
        with torch.no_grad():
            for name, parameter in network[-1].named_parameters():
                parameter.mul_(unit).add_(start if name == "bias" else 0.0)
        network.requires_grad_(False)
        return fitted

    @usual_torch()
    @torch.no_grad()
    def __call__(self, inputs: Array) -> Array:
        """(n, n_inputs) -> (n,)."""
        return torch.cat([self.network(rows)[:, 0] for rows in self._inputs(inputs).split(CHUNK)]).numpy()

    def _inputs(self, inputs: Array) -> Tensor:
        return torch.as_tensor((inputs - self.centre) / self.scale, dtype=torch.float32)


def explained_variance(wanted: Array, predicted: Array) -> float:
    """R²: 1 less the mean squared error in units of the variance; NaN where nothing varies."""
    spread = float(wanted.var())
    return 1 - float(np.mean((wanted - predicted) ** 2)) / spread if spread > 0 else float("nan")


def _exponential(residual: Tensor) -> Tensor:
    """e^z − z − 1, beyond ``LARGEST`` the tangent there."""
    inside = residual.clamp(max=LARGEST)
    return inside.exp() - inside - 1 + (math.exp(LARGEST) - 1) * (residual - inside)


def _mlp(n_inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def _descend(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor], Tensor],
    seed: int,
    settings: RegressionSettings,
) -> None:
    """Minimise the mean loss of targets less predictions."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.total_timesteps)
    for _ in range(settings.total_timesteps):
        rows = torch.randint(len(targets), (settings.batch_size,), generator=generator)
        error = loss(targets[rows] - network(inputs[rows])[:, 0]).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
