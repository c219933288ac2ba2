"""What the library needs of a reward, and nothing more: three kinds of functions, any of which may be your own.

A `RewardFunction` steers, a `StepReward` is drawn as a map and takes the place of an environment's reward, and a
`TransitionReward` is compared by EPIC. `RelativeReward` is the first two, its ``predict`` makes the third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rrpolicy.common.device import CPU, device_of
from rrpolicy.common.noise import randn
from rrpolicy.common.torch_mode import usual_tensor, usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.data.layout import TrajectoryLayout

TransitionReward = Callable[[Array, Array, Array], Array]
"""(observations (n, obs_dim), actions (n, act_dim), next observations (n, obs_dim)) -> rewards (n,)."""


class RewardFunction(Protocol):
    """
    A reward of noised events that steers: a function or ``nn.Module``.

    One that has ``gradient(x_t, t)`` is used by it; all others are differentiated.
    """

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """Events (B, *event_shape), normalised, at levels (B,) int64 -> (B,) in nats, by torch operations."""
        ...


class StepReward(Protocol):
    """
    A reward of single steps in environment units.

    Where it has ``heads``, as `RelativeReward`, ``"step"`` must be among them.
    """

    @property
    def layout(self) -> TrajectoryLayout | None:
        """Widths of observations and actions, and whether actions are scored; None for no steps at all."""
        ...

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """(n, obs_dim) and, where actions are scored, (n, act_dim), environment units -> (n,) in nats."""
        ...


def check_step_reward(reward: StepReward) -> TrajectoryLayout:
    """
    What the steps of a reward are.

    :raises ValueError: for a reward that scores no single steps
    """
    heads = getattr(reward, "heads", ("step",))
    layout: TrajectoryLayout | None = getattr(reward, "layout", None)
    if layout is None or "step" not in heads:
        raise ValueError(f"single transitions need a layout and a step head, this reward has {heads}")
    return layout


@usual_torch()
def reward_gradient(reward: RewardFunction, x_t: Tensor, t: Tensor, **options: Any) -> Tensor:
    """
    ∇ρ with respect to ``x_t``, (B, *event_shape).

    :param options: further arguments of a reward's own ``gradient``
    """
    own = getattr(reward, "gradient", None)
    if own is not None:
        return own(x_t, t, **options)
    with torch.enable_grad():
        inputs = usual_tensor(x_t.detach()).requires_grad_(True)
        (gradient,) = torch.autograd.grad(reward(inputs, usual_tensor(t)).sum(), inputs)
    return gradient


@usual_torch()
def check_reward_function(reward: Any, event_shape: tuple[int, ...], n_levels: int, device: torch.device = CPU) -> None:
    """
    Call a reward once, to see whether it can steer.

    :param event_shape: of the model that it is to steer
    :param n_levels: noise levels of that model
    :param device: where the model computes
    :raises ValueError: for something that is no function, another shape of what it returns, no gradient, or
        one that computes on another device
    """
    if not callable(reward):
        inner = ", wanted its .reward" if hasattr(reward, "reward") else ", wanted a function or module of (x_t, t)"
        raise ValueError(f"reward is a {type(reward).__name__}{inner}")
    place = device_of(reward) if isinstance(reward, nn.Module) else device
    if place != device:
        raise ValueError(f"the agent is on {device}, the reward on {place}: move one, such as reward.to(agent.device)")
    x_t = randn((2, *event_shape), torch.Generator().manual_seed(0), device).requires_grad_(True)
    with torch.enable_grad():
        value = reward(x_t, torch.tensor([0, n_levels - 1], device=device))
    if not isinstance(value, Tensor) or value.shape != (2,):
        found = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"the reward returned {found} for 2 events, wanted one number for each, of shape (2,)")
    if not hasattr(reward, "gradient") and not value.requires_grad:
        raise ValueError("the reward has no gradient at x_t: compute it by torch operations, without detach or no_grad")
