"""The noising process and every conversion between what a network predicts and what it means.

x_t = alpha(t) * x0 + sigma(t) * eps for t = 0 (cleanest) ... T - 1 (Ho et al. 2020, eq. 4; cosine schedule of
Nichol & Dhariwal 2021, eq. 17). No other file depends on whether a network outputs x0, eps or v.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from rrpolicy.common.torch_mode import usual_torch

Schedule = Literal["cosine", "linear"]
TABLE = "table"  # the schedule of a process whose levels were given as numbers
Prediction = Literal["x0", "eps", "v"]
MAX_BETA = 0.999
COARSE = 20  # levels up to which the linear schedule's β, times 1000/T, are rates and no longer variances
MAX_DIFFUSION_STEPS = 10_000  # as in archives


def _double(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def _checked_table(n_diffusion_steps: int, schedule: str, alphas_cumprod: Sequence[float]) -> str:
    """The schedule's name, with a digest of the table."""
    table = _double(alphas_cumprod)
    if table.shape != (n_diffusion_steps,):
        raise ValueError(f"alphas_cumprod has shape {tuple(table.shape)}, wanted ({n_diffusion_steps},)")
    if not (table.diff() < 0).all() or not 0 < float(table[-1]) <= float(table[0]) < 1:
        raise ValueError(
            f"alphas_cumprod runs from {float(table[0])} to {float(table[-1])}, it must fall at every level and stay "
            "within (0, 1)"
        )
    name = f"{TABLE} {hashlib.sha256(table.numpy().tobytes()).hexdigest()[:8]}"
    if schedule not in (TABLE, name):
        raise ValueError(f"schedule is {schedule!r}, with this alphas_cumprod it must be {name!r}")
    return name


def _alphas_cumprod(n_diffusion_steps: int, schedule: str) -> Tensor:
    if schedule == "cosine":

        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        steps = range(n_diffusion_steps)
        betas = torch.tensor(
            [1 - alpha_bar((i + 1) / n_diffusion_steps) / alpha_bar(i / n_diffusion_steps) for i in steps],
            dtype=torch.float64,
            device="cpu",
        )
    else:  # Linear β schedule rescaled by 1000/T: any number of steps ends at the same noise level
        betas = torch.linspace(1e-4, 0.02, n_diffusion_steps, dtype=torch.float64, device="cpu")
        betas = betas * (1000 / n_diffusion_steps)
        if n_diffusion_steps <= COARSE:  # β would exceed 1: the rate β integrated over a step, Song et al. 2021, eq. 33
            betas = 1 - torch.exp(-betas)
    return torch.cumprod(1 - betas.clamp(max=MAX_BETA), dim=0)


