"""A user's own network with a reward added to what it gives, to be put back into the user's sampler or policy loop."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import number
from rrpolicy.common.device import device_of
from rrpolicy.models.foreign import ForeignModel, Inputs
from rrpolicy.rewards.relative_reward import RelativeReward


def steer(model: ForeignModel, reward: RelativeReward, scale: float = 1.0, inputs: Inputs | None = None) -> nn.Module:
    """
    The network of a model, steered: the same call and the same kind of output, with scale · σ∇ρ added in its own units.

    At times between two levels the gradients of both are mixed by their distance in time.

    :param model: made by `from_module`, with which the reward was extracted
    :param reward: ρ of the model's events
    :param scale: strength; 0 is the network itself
    :param inputs: what tells x and time (and condition) from the arguments of a call; None: as the model
        was told, else the first two (three)
    :return: a module to put in the network's place
    :raises ValueError: for a reward of other events or levels, a scale that is not finite, or a model in other units
    """
    if not math.isfinite(number("scale", scale)):
        raise ValueError(f"scale is {scale}, it must be finite")
    if not model.steerable:
        raise ValueError(
            "the model is one of in_units_of, whose events are not its network's: steer the pair's other one"
        )
    if tuple(reward.event_shape) != model.event_shape:
        raise ValueError(
            f"the model has events of shape {model.event_shape}, the reward of {tuple(reward.event_shape)}"
        )
    if not reward.process.same_levels(model.process):
        raise ValueError(f"the model has the noise levels {model.process}, the reward {reward.process}")
    if (place := device_of(reward)) != model.device:
        raise ValueError(
            f"the model is on {model.device}, the reward on {place}: move one, such as reward.to(model.device)"
        )
    return SteeredModule(model, reward, scale, inputs)


class SteeredModule(nn.Module):
    """A network and a reward; see :func:`steer`. Attributes that it lacks are those of the network."""

    def __init__(self, model: ForeignModel, reward: RelativeReward, scale: float, inputs: Inputs | None = None) -> None:
        super().__init__()
        self.module = model.module
        self.scale = scale
        self._model, self._reward = [model], [reward]  # lists: their weights are not its own
        self._inputs = inputs or model.inputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.module(*args, **kwargs)
        if self.scale == 0:
            return output
        x, time, *condition = self._read(*args, **kwargs)
        plain = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        change = self._change(x.detach(), time, *condition).to(plain)
        return _changed(output, plain + change)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def _read(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if self._inputs is not None:
            return self._inputs(*args, **kwargs)
        n = 3 if self._model[0].n_condition else 2
        values = (*args, *kwargs.values())
        if len(values) < n:
            raise ValueError(f"a call with {len(values)} arguments does not tell x and time: pass inputs=...")
        return values[:n]

    def _change(self, x: Tensor, time: Any, condition: Tensor | None = None) -> Tensor:
        """By how much the output changes (B, *inner_shape)."""
        model, path = self._model[0], self._model[0].path
        device = device_of(self._reward[0])
        x = x.float().to(device)
        times = torch.as_tensor(time).expand(len(x))
        level, share = path.at(times)
        needed = torch.stack([(share < 1).any(), (share > 0).any()]).cpu().tolist()  # waits for times on a GPU, once
        level, share = level.to(device), share.to(device)
        path, pinned = path.to(device), model._pinned.to(device)
        change = torch.zeros_like(x)
        none = x.new_zeros((len(x), 0))
        for t, weight, wanted in ((level, 1 - share, needed[0]), (level + 1, share, needed[1])):
            if not wanted:
                continue
            c = (path.c[t]).to(x).view(-1, *(1,) * (x.ndim - 1))
            event = torch.where(pinned, x, x / c)
            x_t = model.joined(event, none if condition is None else condition.float().to(device))
            sigma = model.process.levels(x_t, t)[1]
            eps_change, _ = model.split(-self.scale * sigma * self._reward[0].gradient(x_t, t))
            eps_change = torch.where(pinned, 0.0, eps_change)
            change += weight.to(x).view(c.shape) * model.output_change(t, eps_change)
        return change


def _changed(output: Any, value: Tensor) -> Any:
    """The same kind of output with another tensor in it."""
    if isinstance(output, Tensor):
        return value
    if isinstance(output, tuple):
        return (value, *output[1:])
    if is_dataclass(output) and "sample" in {field.name for field in fields(output)}:
        return replace(output, sample=value)  # type: ignore[type-var]
    raise TypeError(f"the network gives a {type(output).__name__}, wanted a tensor, a tuple or an output with .sample")
