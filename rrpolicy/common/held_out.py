"""Held-out loss while learning: measured at fixed steps, the best averaged weights kept, training stopped in time.

Everything that decides is a function of the steps taken, and stands in the checkpoint, so that a resume stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import Tensor, nn

from rrpolicy.common.arguments import whole

N_HELD_OUT: Final = 1024  # events whose loss is measured, drawn once
GROUPS: Final = ("best", "running")
"""Groups of tensors in a checkpoint."""


@dataclass(frozen=True)
class HeldOut:
    """
    How a training is watched.

    :param loss: of the averaged weights on data that are not learned from; the same events and noise at each call
    :param freq: gradient steps between two measurements
    :param patience: measurements without a lower loss after which training stops; None never stops it
    """

    loss: Callable[[], float]
    freq: int
    patience: int | None = None

    def __post_init__(self) -> None:
        whole("eval_freq", self.freq, 1)
        if self.patience is not None:
            whole("patience", self.patience, 1)

    def due(self, step: int) -> bool:
        """Whether the loss is to be measured after this step."""
        return step % self.freq == 0

    def over(self, step: int, best_step: int) -> bool:
        """Whether the loss has not fallen for too long."""
        return self.patience is not None and (step - best_step) // self.freq >= self.patience


def held_out(
    loss: Callable[[], float] | None, eval_freq: int, patience: int | None, total_timesteps: int | None = None
) -> HeldOut | None:
    """
    The arguments of ``learn`` as one.

    :param loss: None where nothing is held out
    :param total_timesteps: of a training that begins; None for one that goes on, which was measured before
    :raises ValueError: for numbers below 1, patience with nothing to wait for, or a loss that would never be measured
    """
    whole("eval_freq", eval_freq, 1)
    if loss is not None:
        watch = HeldOut(loss, eval_freq, patience)
        if total_timesteps is not None and eval_freq > total_timesteps:
            raise ValueError(f"eval_freq is {eval_freq}, it must be at most total_timesteps, {total_timesteps}")
        return watch
    if patience is not None:
        raise ValueError(f"patience is {patience}, it needs an eval_dataset, whose loss it waits for")
    return None


@dataclass
class BestWeights:
    """
    The averaged weights with the lowest held-out loss so far.

    :param step: at which they were the average; None before the first measurement
    :param loss: held-out loss there
    :param weights: state dictionary
    :param running: the average of all steps, while the best weights are in its place
    """

    step: int | None = None
    loss: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    running: dict[str, Tensor] = field(default_factory=dict)

    def consider(self, step: int, loss: float, averaged: nn.Module) -> None:
        """Take the average of this step if its loss is the lowest."""
        if self.loss is None or loss < self.loss:
            self.step, self.loss, self.weights = step, loss, _copied(averaged)

    def put_into(self, averaged: nn.Module) -> None:
        """Let the best weights act."""
        if self.weights:
            self.running = _copied(averaged)
            averaged.load_state_dict(self.weights)

    def take_back(self, averaged: nn.Module) -> None:
        """Go on with the average of all steps."""
        if self.running:
            averaged.load_state_dict(self.running)
            self.running = {}

    def config(self) -> dict[str, Any]:
        """What an archive says of them; nothing when no loss was measured."""
        return {} if self.step is None else {"best_step": self.step, "best_loss": self.loss}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of a checkpoint."""
        return {name: group for name, group in zip(GROUPS, (self.weights, self.running), strict=True) if group}

    @classmethod
    def from_archive(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> BestWeights:
        weights, running = (dict(tensors.get(name, {})) for name in GROUPS)
        return cls(config.get("best_step"), config.get("best_loss"), weights, running)


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
