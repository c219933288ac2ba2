"""Options that all learners share, described once: of the training, for constructors, and of the loop, for ``learn``.

Constructors and ``learn`` take them as keywords, ``**options: Unpack[...]``, and refuse other names before anything is
changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from rrpolicy.common.computing import Precision


class ComputingOptions(TypedDict, total=False):
    """
    How a learner computes, which changes nothing that it learns but noise and rounding.

    :param fast_noise: draw on the device instead of the CPU, in learning and in acting: nothing is moved, but a seed
        gives other numbers on another kind of device; default False
    :param accumulate: parts in which the batch of a gradient step passes through the networks one after another, which
        divides the memory by their number and changes no number but for rounding; default 1
    :param precision: ``"fp32"`` (default), or ``"bf16"``: networks are called in bfloat16 while learning (autocast);
        weights, their average, optimiser and losses stay in float32, and so does whatever acts or is compared
    :param compile: compile the networks with ``torch.compile``: True for its backend ``"inductor"``, or the name of
        another; default False. No archive holds it; what is loaded is compiled by ``compile_networks()``
    """

    fast_noise: bool
    accumulate: int
    precision: Precision
    compile: bool | str


COMPUTING = tuple(ComputingOptions.__annotations__)


class TrainingOptions(ComputingOptions, total=False):
    """
    Keywords of every learner's constructor: those of `ComputingOptions`, and

    :param ema_decay: decay of the averaged weights, which are the ones that are used; warmed up from 0; default 0.999
    :param weight_decay: AdamW weight decay; default 1e-4
    :param max_grad_norm: gradient clipping; default 1
    :param tensorboard_log: folder of the TensorBoard log; default: none
    :param verbose: 0 (default) silent, 1 prints the log
    :param seed: seed of initial weights and of every random draw in training; None (default) is 0
    :param device: where networks compute, see `common.device.resolve`; default ``"auto"``. A learner that compares two
        models computes by default where they do
    """

    ema_decay: float
    weight_decay: float
    max_grad_norm: float
    tensorboard_log: str | None
    verbose: int
    seed: int | None
    device: torch.device | str


class LoopOptions(TypedDict, total=False):
    """
    Keywords of every ``learn``.

    :param log_interval: steps between two log lines, default 100; 0 for none
    :param reset_num_timesteps: False continues the count and the learning-rate schedule (resume); default True
    :param progress_bar: show one; default False
    :param checkpoint_path: archive written every ``checkpoint_freq`` steps, at the end, and on Ctrl-C or SIGTERM;
        default: none
    :param checkpoint_freq: steps between two checkpoints, default 1000
    """

    log_interval: int
    reset_num_timesteps: bool
    progress_bar: bool
    checkpoint_path: str | Path | None
    checkpoint_freq: int


class LearnOptions(LoopOptions, total=False):
    """
    Keywords of every ``learn`` that can be watched: those of `LoopOptions`, and when the held-out loss is measured.

    That is the loss of the averaged weights on the ``eval_dataset``, logged as ``eval/loss``; when learning ends, the
    averaged weights of ``best_step``, where it was lowest, are in use. Training itself does not change.

    :param eval_freq: steps between two measurements, default 500
    :param patience: measurements without a lower loss after which learning ends; None (default) for all steps
    """

    eval_freq: int
    patience: int | None


def check_options(function: str, given: Mapping[str, Any], known: type) -> None:
    """
    Refuse keywords that a function does not take.

    :param function: its name, for the error
    :param given: keywords
    :param known: the TypedDict that names those it takes
    :raises TypeError: naming the first unknown keyword and the known ones
    """
    if unknown := sorted(set(given) - set(known.__annotations__)):
        raise TypeError(f"{function}() takes no {unknown[0]!r}, wanted some of {list(known.__annotations__)}")
