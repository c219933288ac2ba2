"""The one training loop, with SB3's verbs, shared by agents, rewards and discriminators.

A `Learner` draws a loss; the loop here does the rest: optimiser, averaged weights, callbacks, logging,
checkpoints and an exact resume. Stopped and resumed equals uninterrupted, bit for bit on one CPU thread.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import HumanOutputFormat, Logger, configure
from stable_baselines3.common.utils import get_latest_run_id
from stable_baselines3.common.vec_env import VecEnv

from rrpolicy.common.arguments import flag, number, whole
from rrpolicy.common.callbacks import (
    MaybeCallback,
    NoEnvironment,
    StepProgressBar,
    as_callbacks,
    refuse_evaluation,
    stop_noting,
)
from rrpolicy.common.computing import Precision
from rrpolicy.common.device import resolve
from rrpolicy.common.gradient_steps import GradientSteps
from rrpolicy.common.held_out import BestWeights, HeldOut, held_out
from rrpolicy.common.interruption import TrainingInterrupted, deferred_signals
from rrpolicy.common.kinds import check_config
from rrpolicy.common.noise import generator
from rrpolicy.common.options import LearnOptions, LoopOptions
from rrpolicy.common.persistence import LearningRate, Module
from rrpolicy.common.processes import current
from rrpolicy.common.schema import native, plain


class Learner(GradientSteps[Module]):
    """
    Anything that learns by gradient steps on a loss it can draw.

    Subclasses set ``module`` (the trained network) in ``_setup_model`` and implement :meth:`_draw` and :meth:`_loss_of`
    (or :meth:`_draw_loss` in their place), :meth:`_config` and :meth:`_from_config`. The other parameters are those of
    `TrainingOptions`.

    :param learning_rate: peak of a schedule with linear warm-up and cosine decay to 2 %, or an SB3 schedule:
        a callable of the remaining progress (1 -> 0)
    :param batch_size: samples per gradient step
    """

    kind: ClassVar[str]

    def __init__(
        self,
        learning_rate: LearningRate,
        batch_size: int,
        ema_decay: float = 0.999,
        weight_decay: float = 1e-4,
        max_grad_norm: float = 1.0,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        fast_noise: bool = False,
        accumulate: int = 1,
        precision: Precision = "fp32",
        compile: bool | str = False,
    ) -> None:
        if not 0 <= number("ema_decay", ema_decay) < 1:
            raise ValueError(f"ema_decay is {ema_decay}, it must lie in [0, 1)")
        given = learning_rate if callable(learning_rate) else number("learning_rate", learning_rate, above=0)
        self.learning_rate: LearningRate = given
        self.batch_size = whole("batch_size", batch_size, 1)
        self.ema_decay: float = native(ema_decay)
        self.weight_decay: float = number("weight_decay", weight_decay, lowest=0)
        self.max_grad_norm: float = number("max_grad_norm", max_grad_norm, above=0)
        self.tensorboard_log = tensorboard_log
        self.verbose = int(verbose) if isinstance(verbose, bool) else whole("verbose", verbose, 0)
        self.seed = None if seed is None else whole("seed", seed, 0)
        self.device = resolve(device)
        self.num_timesteps = 0
        self._total_timesteps = 0
        self._best = BestWeights()
        self._logger: Logger | None = None
        self._custom_logger = False
        self._tensorboard_run: str | None = None  # folder of the last run
        self._latest: tuple[Mapping[str, float], float] | None = None
        self._callback_env: VecEnv | None = None
        self._set_computing(fast_noise, accumulate, precision, compile)
        self.generator = generator(0 if self.seed is None else self.seed, self.noise_device)

    # ------------------------------------------------------------------ hooks

    def _training_config(self) -> dict[str, Any]:
        """The constructor's arguments that every learner has; a schedule is not kept."""
        return {
            "learning_rate": None if callable(self.learning_rate) else self.learning_rate,
            "batch_size": self.batch_size,
            "ema_decay": self.ema_decay,
            "weight_decay": self.weight_decay,
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
            **self._computing_config(),
        }

    # ------------------------------------------------------------------ SB3 verbs

    @property
    def logger(self) -> Logger:
        if self._logger is None:  # SB3's own default would leave a temporary folder for every learner
            self._logger = Logger(None, [HumanOutputFormat(sys.stdout)] if self.verbose else [])
        return self._logger

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the logger, whose open files no other process can have: for workers and copies, not files."""
        return {**self.__dict__, "_logger": None, "_custom_logger": False, "_callback_env": None}

    def set_logger(self, logger: Logger) -> None:
        """Log to ``logger`` alone, whatever ``tensorboard_log`` is."""
        self._logger, self._custom_logger = logger, True

    def _setup_logger(self, reset_num_timesteps: bool) -> None:
        """A new training is a new run of TensorBoard, one that goes on continues its own."""
        if self.tensorboard_log is None or self._custom_logger or not current().is_main:
            return
        if reset_num_timesteps or self._tensorboard_run is None:
            self._tensorboard_run = f"{self.kind}_{get_latest_run_id(self.tensorboard_log, self.kind) + 1}"
        elif self._logger is not None and self._logger.dir is not None:
            return
        formats = ["stdout", "tensorboard"] if self.verbose else ["tensorboard"]
        self._logger = configure(str(Path(self.tensorboard_log) / self._tensorboard_run), formats)

    def dump_logs(self) -> None:
        """Log the last step, as callbacks such as SB3's ``LogEveryNTimesteps`` want it."""
        if self._latest is not None and current().is_main:
            self._log(*self._latest)

    def get_env(self) -> VecEnv | None:
        """The environment for SB3's callbacks: while learning a stand-in that counts as one environment, else None."""
        return self._callback_env

    @property
    def best_step(self) -> int | None:
        """The step whose averaged weights have the lowest held-out loss; they are kept when learning ends."""
        return self._best.step

    @property
    def best_loss(self) -> float | None:
        """Held-out loss at :attr:`best_step`."""
        return self._best.loss

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
        watch: HeldOut | None = None,
    ) -> None:
        """Take ``total_timesteps`` gradient steps; see ``learn`` of the subclasses."""
        progress_bar = flag("progress_bar", progress_bar)
        log_interval = whole("log_interval", log_interval, 0)
        checkpoint_freq = whole("checkpoint_freq", checkpoint_freq, 1)
        dones = [False]  # which SB3's StopTrainingOnMaxEpisodes counts: no episode ends in a gradient step
        stop_at = self._begin(total_timesteps, flag("reset_num_timesteps", reset_num_timesteps), watch)
        if checkpoint_path is not None:  # what no archive can hold is refused before anything is learned
            check_config(self.kind, plain(self._archive_config()), "arguments")
        self._callback_env, processes = NoEnvironment(), current()
        processes.check_same(self.module)
        try:
            callbacks = self._init_callback(callback, total_timesteps if progress_bar and processes.is_main else 0)
            total_timesteps = stop_at  # as SB3's callbacks count, with the steps of before
            callbacks.on_training_start(locals(), globals())
            started, first, stopped_by = time.process_time(), self.num_timesteps, 0
            with deferred_signals() as received:
                while self.num_timesteps < stop_at:
                    values = self.gradient_step()
                    measured = watch is not None and watch.due(self.num_timesteps)
                    over = watch is not None and measured and self._measure(watch)
                    self._latest = values, (self.num_timesteps - first) / max(time.process_time() - started, 1e-9)
                    if measured or (log_interval and self.num_timesteps % log_interval == 0):
                        self.dump_logs()
                    callbacks.update_locals(locals())
                    last = not callbacks.on_step() or over or self.num_timesteps == stop_at
                    last, stopped_by = processes.stop(last, received[0] if received else 0)
                    last = last or stopped_by > 0
                    if last and not stopped_by:  # what was interrupted goes on
                        self._best.put_into(self.averaged)
                    due = checkpoint_path is not None and (last or self.num_timesteps % checkpoint_freq == 0)
                    if checkpoint_path is not None and due and processes.is_main:
                        self.save(checkpoint_path)
                    if last:
                        break
            callbacks.on_training_end()
        finally:
            self._callback_env = None
            stop_noting()
        if stopped_by or received:
            raise TrainingInterrupted(stopped_by or received[0])

    @staticmethod
    def _watch(loss: Callable[[], float] | None, total_timesteps: int, options: LearnOptions) -> HeldOut | None:
        """
        How a training is watched; arguments are refused here, before anything is changed.

        :param loss: of what is held out; None for nothing
        :param options: of ``learn``
        """
        begins = options.get("reset_num_timesteps", True)
        freq, patience = options.get("eval_freq", 500), options.get("patience")
        return held_out(loss, freq, patience, total_timesteps if begins else None)

    def _learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback,
        options: LoopOptions | LearnOptions,
        watch: HeldOut | None = None,
    ) -> None:
        """Take ``total_timesteps`` gradient steps, with the options of ``learn``."""
        loop = {name: value for name, value in options.items() if name in LoopOptions.__annotations__}
        self._optimise(total_timesteps, callback, watch=watch, **loop)  # type: ignore[arg-type]

    def _begin(self, total_timesteps: int, reset_num_timesteps: bool, watch: HeldOut | None) -> int:
        """
        Count from 0 or from before, with the averaged weights and the logger that go with it.

        :return: the step to stop at
        """
        total_timesteps = whole("total_timesteps", total_timesteps, 0)
        if self.compile_backend and current().n > 1:
            raise ValueError(
                f"compile is {self.compile_backend!r}, which several processes that share a batch cannot use"
            )
        if reset_num_timesteps:
            self.num_timesteps = 0
            self._total_timesteps = total_timesteps
        else:
            self._total_timesteps = max(self._total_timesteps, self.num_timesteps + total_timesteps)
        if total_timesteps:  # without a step the weights that act stay the same
            self._best.take_back(self.averaged)
            if reset_num_timesteps or watch is None:
                self._best = BestWeights()
        self._setup_logger(reset_num_timesteps)
        self._place_generator()
        return self.num_timesteps + total_timesteps

    def _measure(self, watch: HeldOut) -> bool:
        """Measure the held-out loss; whether to stop."""
        with torch.no_grad(), current().sharing(self):
            loss = watch.loss()
        self._best.consider(self.num_timesteps, loss, self.averaged)
        self.logger.record("eval/loss", loss)
        self.logger.record("eval/best_step", self._best.step)
        return watch.over(self.num_timesteps, self._best.step or 0)

    def _init_callback(self, callback: MaybeCallback, n_progress_steps: int) -> BaseCallback:
        callbacks = as_callbacks(callback)
        refuse_evaluation(callbacks, self)
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
