"""Networks of Stable-Baselines3 and sb3-contrib, built to fit stored weights: the widths of
layers are those of the tensors, whatever a configuration claims."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, create_mlp
from stable_baselines3.sac.policies import Actor as SquashedGaussianActor
from stable_baselines3.td3.policies import Actor as DeterministicActor
from torch import Tensor, nn

from rrpolicy.common.weights import check_alike, check_layers

Weights = Mapping[str, Tensor]
Activation = type[nn.Module] | None
Builder = Callable[[spaces.Box, spaces.Box, Weights, Activation], BasePolicy]


def actor_weights(weights: Weights) -> dict[str, Tensor]:
    """Weights of the actor among those of an off-policy algorithm's policy."""
    return {name.removeprefix("actor."): value for name, value in weights.items() if name.startswith("actor.")}


def filled(
    network: str,
    observation_space: spaces.Box,
    action_space: spaces.Box,
    weights: Weights,
    activation: Activation = None,
) -> BasePolicy:
    """
    A network with its weights, whose layers are compared with its sizes before memory is used.

    :param network: a key of :data:`NETWORKS`
    :raises RuntimeError: for weights that are not those of such a network
    :raises ValueError: for a network that scales its actions to bounds that are not finite
    """
    if network in _SCALED and not action_space.is_bounded():
        raise ValueError(f"actions of this network are scaled to their bounds, the action space is {action_space}")
    for widths in _layers(network, weights, observation_space.shape[0], action_space.shape[0]):
        check_layers(widths, weights)
    policy = NETWORKS[network](observation_space, action_space, weights, activation)
    check_alike(weights, policy.state_dict())
    policy.load_state_dict(dict(weights))
    policy.set_training_mode(False)
    return policy


def network_of(policy: BasePolicy) -> tuple[str, str]:
    """
    Names of a policy's network and of its activation.

    :raises ValueError: for a policy that could not be rebuilt from them and its weights
    """
    kind = f"{type(policy).__module__}.{type(policy).__qualname__}"
    plain_features = isinstance(getattr(policy, "features_extractor", None), FlattenExtractor)
    if kind not in _CLASSES or not plain_features or getattr(policy, "use_sde", False):
        raise ValueError(
            f"policy is a {kind}, wanted one of PPO, A2C, TRPO, SAC, TQC, TD3, DDPG or ARS that sees vectors through "
            "FlattenExtractor, without state-dependent exploration (use_sde)"
        )
    activation: str = getattr(policy, "activation_fn").__name__  # noqa: B009
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation_fn is {activation}, wanted one of {', '.join(ACTIVATIONS)}")
    return _CLASSES[kind], activation


# ---------------------------------------------------------------------- builders


def _widths(weights: Weights, prefix: str) -> list[int]:
    """
    The outputs of the layers ``prefix.0``, ``prefix.2``, … in their order.

    :raises RuntimeError: when the layers between them are not stored, before anything of their size is made
    """
    layers = {
        int(match[1]): len(value)
        for name, value in weights.items()
        if (match := re.fullmatch(rf"{re.escape(prefix)}\.([0-9]{{1,4}})\.weight", name)) and value.ndim == 2
    }
    widths = [layers[index] for index in sorted(layers)]
    check_layers(widths, weights)
    return widths


def _layers(network: str, weights: Weights, n_inputs: int, n_outputs: int) -> list[list[int]]:
    """Widths of a network's stacks of layers, inputs and outputs included."""
    if network == "actor-critic":
        policy, value = (_widths(weights, f"mlp_extractor.{part}_net") for part in ("policy", "value"))
        return [[n_inputs, *policy, n_outputs], [n_inputs, *value, 1]]
    if network == "squashed-gaussian":
        return [[n_inputs, *_widths(weights, "latent_pi"), n_outputs]]
    widths = _widths(weights, "mu" if network == "deterministic" else "action_net")
    return [[n_inputs, *widths[:-1], n_outputs]]


def _actor(kind: type[BasePolicy], layers: str, n_outputs: int) -> Builder:
    """A builder of the actors of off-policy algorithms."""

    def build(
        observation_space: spaces.Box, action_space: spaces.Box, weights: Weights, activation: Activation = None
    ) -> BasePolicy:
        """An actor with layers of the widths of the weights."""
        widths, extractor = _widths(weights, layers), FlattenExtractor(observation_space)
        return kind(
            observation_space,
            action_space,
            net_arch=widths[: len(widths) - n_outputs],
            features_extractor=extractor,
            features_dim=extractor.features_dim,
            activation_fn=activation or nn.ReLU,
        )

    return build


def _actor_critic(
    observation_space: spaces.Box, action_space: spaces.Box, weights: Weights, activation: Activation = None
) -> BasePolicy:
    layers = {part: _widths(weights, f"mlp_extractor.{name}_net") for part, name in (("pi", "policy"), ("vf", "value"))}
    return ActorCriticPolicy(
        observation_space, action_space, lambda _: 0.0, net_arch=layers, activation_fn=activation or nn.Tanh
    )


class SearchPolicy(BasePolicy):
    """
    The policy of augmented random search: a matrix, or layers with tanh behind the last.

    :param observation_space: a flat Box
    :param action_space: a flat Box
    :param action_net: from features to actions
    :param squash_output: whether the last layer has a tanh behind it
    :param activation_fn: between the layers
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        action_net: nn.Module,
        squash_output: bool,
        activation_fn: type[nn.Module] = nn.ReLU,
    ) -> None:
        extractor = FlattenExtractor(observation_space)
        super().__init__(observation_space, action_space, features_extractor=extractor, squash_output=squash_output)
        self.action_net, self.activation_fn = action_net, activation_fn

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.action_net(self.extract_features(observation, self.features_extractor))


def _search(
    observation_space: spaces.Box, action_space: spaces.Box, weights: Weights, activation: Activation = None
) -> BasePolicy:
    """A linear policy of one tensor, as sb3-contrib wrote until 1.6, or the layers that it writes since."""
    n_inputs, n_outputs = observation_space.shape[0], action_space.shape[0]
    if "action_net.weight" in weights:
        return SearchPolicy(observation_space, action_space, nn.Linear(n_inputs, n_outputs, bias=False), False)
    widths, bias, between = _widths(weights, "action_net"), "action_net.0.bias" in weights, activation or nn.ReLU
    layers = create_mlp(n_inputs, n_outputs, widths[:-1], between, squash_output=len(widths) > 1, with_bias=bias)
    return SearchPolicy(observation_space, action_space, nn.Sequential(*layers), len(widths) > 1, between)


NETWORKS: Mapping[str, Builder] = {
    "actor-critic": _actor_critic,
    "squashed-gaussian": _actor(SquashedGaussianActor, "latent_pi", 0),
    "deterministic": _actor(DeterministicActor, "mu", 1),
    "search": _search,
}
"""Builders of policies from spaces, weights (for the widths of layers alone) and activation, by name."""

_LAYERS = (nn.ReLU, nn.Tanh, nn.ELU, nn.LeakyReLU, nn.SiLU)
ACTIVATIONS: Mapping[str, type[nn.Module]] = {layer.__name__: layer for layer in _LAYERS}
_SCALED = ("squashed-gaussian", "deterministic")
_CLASSES = {
    "stable_baselines3.common.policies.ActorCriticPolicy": "actor-critic",
    "stable_baselines3.sac.policies.Actor": "squashed-gaussian",
    "sb3_contrib.tqc.policies.Actor": "squashed-gaussian",  # SAC's; the critics differ
    "stable_baselines3.td3.policies.Actor": "deterministic",
    f"{__name__}.SearchPolicy": "search",
}
