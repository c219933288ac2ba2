"""Equal trainings of a base: what two models differ by when nothing but the training differs.

Where no other seeds are at hand, the base is fine-tuned on bootstrap resamples of its own samples, each time with
another seed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.policy import DiffusionPolicy
from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.learner import Learner
from rrpolicy.common.noise import randint

MOST_STEPS = 250  # gradient steps of each, to be cheap
LEARNING_RATE = 1e-3


class _Retraining(Learner[DiffusionPolicy]):
    """A policy that is fine-tuned on clean windows."""

    kind: ClassVar[str] = "agent"

    def __init__(self, policy: DiffusionPolicy, x0: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self._x0 = x0
        self._start_from(copy.deepcopy(policy).requires_grad_(True))

    def _draw(self) -> Batch:
        x0 = self._x0[randint(len(self._x0), (self.batch_size,), self.generator, self._x0.device)]
        mask = torch.ones(x0.shape[:2], dtype=torch.bool, device=x0.device)
        return x0, mask, *self.module.draw(x0, self.generator)

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        return self.module.loss_at(*batch), {}

    def _config(self) -> dict[str, Any]:
        raise ValueError("an equal training has no archive: save the agent that it became")

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Self:
        raise ValueError("an equal training has no archive: load the agent that it became")


def retrained(base: DiffusionAgent, x0: Tensor, total_timesteps: int, seed: int) -> DiffusionAgent:
    """
    The base, fine-tuned on a bootstrap resample of windows; the base itself stays as it is.

    :param x0: clean windows (N, H, D), such as the base's own samples
    :param total_timesteps: gradient steps
    :param seed: of the resample and of the training
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(x0), (len(x0),), generator=generator).to(x0.device)
    learner = _Retraining(
        base.averaged,
        x0[rows],
        learning_rate=LEARNING_RATE,
        batch_size=min(base.batch_size, 128),
        ema_decay=base.ema_decay,
        seed=seed,
        device=base.device,
    )
    learner._learn(total_timesteps, None, {"log_interval": 0})
    other = copy.copy(base)
    other.averaged = learner.averaged
    return other


def steps_of(expert: Any, most: int = MOST_STEPS) -> int:
    """Gradient steps of an equal training: the expert's own where it says how many, but no more than ``most``."""
    own = int(getattr(expert, "num_timesteps", 0))
    return min(own, most) if own else most
