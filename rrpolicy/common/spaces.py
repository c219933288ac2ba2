"""Spaces as flat boxes, to and from JSON, and the checks that an environment is the one an agent was made for: its
spaces and its units. One rule makes a vector of a dictionary of boxes, in environments and in recorded data alike."""

from __future__ import annotations

from typing import Any, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rrpolicy.common.environments import make_by_id, vec_wrappers_of, wrapped_in
from rrpolicy.common.fields import BoxFields
from rrpolicy.common.typing import Array

Env = gym.Env[Any, Any] | VecEnv
DTYPES: tuple[str, ...] = get_args(BoxFields.model_fields["dtype"].annotation)  # those that archives can tell
GOAL_KEYS = frozenset({"observation", "achieved_goal", "desired_goal"})  # of goal-conditioned environments

# ---------------------------------------------------------------------- flat boxes


def flat_box(space: spaces.Space[Any], name: str) -> spaces.Box:
    """
    A space as the one-dimensional Box that it must be.

    :raises ValueError: unless ``space`` is a one-dimensional Box of numbers that archives can tell, naming it and what
        would help
    """
    if (box := flat_box_or_none(space)) is not None:
        if str(box.dtype) not in DTYPES:
            raise ValueError(
                f"the {name} space is a Box of {box.dtype}, wanted one of {', '.join(DTYPES)}: convert "
                "it in a wrapper, such as gymnasium.wrappers.DtypeObservation"
            )
        return box
    flattened_box(space, name)  # refuses what cannot be flattened
    raise ValueError(
        f"the {name} space is {space}, it must be a Box with one dimension: wrap the environment in "
        "rrpolicy.common.spaces.FlatSpaces, which flattens it"
    )


