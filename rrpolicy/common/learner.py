"""The one training loop, with SB3's verbs, shared by agents, rewards and discriminators.

A `Learner` says how to draw a loss; the loop here does the rest: optimiser, averaged weights, callbacks, logging,
checkpoints and an exact resume. Stopped and resumed equals uninterrupted, bit for bit on one CPU thread.
"""

from __future__ import annotations

import copy
import inspect
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from stable_baselines3.common.utils import configure_logger
from torch import Tensor, nn

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.callbacks import MaybeCallback, StepProgressBar, as_callbacks
from rrpolicy.common.interruption import TrainingInterrupted, deferred_signals
from rrpolicy.common.kinds import check_config
from rrpolicy.common.schema import native, plain
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.weights import check_alike, check_weights, moments, set_generator_state, set_moments

MAX_TIMESTEPS = 2**48
LearningRate = float | Callable[[float], float]
Module = TypeVar("Module", bound=nn.Module)


class Learner(ABC, Generic[Module]):
    """
    Anything that learns by gradient steps on a loss it can draw.

    Subclasses set ``module`` (the trained network) in ``_setup_model`` and implement :meth:`_draw_loss`,
    :meth:`_config` and :meth:`_from_config`.

    :param learning_rate: peak of a schedule with linear warm-up and cosine decay to 2 %, or an SB3 schedule:
        a callable of the remaining progress (1 -> 0)
    :param batch_size: samples per gradient step
    :param ema_decay: decay of the averaged weights, which are the ones used for acting; warmed up from 0
    :param weight_decay: AdamW weight decay
    :param max_grad_norm: gradient clipping
    :param tensorboard_log: folder of the TensorBoard log; None for none
    :param verbose: 0 silent, 1 prints the log
    :param seed: seed of initial weights and of every random draw in training
    :param device: ``"cpu"`` or ``"auto"``, the same: this version computes on the CPU
    """

    kind: ClassVar[str]
    warmup_steps: ClassVar[int] = 200
    final_learning_rate_fraction: ClassVar[float] = 0.02

    module: Module
    averaged: Module
    _optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        learning_rate: LearningRate,
        batch_size: int,
        ema_decay: float,
        weight_decay: float,
        max_grad_norm: float,
        tensorboard_log: str | None,
        verbose: int,
        seed: int | None,
        device: torch.device | str,
    ) -> None:
        positive: dict[str, Any] = {"batch_size": batch_size, "max_grad_norm": max_grad_norm}
        if not callable(learning_rate):
            positive["learning_rate"] = learning_rate
        for name, value in positive.items():
            if not 0 < number(name, value) < math.inf:
                raise ValueError(f"{name} is {value}, it must be positive and finite")
        whole("batch_size", batch_size, 1)
        if not 0 <= number("ema_decay", ema_decay) < 1:
            raise ValueError(f"ema_decay is {ema_decay}, it must lie in [0, 1)")
        self.learning_rate: LearningRate = native(learning_rate)
        self.batch_size: int = native(batch_size)
        self.ema_decay: float = native(ema_decay)
        self.weight_decay: float = number("weight_decay", weight_decay, lowest=0)
        self.max_grad_norm: float = native(max_grad_norm)
        self.tensorboard_log = tensorboard_log
        self.verbose = int(verbose) if isinstance(verbose, bool) else whole("verbose", verbose, 0)
        self.seed: int | None = native(seed)
        self.device = _cpu(device)
        self.num_timesteps = 0
        self._total_timesteps = 0
        self._logger: Logger | None = None
        self.generator = torch.Generator()
        self.generator.manual_seed(0 if self.seed is None else self.seed)

    # ------------------------------------------------------------------ hooks

    @abstractmethod
    def _draw_loss(self) -> tuple[Tensor, dict[str, float]]:
        """One mini-batch: the loss to descend and named values to log under ``train/``."""

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """Everything but tensors that :meth:`load` needs."""

    @classmethod
    @abstractmethod
    def _from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Self:
        """An untrained learner with the architecture of ``config``."""

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> nn.Module | None:
        """The network of ``config``, built without memory by :meth:`load` to be compared; None is not compared."""

    def _training_config(self) -> dict[str, Any]:
        """The constructor's arguments that every learner has; a schedule is not kept."""
        return {
            "learning_rate": None if callable(self.learning_rate) else self.learning_rate,
            "batch_size": self.batch_size,
            "ema_decay": self.ema_decay,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
        }

    def _extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of tensors to save beside the weights."""
        return {}

    # ------------------------------------------------------------------ building

    def _start_from(self, module: Module) -> None:
        """Take ``module`` as the network to train; its average starts equal to it."""
        self.module = module.to(self.device)
        self.averaged = copy.deepcopy(self.module).requires_grad_(False).eval()
        self._optimizer = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the network, made at first use: acting needs none, and making one imports half of torch."""
        if self._optimizer is None:
            # every step sets its own learning rate
            self._optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.0, weight_decay=self.weight_decay)
        return self._optimizer

    # ------------------------------------------------------------------ SB3 verbs

    @property
    def logger(self) -> Logger:
        if self._logger is None and self.tensorboard_log is not None:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, self.kind)
        elif self._logger is None:  # SB3's own default would leave a temporary folder for every learner
            self._logger = Logger(None, [HumanOutputFormat(sys.stdout)] if self.verbose else [])
        return self._logger

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the logger, whose open files no other process can have: for workers and copies, not files."""
        return {**self.__dict__, "_logger": None}

    def set_logger(self, logger: Logger) -> None:
        self._logger = logger

    def get_env(self) -> Any:
        """The environment for callbacks such as SB3's ``EvalCallback``; None when there is none."""
        return None

    def get_vec_normalize_env(self) -> None:
        """Always None: normalisation lives inside the agent."""
        return None

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """Weights, averaged weights and optimiser state, as in SB3 a dictionary of state dictionaries."""
        return {
            "policy": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "policy.optimizer": self.optimizer.state_dict(),
        }

    def set_parameters(self, parameters: Mapping[str, Mapping[str, Any]], exact_match: bool = True) -> None:
        """
        Load what :meth:`get_parameters` returned (of this or of another learner of the same architecture).

        :raises ValueError: when a name or a shape does not fit, naming it
        """
        known = ("policy", "averaged", "policy.optimizer")
        if unknown := set(parameters) - set(known):
            raise ValueError(f"parameters has {sorted(unknown)}, known are {sorted(known)}")
        if exact_match and (missing := set(known) - set(parameters)):
            raise ValueError(f"parameters lacks {sorted(missing)}; pass exact_match=False to load a part")
        for name, value in parameters.items():
            try:
                target: Any = self.module if name == "policy" else self.averaged
                target = self.optimizer if name == "policy.optimizer" else target
                target.load_state_dict(copy.deepcopy(dict(value)))
            except (RuntimeError, KeyError, ValueError) as error:
                raise ValueError(f"parameters[{name!r}] does not fit: {str(error).splitlines()[-1].strip()}") from None

    # ------------------------------------------------------------------ the loop

    def _optimise(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint_path: str | Path | None = None,
        checkpoint_freq: int = 1000,
    ) -> None:
        """Take ``total_timesteps`` gradient steps; see ``learn`` of the subclasses."""
        whole = isinstance(total_timesteps, int | np.integer) and not isinstance(total_timesteps, bool)
        if not whole or total_timesteps < 0:
            raise ValueError(f"total_timesteps is {total_timesteps!r}, it must be a non-negative whole number")
        total_timesteps = int(total_timesteps)
        progress_bar = flag("progress_bar", progress_bar)
        if flag("reset_num_timesteps", reset_num_timesteps):
            self.num_timesteps = 0
            self._total_timesteps = total_timesteps
        else:
            self._total_timesteps = max(self._total_timesteps, self.num_timesteps + total_timesteps)
        if checkpoint_path is not None:  # what no archive can hold is said before anything is learned
            check_config(self.kind, plain(self._archive_config()), "arguments")
        stop_at = self.num_timesteps + total_timesteps
        callbacks = self._init_callback(callback, total_timesteps if progress_bar else 0)
        callbacks.on_training_start(locals(), globals())
        started, first = time.process_time(), self.num_timesteps
        with deferred_signals() as received:
            while self.num_timesteps < stop_at:
                values = self._gradient_step()
                if log_interval and self.num_timesteps % log_interval == 0:
                    self._log(values, (self.num_timesteps - first) / max(time.process_time() - started, 1e-9))
                callbacks.update_locals(locals())
                last = not callbacks.on_step() or bool(received) or self.num_timesteps == stop_at
                if checkpoint_path is not None and (last or self.num_timesteps % checkpoint_freq == 0):
                    self.save(checkpoint_path)
                if last:
                    break
        callbacks.on_training_end()
        if received:
            raise TrainingInterrupted(received[0])

    @torch.enable_grad()
    def _gradient_step(self) -> dict[str, float]:
        learning_rate = self._learning_rate_at(self.num_timesteps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        loss, values = self._draw_loss()
        self._check_finite("loss", float(loss.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        self._check_finite("gradient norm", float(norm))
        self.optimizer.step()
        self.num_timesteps += 1
        self._average()
        return {"loss": float(loss.detach()), "learning_rate": learning_rate, **values}

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

    def _init_callback(self, callback: MaybeCallback, n_progress_steps: int) -> BaseCallback:
        callbacks = as_callbacks(callback)
        if n_progress_steps:
            callbacks.append(StepProgressBar(n_progress_steps))
        chain = CallbackList(callbacks)
        chain.init_callback(self)  # type: ignore[arg-type]
        return chain

    def _log(self, values: Mapping[str, float], steps_per_cpu_second: float) -> None:
        for name, value in values.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.record("time/steps_per_cpu_second", steps_per_cpu_second)
        self.logger.dump(self.num_timesteps)

    # ------------------------------------------------------------------ persistence

    def save(
        self,
        path: str | Path,
        *,
        resumable: bool = True,
        half: bool = False,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Write one archive (no pickle) that :meth:`load` reads.

        :param path: file; ``.zip`` is added when missing
        :param resumable: keep optimiser, random state and raw weights, so that training can go on exactly
        :param half: store the averaged weights in half precision (for sharing; not for resuming)
        :param card: facts about the model, kept as ``card.json``
        :raises ValueError: for ``half`` together with ``resumable``
        """
        if flag("half", half) and flag("resumable", resumable):
            raise ValueError("half=True stores rounded weights, pass resumable=False with it")
        averaged = {name: value.half() if half and value.is_floating_point() else value
                    for name, value in self.averaged.state_dict().items()}
        tensors = {**self._extra_tensors(), "averaged": averaged}
        if resumable:
            tensors["weights"] = self.module.state_dict()
            tensors["optimizer"] = moments(self.optimizer)
            tensors["random"] = {"generator": self.generator.get_state(), **self._random_state()}
        write_archive(path, self.kind, self._archive_config(), tensors, card)

    def _archive_config(self) -> dict[str, Any]:
        return {**self._config(), "num_timesteps": self.num_timesteps, "total_timesteps": self._total_timesteps}

    @classmethod
    @usual_torch()
    def load(cls, path: str | Path, device: torch.device | str = "cpu", **kwargs: Any) -> Self:
        """
        Read what :meth:`save` wrote.

        :param path: file, with or without ``.zip``
        :raises FileNotFoundError: when there is no such file
        :param kwargs: what an archive of this kind does not hold, such as the two models of an extractor
        :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, naming file and fault
        :raises TypeError: for a keyword that there is not, naming it
        """
        parameters = inspect.signature(cls._from_config).parameters.values()
        taken = ["device", *(one.name for one in parameters if one.default is None)]
        unknown = sorted(set(kwargs) - set(taken))
        if unknown and not any(one.kind is one.VAR_KEYWORD for one in parameters):
            raise TypeError(f"load() of {cls.__name__} takes no {unknown[0]!r}, wanted some of {taken}")
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            averaged = archive.tensors["averaged"]
            check_weights(partial(cls._module_of, archive.config, archive.tensors, **kwargs), averaged)
            check_alike(archive.tensors.get("weights", averaged), averaged)
            learner = cls._from_config(archive.config, archive.tensors, **kwargs)
            learner._restore(archive.config, archive.tensors)
        learner.device = _cpu(device)
        return learner

    def _restore(self, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.num_timesteps = int(config["num_timesteps"])
        if self.num_timesteps > MAX_TIMESTEPS:
            raise ValueError(f"num_timesteps is {self.num_timesteps}, at most {MAX_TIMESTEPS} can be counted on from")
        self._total_timesteps = int(config["total_timesteps"])
        if config["training"]["learning_rate"] is None:
            self.learning_rate = _lost_schedule
        self.averaged.load_state_dict(tensors["averaged"])
        self.module.load_state_dict(tensors.get("weights", tensors["averaged"]))
        if "optimizer" in tensors:
            set_moments(self.optimizer, tensors["optimizer"])
        if "random" in tensors:
            set_generator_state(self.generator, tensors["random"]["generator"])
            self._set_random_state(tensors["random"])

    def _random_state(self) -> dict[str, Tensor]:
        """Further random state that an exact resume needs."""
        return {}

    def _set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`_random_state` returned."""


def _lost_schedule(progress: float) -> float:
    raise ValueError("learning_rate was a callable, which no archive holds: set it on what was loaded before learning")


def _cpu(device: torch.device | str) -> torch.device:
    """:raises ValueError: for a device other than the CPU"""
    if device != "auto" and torch.device(device).type != "cpu":
        raise ValueError(f"device is {str(device)!r}, wanted 'cpu' or 'auto': this version computes on the CPU")
    return torch.device("cpu")
