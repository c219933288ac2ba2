"""The environment of an agent: made from its id, flat, and in its own units."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from rrpolicy.common.spaces import Env, FlatSpaces, check_spaces, checked_environment, flat_box, flat_box_or_none
from rrpolicy.data.reference_scores import is_registered


def flat_environment(env: Env | str) -> Env:
    """
    An environment as an agent needs it.

    :param env: an environment, a vectorised one of Stable-Baselines3, or an id
    :return: it; a single one whose spaces are boxes of other shapes, dictionaries or tuples in ``FlatSpaces``
    :raises ValueError: for something else, other spaces, an id that cannot be made, or normalised observations
    """
    made = checked_environment(env)
    if isinstance(made, gym.Env) and not all(flat_box_or_none(space) for _, space in _spaces(made)):
        return FlatSpaces(made)
    for name, space in _spaces(made):
        flat_box(space, name)
    return made


def fitting_environment(env: Env | str, observation_space: spaces.Box, action_space: spaces.Box) -> Env:
    """
    An environment as the agent with these spaces needs it.

    :param env: as for :func:`flat_environment`
    :raises ValueError: as :func:`flat_environment`, and when the spaces are others than the agent's
    """
    one = checked_environment(env)
    with suppress(ValueError):  # the message below names the space as it is
        one = flat_environment(one)
    check_spaces(observation_space, action_space, *(space for _, space in _spaces(one)))
    return one


def _spaces(env: Env) -> tuple[tuple[str, spaces.Space[Any]], ...]:
    return ("observation", env.observation_space), ("action", env.action_space)


def place_of(env: Any) -> dict[str, Any]:
    """
    The environment as a card notes it, so that an archive can be acted with by its name alone.

    :param env: of an agent
    :return: ``{"environment": id}`` for one as it is registered, else nothing
    """
    spec = getattr(env, "spec", None)
    if spec is None or not isinstance(env, gym.Env) or ":" in spec.id or not is_registered(env):
        return {}
    return {"environment": spec.id}
