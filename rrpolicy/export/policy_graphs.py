"""A policy of Stable-Baselines3 as an ONNX graph: observation in, its most likely action out, in environment units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rrpolicy.common.device import CPU, device_of
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.export.assembly import shared
from rrpolicy.export.graphs import N_EXAMPLES, onnx_model

if TYPE_CHECKING:
    from onnx import ModelProto


@usual_torch()
def policy_model(agent: Any) -> ModelProto:
    """
    The graph of a policy without planning.

    :param agent: an `rl.policies.Sb3Agent` on the CPU
    :return: with the input ``observation`` and the output ``action``
    :raises ValueError: for a policy on another device
    """
    policy, known = agent.policy, agent.statistics
    if (place := device_of(policy)) != CPU:
        raise ValueError(f"the policy is on {place}, wanted the CPU: agent.policy.to('cpu')")
    low, high = (torch.as_tensor(bound) for bound in (agent.action_space.low, agent.action_space.high))

    def acted(observation: Tensor) -> Tensor:
        seen = observation
        if known is not None:
            mean, variance = (torch.as_tensor(array, dtype=torch.float32) for array in (known.mean, known.variance))
            seen = ((observation - mean) / (variance + known.epsilon).sqrt()).clamp(-known.clip, known.clip)
        action = policy._predict(seen, deterministic=True)
        squashed = low + 0.5 * (action + 1.0) * (high - low)
        return (squashed if policy.squash_output else action).clamp(low, high)

    inputs = {"observation": torch.zeros(N_EXAMPLES, *agent.observation_space.shape)}
    model = onnx_model(acted, inputs, ["action"], {})
    shared(model)
    return model
