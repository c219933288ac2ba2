"""What the last layer of a reward's window head is given: features φ with ρ = φ(x, t)·w, of any network that ends with
a linear layer of one output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rrpolicy.common.torch_mode import usual_tensor
from rrpolicy.rewards.relative_reward import RelativeReward

MAX_FEATURES = 4096  # whose covariance takes 128 MiB
TOLERANCE = 1e-3


def last_layer(reward: RelativeReward) -> nn.Linear:
    """
    The linear layer that a window head ends with.

    :raises ValueError: for a reward of another kind or without a window head, a network that ends with something else,
        or a layer of more than `MAX_FEATURES` inputs
    """
    if not isinstance(reward, RelativeReward) or "window" not in reward.heads:
        kind = f"one with {reward.heads}" if isinstance(reward, RelativeReward) else f"a {type(reward).__name__}"
        raise ValueError(f"reward must be a RelativeReward with a window head, it is {kind}")
    layer = _last_linear(reward)
    if layer is None or not _is_last(reward, layer):
        raise ValueError(
            f"the window head's network, a {type(reward.window).__name__}, must end with an nn.Linear of 1 output"
        )
    if layer.in_features > MAX_FEATURES:
        raise ValueError(f"the last layer has {layer.in_features} inputs, wanted at most {MAX_FEATURES}")
    return layer


def _last_linear(reward: RelativeReward) -> nn.Linear | None:
    layers = [one for one in reward.window.modules() if isinstance(one, nn.Linear) and one.out_features == 1]
    return layers[-1] if layers else None


@torch.no_grad()
def _is_last(reward: RelativeReward, layer: nn.Linear) -> bool:
    """Whether the network's output is that of the layer."""
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, *reward.event_shape, generator=generator).to(reward.device)
    t = torch.tensor([0, reward.process.n_diffusion_steps - 1], device=reward.device)
    inputs = _inputs(reward, layer, x_t, t)
    if inputs is None or inputs.ndim != 2:
        return False
    output: Tensor = reward.window(x_t, t)
    return bool(torch.allclose(layer(inputs), output, rtol=TOLERANCE, atol=TOLERANCE))


def _inputs(reward: RelativeReward, layer: nn.Linear, x_t: Tensor, t: Tensor) -> Tensor | None:
    """What a layer is given in the window head, the last time that it is called."""
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
        reward.window(x_t, t)
    return seen[-1] if seen else None


def rho_features(reward: RelativeReward, x_t: Tensor, t: Tensor) -> Tensor:
    """
    φ (B, F) of noised events, in nats per weight; where the layer has a bias, the last one is what the bias counts.

    :param reward: that :func:`last_layer` takes
    :param x_t: (B, *event_shape), normalised
    :param t: levels (B,)
    """
    layer = _last_linear(reward)
    inputs = None if layer is None else _inputs(reward, layer, x_t, t)
    assert layer is not None and inputs is not None
    if layer.bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    scale = reward.value_scale if reward.value_units else reward.gradient_scale
    return scale[t][:, None] * inputs


def feature_slopes(reward: RelativeReward, x_t: Tensor, t: Tensor, along: Tensor) -> Tensor:
    """
    Derivatives of φ (k, B, F) along directions of events.

    The gradient of u·φ is linear in u, so its own gradient with respect to u is what is wanted: networks of rewards are
    differentiated twice in extraction, too, while not all can be differentiated forwards.

    :param along: (k, *event_shape), zero at pinned entries
    """
    with torch.enable_grad():
        inputs = usual_tensor(x_t.detach()).requires_grad_(True)
        features = rho_features(reward, inputs, usual_tensor(t))
        u = torch.zeros_like(features, requires_grad=True)
        (gradient,) = torch.autograd.grad(features, inputs, u, create_graph=True)
        slopes = [torch.autograd.grad((gradient * one).sum(), u, retain_graph=True)[0] for one in along]
    return torch.stack(slopes)
