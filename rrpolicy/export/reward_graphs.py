"""A reward as ONNX graphs: ρ of noised events, and of clean data in environment units."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rrpolicy.common.device import CPU
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.export.assembly import joined, shared
from rrpolicy.export.graphs import N_EXAMPLES, onnx_model, traced
from rrpolicy.rewards.relative_reward import RelativeReward

if TYPE_CHECKING:
    from onnx import ModelProto


@usual_torch()
def reward_model(reward: RelativeReward) -> ModelProto:
    """
    The graphs of a reward.

    :param reward: on the CPU
    :return: with inputs ``x_t``, ``t`` and output ``rho``; with a layout also ``window_observations``,
        ``window_actions`` and ``window_reward``, and with a step head ``step_observations``, ``step_actions`` and
        ``step_reward``, in environment units; no actions where they are not scored
    :raises ValueError: for a reward on another device, or one that cannot be exported
    """
    if reward.device != CPU:
        raise ValueError(f"the reward is on {reward.device}, wanted the CPU: reward.to('cpu')")
    models = [_model(reward, {"x_t": torch.zeros(N_EXAMPLES, *reward.event_shape), "t": _levels(reward)}, "rho")]
    layout = reward.layout
    if layout is not None and reward.normalizer is not None:
        names = {"window": (layout.horizon,), **({"step": ()} if "step" in reward.heads else {})}
        for what, rows in names.items():
            inputs = {f"{what}_observations": torch.zeros(N_EXAMPLES, *rows, layout.observation_dim)}
            if layout.plan_actions:
                inputs[f"{what}_actions"] = torch.zeros(N_EXAMPLES, *rows, layout.action_dim)
            models.append(_model(_in_units(reward), inputs, f"{what}_reward"))
    model = joined(models)
    shared(model)
    return model


def _levels(reward: RelativeReward) -> Tensor:
    return torch.arange(N_EXAMPLES) % reward.process.n_diffusion_steps


def _model(function: Callable[..., Tensor], inputs: dict[str, Tensor], output: str) -> ModelProto:
    examples = tuple(inputs.values())
    graph = traced(lambda *given: function(*given), examples)
    return onnx_model(graph, inputs, [output], {})


def _in_units(reward: RelativeReward) -> Callable[..., Tensor]:
    """As `RelativeReward.predict` at its default levels, by tensors."""
    layout, normalizer, process = reward.layout, reward.normalizer, reward.process
    assert layout is not None and normalizer is not None

    def scored(observations: Tensor, actions: Tensor | None = None) -> Tensor:
        given: Any = None if actions is None else normalizer.actions.normalize(actions)
        x0 = layout.pack(normalizer.observations.normalize(observations), given)
        if x0.ndim == 2:
            level = torch.full((x0.shape[0],), reward.map_level, dtype=torch.int64)
            return reward.forward_steps(process.alpha(reward.map_level) * x0, level)
        level = torch.zeros(x0.shape[0], dtype=torch.int64)
        x_t = torch.where(reward.pinned, x0, process.alpha(0) * x0)
        return reward(x_t, level, "window" if "window" in reward.heads else "step")

    return scored
