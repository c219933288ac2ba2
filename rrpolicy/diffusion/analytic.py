"""A Gaussian mixture as a score model: every noised density is known exactly.

Two of them give the exact log density ratio, and so the ground truth for reward extraction and guided sampling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rrpolicy.diffusion.process import DiffusionProcess


class GaussianMixtureModel:
    """
    Mixture of isotropic Gaussians under a diffusion process; p_t has means α μ_k and variance α² v + σ².

    :param means: (K, *event_shape)
    :param variance: variance of each component (isotropic)
    :param weights: (K,) mixture weights; None for equal ones
    :param process: noise levels; None for 50 cosine ones
    """

    def __init__(
        self,
        means: Tensor,
        variance: float = 0.1,
        weights: Tensor | None = None,
        process: DiffusionProcess | None = None,
    ) -> None:
        if not variance > 0:
            raise ValueError(f"variance is {variance}, it must be positive")
        self.means = torch.as_tensor(means, dtype=torch.float32)
        self.event_shape = tuple(self.means.shape[1:])
        self.variance = float(variance)
        weights = torch.ones(len(self.means)) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
        if weights.shape != (len(self.means),) or not (weights > 0).all():
            raise ValueError(f"weights is {weights.tolist()}, wanted {len(self.means)} positive numbers")
        self.weights = weights / weights.sum()
        self.process = DiffusionProcess() if process is None else process

    def fingerprint(self) -> str:
        return f"event_shape={self.event_shape};process={self.process}"

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p_t(x_t): (B, *event_shape), (B,) -> (B,) nats."""
        squares, variance = self._squares(x_t, t)
        n = math.prod(self.event_shape)
        log_normal = -0.5 * squares / variance[:, None] - 0.5 * n * torch.log(2 * math.pi * variance)[:, None]
        return torch.logsumexp(log_normal + self.weights.log(), dim=1)

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Exact noise prediction -σ ∇ log p_t, (B, *event_shape)."""
        squares, variance = self._squares(x_t, t)
        responsibility = torch.softmax(-0.5 * squares / variance[:, None] + self.weights.log(), dim=1)
        alpha, sigma = self.process.levels(x_t.flatten(1), t)
        mean = alpha * (responsibility @ self.means.flatten(1))
        return (sigma * (x_t.flatten(1) - mean) / variance[:, None]).view_as(x_t)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Clean samples (n, *event_shape)."""
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn((n, *self.event_shape), generator=generator)
        return self.means[component] + math.sqrt(self.variance) * noise

    def _squares(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances to the noised means (B, K) and the noised variance (B,)."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        distance = x_t.flatten(1)[:, None] - alpha[:, None, None] * self.means.flatten(1)[None]
        return (distance**2).sum(dim=2), alpha**2 * self.variance + sigma**2
