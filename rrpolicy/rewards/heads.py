"""The network of a reward's window head: one of the library's by name, or an own class, and how archives keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rrpolicy.diffusion.networks import (
    REWARD_NETWORKS,
    archived_kwargs,
    named_network,
    network_class,
    network_name,
    restored_kwargs,
)
from rrpolicy.diffusion.process import DiffusionProcess


def window_network(
    process: DiffusionProcess,
    event_shape: tuple[int, ...],
    pinned: Tensor,
    network: str | type[nn.Module] = "mlp",
    **kwargs: Any,
) -> nn.Module:
    """
    The network of a window head.

    :param network: the name of one of the library's, or an own class
    :param kwargs: its further arguments
    :raises ValueError: for a network that cannot be a reward
    """
    made = network_class(network, REWARD_NETWORKS, "window_kwargs['network']")
    return made(process, event_shape, pinned, n_outputs=1, **kwargs)


def archived_window(window_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a window head as an archive keeps them: an own class by its name."""
    network = window_kwargs.get("network", "mlp")
    if isinstance(network, str):
        return dict(window_kwargs)
    others = {name: value for name, value in window_kwargs.items() if name != "network"}
    return {"network": network_name(network), **archived_kwargs(network, others)}


def restored_window(window_kwargs: Mapping[str, Any], given: type[nn.Module] | None) -> dict[str, Any]:
    """
    Arguments of a window head from an archive.

    :param given: own class that the caller of ``load`` passes
    :raises ValueError: for an own class that is not passed, or another one
    """
    name = window_kwargs.get("network") or "mlp"
    network = named_network(name, given, REWARD_NETWORKS, "load(path, network={})")
    if isinstance(network, str):
        return dict(window_kwargs)
    return {"network": network, **restored_kwargs(network, window_kwargs)}
