"""What a diffusion agent refuses: controllers that do not go with its plans, data that do not go with its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rrpolicy.agents.inverse_dynamics import INVERSE_DYNAMICS
from rrpolicy.common.arguments import whole
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.envs.controller import Controller, PDController

T = TypeVar("T")


def check_controller(controller: Any, arguments: Mapping[str, Any] | None, lookahead: float) -> None:
    """
    Check a controller and its options.

    :raises ValueError: for another kind of controller, or options that do not go with it
    """
    learned = controller == INVERSE_DYNAMICS
    if not learned and controller is not None and not isinstance(controller, PDController):
        raise ValueError(f"controller is {controller!r}, wanted a PDController, {INVERSE_DYNAMICS!r} or None")
    if arguments and not learned:
        raise ValueError(f"controller_kwargs is {arguments}, wanted none without controller={INVERSE_DYNAMICS!r}")
    if learned and lookahead != 1:
        raise ValueError(f"lookahead is {lookahead}, inverse dynamics is learned for the next row: wanted 1")


def check_columns(controller: Controller | None, layout: TrajectoryLayout) -> None:
    """
    Check that a law's columns are those of the observation, one position for each action.

    :raises ValueError: for a law whose columns are not those of the observation, or not as many as actions
    """
    if not isinstance(controller, PDController):
        return
    positions, columns = controller.position_columns, (*controller.position_columns, *controller.velocity_columns)
    if not all(0 <= column < layout.observation_dim for column in columns):
        raise ValueError(f"controller has the columns {columns}, wanted some of 0..{layout.observation_dim - 1}")
    if len(positions) != layout.action_dim:
        raise ValueError(
            f"controller has {len(positions)} positions, wanted one for each of {layout.action_dim} actions"
        )


def checked_group(name: str, value: Any, kind: type[T]) -> T:
    """
    A group of options.

    :raises TypeError: for something else than an object of this kind
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, wanted {name}={kind.__name__}(...)")
    return value


def checked_datasets(dataset: Any, total_timesteps: int | None) -> tuple[list[TrajectoryDataset], int]:
    """
    The first two arguments of ``learn``.

    :raises TypeError: for something else than datasets, or without a number of steps
    :raises ValueError: for another number of steps
    """
    datasets = [dataset] if isinstance(dataset, TrajectoryDataset) else dataset
    if not isinstance(datasets, Sequence) or not all(isinstance(one, TrajectoryDataset) for one in datasets):
        raise TypeError(
            f"learn() takes a TrajectoryDataset first, got {type(dataset).__name__}; "
            "call it as agent.learn(dataset, total_timesteps=10_000)"
        )
    if total_timesteps is None:
        raise TypeError("learn() lacks total_timesteps; call it as agent.learn(dataset, total_timesteps=10_000)")
    return list(datasets), whole("total_timesteps", total_timesteps, 0)