def flattened_box(space: spaces.Space[Any], name: str) -> spaces.Box:
    """
    The one rule by which spaces become vectors. A Box is read row by row. Of a goal-conditioned Dict (``observation``
    with ``achieved_goal`` or ``desired_goal`` and nothing else) the entry ``observation`` is taken; the entries of
    another Dict or a Tuple stand one after the other, in the order of the space.

    :param space: of an environment or of recorded data
    :param name: ``"observation"`` or ``"action"``, for errors
    :return: the space of the vectors
    :raises ValueError: for other spaces and for images, naming what would help
    """
    boxes = _boxes(space, name)
    dtype = np.result_type(*(box.dtype for box in boxes))
    low, high = (np.concatenate([getattr(box, side).ravel() for box in boxes]) for side in ("low", "high"))
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _boxes(space: spaces.Space[Any], name: str) -> list[spaces.Box]:
    """The boxes that a vector is made of, in its order."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        if parts := _entries(space):
            return [box for _, part in parts for box in _boxes(part, name)]
    elif isinstance(space, spaces.Box) and not (space.dtype == np.uint8 and len(space.shape) > 1):
        return [space]
    raise ValueError(f"the {name} space is {space!s:.200}, it must be a Box or made of boxes: {_advice(space, name)}")


def _entries(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, spaces.Space[Any]]]:
    """Keys and spaces that are used."""
    if isinstance(space, spaces.Tuple):
        return list(enumerate(space.spaces))
    keys = set(space.spaces)
    if "observation" in keys and len(keys) > 1 and keys <= GOAL_KEYS:
        return [("observation", space["observation"])]
    return list(space.spaces.items())


def _advice(space: spaces.Space[Any], name: str) -> str:
    """What would help with a space that is no vector."""
    if isinstance(space, spaces.Box):
        return "images are not supported, encode them as vectors (a wrapper that gives a Box with one dimension)"
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        if name == "action":
            return f"{type(space).__name__} actions are not supported, diffusion plans are continuous"
        return "make numbers of it, e.g. one-hot ones by gymnasium.wrappers.FlattenObservation"
    return f"write a wrapper that makes a Box of a {type(space).__name__}"


def flattened(space: spaces.Space[Any], value: Any) -> Array:
    """
    An element of a space as a vector.

    :param space: that :func:`flattened_box` takes
    :param value: an element of it, or a batch in which each array has the same leading axes
    :return: the vector, or the batch of them, an array of its own
    """
    return np.concatenate(_flat_parts(space, value), axis=-1)


def _flat_parts(space: spaces.Space[Any], value: Any) -> list[Array]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return [array for key, part in _entries(space) for array in _flat_parts(part, value[key])]
    array = np.asarray(value)
    return [array.reshape(*array.shape[: array.ndim - len(space.shape or ())], -1)]


def unflattened(space: spaces.Space[Any], vector: Any) -> Any:
    """
    The element of a space that a vector stands for.

    :param space: a Box, or a Dict or Tuple of boxes
    :param vector: (n,), as :func:`flattened` makes it of an element
    :return: the element
    """
    if isinstance(space, spaces.Box):
        return np.asarray(vector, dtype=space.dtype).reshape(space.shape)
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        raise ValueError(f"space is {space}, wanted a Box, or a Dict or Tuple of boxes")
    parts = list(space.spaces.items()) if isinstance(space, spaces.Dict) else list(enumerate(space.spaces))
    widths = [spaces.flatdim(part) for _, part in parts]
    pieces = np.split(np.asarray(vector), np.cumsum(widths)[:-1])
    values = {key: unflattened(part, piece) for (key, part), piece in zip(parts, pieces, strict=True)}
    return values if isinstance(space, spaces.Dict) else tuple(values.values())


class FlatSpaces(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    An environment whose observations and actions are vectors, by the rule of :func:`flattened_box`.

    :param env: an environment with boxes, or dictionaries or tuples of them
    :raises ValueError: for other spaces
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.observation_space = flattened_box(env.observation_space, "observation")
        self.action_space = flattened_box(env.action_space, "action")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return flattened(self.env.observation_space, observation), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        outcome = self.env.step(unflattened(self.env.action_space, action))
        return (flattened(self.env.observation_space, outcome[0]), *outcome[1:])


def flat_for(agent: Any, env: gym.Env) -> gym.Env:
    """
    Flatten an environment if its agent needs that.

    :param agent: anything that acts
    :param env: an environment
    :return: the environment, in :class:`FlatSpaces` when the agent acts in vectors and the environment does not
    """
    flat = [flat_box_or_none(getattr(agent, f"{name}_space", None)) is not None for name in ("observation", "action")]
    given = [flat_box_or_none(space) is not None for space in (env.observation_space, env.action_space)]
    return FlatSpaces(env) if all(flat) and not all(given) else env


def flat_box_or_none(space: Any) -> spaces.Box | None:
    """The space if it is a Box with one dimension."""
    return space if isinstance(space, spaces.Box) and len(space.shape) == 1 else None


# ---------------------------------------------------------------------- the environment of an agent or a reward


def checked_environment(env: Env | str, reason: str = "an agent normalises observations by itself") -> Env:
    """
    An environment that is made, and in its own units.

    :param env: an environment, a vectorised one of Stable-Baselines3, or an id
    :param reason: why its observations must not be normalised, for the error
    :raises ValueError: for something else, an id that cannot be made, or normalised observations
    """
    one: Any = make_by_id(env) if isinstance(env, str) else env
    if not isinstance(one, gym.Env | VecEnv):
        kinds = "a gymnasium.Env, a VecEnv of Stable-Baselines3 or an id"
        raise ValueError(f"env is a {type(env).__name__}, wanted {kinds}")
    refuse_normalised(one, reason)
    return one


def check_widths(env: Env | str, observation_dim: int, action_dim: int, who: str = "the reward") -> None:
    """
    Check that what is made for vectors of these widths fits an environment.

    :param env: as for :func:`checked_environment`; its spaces may be any that :func:`flattened_box` takes
    :param who: what is made for them, for the error
    :raises ValueError: as :func:`checked_environment`, and for other widths, naming both
    """
    one = checked_environment(env, f"{who} takes observations in the environment's own units")
    for name, width, space in (
        ("observations", observation_dim, one.observation_space),
        ("actions", action_dim, one.action_space),
    ):
        fits = isinstance(space, spaces.Box | spaces.Dict | spaces.Tuple)
        if not fits or flattened_box(space, name.removesuffix("s")).shape != (width,):
            raise ValueError(f"{who} was made for {name} of width {width}, the environment has {space!s:.200}")


def check_spaces(
    observation_space: spaces.Box, action_space: spaces.Box, other_observation: Any, other_action: Any
) -> None:
    """
    Compare an environment's spaces with an agent's.

    :raises ValueError: when an environment's spaces differ from the agent's in shape or (finite) bounds
    """
    for name, mine, other in (
        ("observation", observation_space, other_observation),
        ("action", action_space, other_action),
    ):
        same = isinstance(other, spaces.Box) and mine.shape == other.shape
        if not same or not (np.allclose(mine.low, other.low) and np.allclose(mine.high, other.high)):
            raise ValueError(f"the agent was made for the {name} space {mine}, the environment has {other}")


def check_units(agent: Any, env: Any) -> None:
    """
    Check that an agent may act in an environment that normalises observations. Algorithms and policies of
    Stable-Baselines3 may, since they were trained on normalised ones; other agents act in the environment's own units.

    :raises ValueError: when another agent is to act in an environment that normalises observations, naming the wrapper
    """
    if not isinstance(agent, BaseAlgorithm | BasePolicy):
        refuse_normalised(env, f"{type(agent).__name__} takes observations in the environment's own units")


def refuse_normalised(env: Any, reason: str = "observations must come in the environment's own units") -> None:
    """
    Check that observations are in the environment's own units.

    :param env: an environment, or a vectorised one of Stable-Baselines3 or gymnasium
    :param reason: what the message begins with
    :raises ValueError: when it normalises observations by statistics of its own, naming the wrapper
    """
    around = vec_wrappers_of(env) if isinstance(env, VecEnv) else ()
    if any(isinstance(wrapper, VecNormalize) and wrapper.norm_obs for wrapper in around):
        raise ValueError(f"{reason}, and env is wrapped in VecNormalize: wanted env.venv, the environment in it")
    kind, inner = gym.wrappers.vector.NormalizeObservation, env
    while isinstance(inner, gym.vector.VectorWrapper) and not isinstance(inner, kind):
        inner = inner.env
    if isinstance(inner, kind) or wrapped_in(env, (gym.wrappers.NormalizeObservation,)):
        raise ValueError(f"{reason}, and env is wrapped in NormalizeObservation: wanted the environment without it")


def unnormalised(env: Any) -> Any:
    """
    The environment inside an outermost ``VecNormalize``.

    :param env: an environment, or a vectorised one of Stable-Baselines3 or gymnasium
    :return: the same environment in its own units
    :raises ValueError: when it normalises observations in another place, naming the wrapper
    """
    inner = env.venv if isinstance(env, VecNormalize) else env
    refuse_normalised(inner)
    return inner