class DiffusionProcess:
    """
    A variance-preserving diffusion process with ``n_diffusion_steps`` discrete noise levels.

    :param n_diffusion_steps: number T of noise levels; ``t`` runs from 0 (cleanest) to T - 1
    :param schedule: ``"cosine"`` or ``"linear"``; of a table: ``"table"`` and its digest
    :param prediction: what a network trained with this process outputs: ``"x0"``, ``"eps"`` or ``"v"``
    :param alphas_cumprod: ᾱ_t of each level, for a schedule that has no name here (:meth:`from_alphas_cumprod`)
    :raises ValueError: for fewer than two steps, an unknown schedule or prediction, or a table that is none
    """

    @usual_torch()
    def __init__(
        self,
        n_diffusion_steps: int = 50,
        schedule: str = "cosine",
        prediction: Prediction = "x0",
        alphas_cumprod: Sequence[float] | None = None,
    ) -> None:
        n_diffusion_steps = int(n_diffusion_steps)
        if n_diffusion_steps < 2:
            raise ValueError(f"n_diffusion_steps is {n_diffusion_steps}, it must be at least 2")
        if n_diffusion_steps > MAX_DIFFUSION_STEPS:
            raise ValueError(f"n_diffusion_steps is {n_diffusion_steps}, it must be at most {MAX_DIFFUSION_STEPS}")
        if alphas_cumprod is not None:
            schedule = _checked_table(n_diffusion_steps, schedule, alphas_cumprod)
        elif schedule not in get_args(Schedule):
            raise ValueError(f"schedule is {schedule!r}, it must be one of {get_args(Schedule)}")
        if prediction not in get_args(Prediction):
            raise ValueError(f"prediction is {prediction!r}, it must be one of {get_args(Prediction)}")
        self.n_diffusion_steps = n_diffusion_steps
        self.schedule = schedule
        self.prediction = prediction
        self.alphas_cumprod = None if alphas_cumprod is None else tuple(float(value) for value in alphas_cumprod)
        table = _alphas_cumprod(n_diffusion_steps, schedule) if self.alphas_cumprod is None else _double(alphas_cumprod)
        self._alpha = table.sqrt().float()
        self._sigma = (1 - table).sqrt().float()
        # g²_t = ln(ᾱ_{t-1} / ᾱ_t): the squared diffusion coefficient integrated over one step (METHOD: value matching)
        previous = torch.cat([_double([1.0]), table[:-1]])
        self._g_squared = torch.log(previous / table).float()
        self._elsewhere: dict[tuple[str, torch.device], Tensor] = {}  # tables on other devices than the CPU

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Sequence[float], prediction: Prediction = "eps") -> Self:
        """
        A process with any levels, such as Stable Diffusion's.

        :param alphas_cumprod: ᾱ_t (T,), strictly falling within (0, 1)
        :param prediction: as in the constructor
        :raises ValueError: for values that do not fall, or lie outside, naming the first
        """
        return cls(len(alphas_cumprod), TABLE, prediction, alphas_cumprod)

    def same_levels(self, other: DiffusionProcess) -> bool:
        """Whether two processes have the same numbers, by a name or as a table, whatever their networks predict."""
        return self.n_diffusion_steps == other.n_diffusion_steps and torch.allclose(
            torch.stack([self._alpha, self._sigma]), torch.stack([other._alpha, other._sigma]), rtol=1e-5, atol=1e-7
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DiffusionProcess) and self.prediction == other.prediction and self.same_levels(other)

    def __hash__(self) -> int:
        return hash((self.n_diffusion_steps, self.prediction))

    def __repr__(self) -> str:
        return f"DiffusionProcess({self.n_diffusion_steps}, {self.schedule!r}, {self.prediction!r})"

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments, JSON values."""
        return {
            "n_diffusion_steps": self.n_diffusion_steps,
            "schedule": self.schedule,
            "prediction": self.prediction,
            **({} if self.alphas_cumprod is None else {"alphas_cumprod": list(self.alphas_cumprod)}),
        }

    def alpha(self, t: Tensor | int) -> Tensor:
        """Signal level at ``t``, in the shape of ``t``."""
        return self._at("_alpha", t)

    def sigma(self, t: Tensor | int) -> Tensor:
        """Noise standard deviation at ``t``, in the shape of ``t``."""
        return self._at("_sigma", t)

    def g_squared(self, t: Tensor | int) -> Tensor:
        """ln(ᾱ_{t-1} / ᾱ_t), in the shape of ``t``."""
        return self._at("_g_squared", t)

    def levels(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """``alpha(t)`` and ``sigma(t)`` shaped to broadcast against ``x`` of shape (B, *event_shape)."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return self.alpha(t).view(shape), self.sigma(t).view(shape)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """
        Noise clean samples to level ``t``.

        :param x0: clean samples (B, *event_shape), normalised
        :param t: noise levels (B,) int64
        :param noise: standard normal noise (B, *event_shape)
        :return: x_t (B, *event_shape)
        """
        alpha, sigma = self.levels(x0, t)
        return alpha * x0 + sigma * noise

    def x0_from_eps(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        alpha, sigma = self.levels(x_t, t)
        return (x_t - sigma * eps) / alpha

    def eps_from_x0(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        alpha, sigma = self.levels(x_t, t)
        return (x_t - alpha * x0) / sigma

    def score_from_eps(self, t: Tensor, eps: Tensor) -> Tensor:
        """∇ log p_t(x_t) = -eps / sigma(t)."""
        return -eps / self.levels(eps, t)[1]

    def eps_from_output(self, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Noise prediction from whatever the network outputs (``prediction``)."""
        if self.prediction == "eps":
            return output
        if self.prediction == "x0":
            return self.eps_from_x0(x_t, t, output)
        alpha, sigma = self.levels(x_t, t)
        return sigma * x_t + alpha * output

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should output for ``q_sample(x0, t, noise)``."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        alpha, sigma = self.levels(x0, t)
        return alpha * noise - sigma * x0

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weight (B,) of the squared error at ``t``: SNR clipped to [0.1, 5] for x0 (Hang et al. 2023), else 1."""
        if self.prediction != "x0":
            return torch.ones_like(self.alpha(t))
        return ((self.alpha(t) / self.sigma(t)) ** 2).clamp(0.1, 5.0)

    def timesteps(self, n_steps: int, start: int | None = None) -> list[int]:
        """
        ``n_steps`` levels evenly spread from ``start`` (default T - 1) down to 0, without repeats.

        :raises ValueError: if fewer than one step or more than ``start + 1`` steps are wanted
        """
        start = self.n_diffusion_steps - 1 if start is None else start
        if not 0 <= start < self.n_diffusion_steps:
            raise ValueError(f"start is {start}, it must lie in 0..{self.n_diffusion_steps - 1}")
        if not 1 <= n_steps <= start + 1:
            raise ValueError(f"n_steps is {n_steps}, it must lie in 1..{start + 1} to start from level {start}")
        if n_steps == 1:
            return [start]
        return [round(start * (1 - i / (n_steps - 1))) for i in range(n_steps)]

    def _at(self, name: str, t: Tensor | int) -> Tensor:
        table: Tensor = getattr(self, name)
        if isinstance(t, int) or t.device == table.device:
            return table[t]
        if (name, t.device) not in self._elsewhere:
            self._elsewhere[name, t.device] = table.to(t.device)
        return self._elsewhere[name, t.device][t]
