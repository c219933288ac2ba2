"""One gradient step: a batch is drawn, its loss descended in one part or several, and the weights are averaged.

Everything random of a batch is drawn before its loss is computed, so parts of a batch learn what the whole one does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import flag, whole
from rrpolicy.common.computing import (
    Batch,
    Precision,
    Values,
    add_values,
    autocast,
    backend_of,
    check_compiler,
    parts_of,
    read,
)
from rrpolicy.common.device import CPU
from rrpolicy.common.noise import generator
from rrpolicy.common.persistence import Archived, Module
from rrpolicy.common.processes import current


class GradientSteps(Archived[Module]):
    """Base of a `Learner`: what one timestep is."""

    warmup_steps: ClassVar[int] = 200
    final_learning_rate_fraction: ClassVar[float] = 0.02
    differentiates_twice: ClassVar[bool] = False

    batch_size: int
    ema_decay: float
    weight_decay: float
    max_grad_norm: float

    # ------------------------------------------------------------------ hooks

    def _draw(self) -> Batch:
        """All that is random in the loss of one mini-batch: ``batch_size`` rows, which can be divided."""
        raise NotImplementedError

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        """The loss to descend, a mean over the rows of a batch or of a part, and values to log under ``train/``."""
        raise NotImplementedError

    def _draw_loss(self) -> tuple[Tensor, Values]:
        """One mini-batch: the loss to descend and named values to log."""
        return self._loss_in_precision(self._draw())

    def _loss_in_precision(self, batch: Batch) -> tuple[Tensor, Values]:
        with autocast(self.precision, self.device):
            return self._loss_of(batch)

    # ------------------------------------------------------------------ building

    def _set_computing(self, fast_noise: bool, accumulate: int, precision: Precision, compile: bool | str) -> None:
        self.fast_noise = flag("fast_noise", fast_noise)
        self.accumulate = whole("accumulate", accumulate, 1)
        if accumulate > self.batch_size:
            raise ValueError(f"accumulate is {accumulate}, batch_size {self.batch_size} cannot be divided so often")
        autocast(precision, self.device)  # refuses what there is not
        self.precision = precision
        self.compile_backend = self._checked_backend(compile)
        if type(self)._draw is GradientSteps._draw and (accumulate > 1 or precision != "fp32"):
            name = type(self).__name__
            raise ValueError(f"accumulate is {accumulate}, precision {precision!r}: {name} lacks _draw and _loss_of")

    def _computing_config(self) -> dict[str, Any]:
        """What was set so, for archives: those of earlier versions stay as they are."""
        given = {"fast_noise": self.fast_noise, "accumulate": self.accumulate, "precision": self.precision}
        usual = {"fast_noise": False, "accumulate": 1, "precision": "fp32"}
        return {name: value for name, value in given.items() if value != usual[name]}

    def _start_from(self, module: Module) -> None:
        """Take ``module`` as the network to train; its average starts equal to it."""
        self.module = module.to(self.device)
        self.averaged = copy.deepcopy(self.module).requires_grad_(False).eval()
        self._optimizer = None
        self._compile_networks()

    def compile_networks(self, backend: bool | str = True) -> Self:
        """
        Compile the networks, those that learn and those that act.

        :param backend: as ``compile`` in the constructor
        :return: itself
        :raises ValueError: where nothing can be compiled
        """
        self.compile_backend = self._checked_backend(backend)
        self._compile_networks()
        return self

    def _compile_networks(self) -> None:
        if (backend := backend_of(self.compile_backend)) is not None:
            for network in (self.module, self.averaged):
                network.compile(backend=backend)

    def _checked_backend(self, compile: bool | str) -> bool | str:
        if (backend := backend_of(compile)) is not None:
            if self.differentiates_twice:
                raise ValueError(
                    f"compile is {compile!r}, and a {type(self).__name__} differentiates its network twice, which "
                    "torch.compile cannot"
                )
            check_compiler(backend, self.device)
        return compile

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the network, made at first use: acting needs none, and making one imports half of torch."""
        if self._optimizer is None:
            foreach = True if self.device == CPU else None  # the same numbers in less time; elsewhere torch chooses it
            self._optimizer = torch.optim.AdamW(  # every step sets its own learning rate
                self.module.parameters(), lr=0.0, weight_decay=self.weight_decay, foreach=foreach
            )
        return self._optimizer

    # ------------------------------------------------------------------ one step

    @torch.enable_grad()
    def gradient_step(self) -> dict[str, float]:
        """
        Take one step.

        :return: loss, learning rate and what else is logged, by name
        :raises FloatingPointError: when the loss or the gradient is not finite; no weight has changed then
        """
        learning_rate = self._learning_rate_at(self.num_timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        processes = current()
        self.optimizer.zero_grad(set_to_none=True)
        with processes.sharing(self):
            values = self._backward()
        parameters = list(self.module.parameters())
        processes.add_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        found = read({**values, "norm": norm}, self.device)
        self._check_finite("loss", found["loss"])
        self._check_finite("gradient norm", found.pop("norm"))
        self.optimizer.step()
        self.num_timesteps += 1
        self._average()
        return {"loss": found.pop("loss"), "learning_rate": learning_rate, **found}

    def _backward(self) -> dict[str, Tensor | float]:
        """Add the gradients of one mini-batch, part by part; its loss and values."""
        if self.accumulate == 1:
            loss, values = self._draw_loss()
            loss.backward()
            return {"loss": loss.detach(), **values}
        total: dict[str, Tensor | float] = {}
        for share, part in parts_of(self._draw(), self.accumulate):
            loss, values = self._loss_in_precision(part)
            (share * loss).backward()
            add_values(total, share, {"loss": loss.detach(), **values})
        return total

    @contextmanager
    def _judged(self, seed: int = 0) -> Iterator[None]:
        """A block in which losses are those of the averaged weights, at the same noise each time."""
        module, drawing = self.module, self.generator
        self.module, self.generator = self.averaged, generator(seed, self.noise_device)
        try:
            yield
        finally:
            self.module, self.generator = module, drawing

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {name} is {value} at step {self.num_timesteps}; no weight was changed by this step. "
                "Check the data for outliers or lower learning_rate"
            )

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, (1 + self.num_timesteps) / (10 + self.num_timesteps))
        averaged: list[Tensor] = list(self.averaged.parameters())
        current: list[Tensor] = list(self.module.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for mine, theirs in zip(self.averaged.buffers(), self.module.buffers(), strict=True):
            mine.copy_(theirs)

    def _learning_rate_at(self, step: int) -> float:
        progress = step / max(self._total_timesteps, 1)
        if callable(self.learning_rate):
            return float(self.learning_rate(1 - progress))
        warmup = min(self.warmup_steps, max(self._total_timesteps // 10, 1))
        final = self.final_learning_rate_fraction
        cosine = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * min((step + 1) / warmup, 1.0) * cosine
