"""A diffusion agent's archive: the arguments it is rebuilt with, and the first rows kept for sampling it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rrpolicy.agents.options import PlanningOptions
from rrpolicy.agents.policy import POLICIES
from rrpolicy.common.boxes import box_from_dict
from rrpolicy.common.persistence import training_arguments
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.networks import named_network, restored_kwargs
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs.controller import PDController

N_STARTS = 1024  # first rows kept in the archive, so that the agent can be sampled without its dataset


def checked_starts(rows: Tensor, layout: TrajectoryLayout) -> Tensor:
    """
    First rows of windows as an archive holds them.

    :raises ValueError: for first rows of windows that are not rows of the layout, those of a window in one row
    """
    width = layout.n_observation_rows * layout.width
    if rows.ndim != 2 or not 1 <= len(rows) <= N_STARTS or rows.shape[1] != width or rows.dtype != torch.float32:
        raise ValueError(f"starts are {rows.dtype} {tuple(rows.shape)}, wanted float32 (1..{N_STARTS}, {width})")
    return rows


class SpacesOnly(gym.Env[Any, Any]):
    """Stands in for the environment of a loaded agent: spaces and nothing else."""

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Box) -> None:
        self.observation_space = observation_space
        self.action_space = action_space


def policy_of(config: Mapping[str, Any], policy: type[nn.Module] | None) -> str | type[nn.Module]:
    """
    The policy that an archive names.

    :param policy: class that the caller of ``load`` passes
    :raises ValueError: for an own class that is not passed, or another one
    """
    return named_network(config["policy"], policy, POLICIES, "load(path, policy={})")


def arguments_of(
    config: Mapping[str, Any], normalizer: Normalizer, policy: type[nn.Module] | None = None
) -> dict[str, Any]:
    """
    The arguments of the constructor for an agent as its archive describes it.

    :param policy: class of its network, where that is not one of the library's
    """
    network = policy_of(config, policy)
    layout = TrajectoryLayout.from_dict(config["layout"])
    controller = config["controller"]
    spaces = [box_from_dict(config[f"{name}_space"]) for name in ("observation", "action")]
    return {
        "policy": network,
        "env": SpacesOnly(spaces[0], spaces[1]),
        "horizon": layout.horizon,
        "stride": layout.stride,
        "observation_columns": layout.observation_columns,
        "n_observation_rows": layout.n_observation_rows,
        "controller": PDController.from_dict(controller) if isinstance(controller, Mapping) else controller,
        "controller_kwargs": config.get("controller_kwargs"),  # archives of older versions have none
        "normalizer": normalizer,
        "policy_kwargs": restored_kwargs(network, config["policy_kwargs"]),
        "process": DiffusionProcess(**config["process"]),
        "planning": PlanningOptions(**config["planning"]),
        **training_arguments(config),
    }
