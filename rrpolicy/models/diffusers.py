"""Networks of ``diffusers`` and of Diffusion Policy (Chi et al. 2023, LeRobot) as score models, with any scheduler.

What counts of a scheduler is its table and what it predicts, read as `diffusion.schedulers` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.schedulers import FLOW_SCHEDULERS, process_of
from rrpolicy.models.bridges import attribute
from rrpolicy.models.foreign import Call, ForeignModel, Inputs, Prediction, from_module
from rrpolicy.models.paths import NoisePath, flow, vp


def from_diffusers(
    network: Any,
    scheduler: Any,
    event_shape: Sequence[int],
    n_condition: int = 0,
    call: Call | None = None,
    inputs: Inputs | None = None,
    **options: Any,
) -> ForeignModel:
    """
    A score model of a network of ``diffusers``: ``UNet1DModel``, ``UNet2DModel``, a conditional U-Net or a transformer.

    :param network: called with (sample, timestep), and with ``encoder_hidden_states`` where there is a condition
    :param scheduler: with which it was trained, or any that samples it
    :param event_shape: as the network takes it: (C, L), (C, H, W)
    :param n_condition: numbers of the condition, as one sequence (n / width, width) with the network's
        ``cross_attention_dim`` as width
    :param call: for networks that are called otherwise, ``lambda module, x, time, condition: ...``
    :param inputs: the opposite of ``call``, for `steer`
    :param options: as `from_module` takes them
    :raises ValueError: for a scheduler without a known table, or a distilled one
    """
    path, prediction = path_of_scheduler(scheduler)

    def conditional(module: Any, x: Tensor, time: Tensor, condition: Tensor) -> Any:
        width = getattr(getattr(module, "config", None), "cross_attention_dim", None) or n_condition
        return module(x, time, encoder_hidden_states=condition.reshape(len(x), -1, width))

    return from_module(
        network,
        path,
        prediction,
        event_shape,
        call=call or (conditional if n_condition else None),
        inputs=inputs or _reader("encoder_hidden_states" if n_condition else None),
        n_condition=n_condition,
        **{"clip": _clip_of(scheduler), **options},
    )


def from_diffusion_policy(
    unet: Any, scheduler: Any, horizon: int, action_dim: int, n_condition: int = 0, **options: Any
) -> ForeignModel:
    """
    A score model of Diffusion Policy's conditional U-Net: chunks of actions (horizon, action_dim) given observations.

    Both implementations, the original and LeRobot's, call ``unet(actions, timestep, global_cond=features)``. With a
    condition an event is flat: actions, then features, which are pinned.

    :param unet: ``ConditionalUnet1D`` or ``DiffusionConditionalUnet1d``
    :param scheduler: its ``noise_scheduler``
    :param horizon: rows of a chunk
    :param action_dim: numbers of an action, in the policy's normalised units
    :param n_condition: numbers of ``global_cond``; 0 for a U-Net without
    :param options: as `from_module` takes them
    :raises ValueError: as :func:`from_diffusers`
    """

    def conditional(module: Any, x: Tensor, time: Tensor, condition: Tensor) -> Any:
        return module(x, time, global_cond=condition)

    return from_diffusers(
        unet,
        scheduler,
        (horizon, action_dim),
        n_condition,
        conditional if n_condition else None,
        _reader("global_cond" if n_condition else None),
        **options,
    )


def path_of_scheduler(scheduler: Any) -> tuple[NoisePath, Prediction]:
    """
    The noise path of a scheduler of ``diffusers``, and what its network gives.

    :param scheduler: with a table of betas, or one of a flow
    :raises ValueError: for another one, with the reason
    """
    config = attribute(scheduler, "a scheduler of diffusers", "config")
    if type(scheduler).__name__ in FLOW_SCHEDULERS:
        return _flow_path(config), "velocity"
    process = process_of(scheduler)
    return _vp_path(process), process.prediction


def _vp_path(process: DiffusionProcess) -> NoisePath:
    if process.alphas_cumprod is not None:
        return vp(process.alphas_cumprod)
    levels = torch.arange(process.n_diffusion_steps)
    return NoisePath("vp", levels, process.alpha(levels).double(), process.sigma(levels).double())


def _flow_path(config: Any) -> NoisePath:
    """A network is told 1000 times the share of noise; its velocity is that of the share."""
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas is true: wrap the network by from_module with models.flow(noise_at=0)")
    straight = flow()
    return replace(straight, times=straight.times * config.get("num_train_timesteps", 1000))


def _clip_of(scheduler: Any) -> float | None:
    config = scheduler.config
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None


def _reader(condition: str | None) -> Inputs:
    """What tells x, time and the condition of a call, by place or by name."""

    def read(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        x = args[0] if args else next(kwargs[name] for name in ("sample", "x", "hidden_states") if name in kwargs)
        time = args[1] if len(args) > 1 else kwargs["timestep"]
        if condition is None:
            return x, time
        given = args[2] if len(args) > 2 and condition != "global_cond" else kwargs[condition]
        return x, time, given.flatten(1)

    return read
