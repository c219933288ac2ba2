"""Helpers for environments that the library did not make: copies of reused buffers, rewards that are arrays, checks for
one environment given several times, and the wrappers around single and vectorised environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    VecVideoRecorder,
)

from rrpolicy.common.messages import printable

ORIGINAL_REWARD = "original_reward"  # key of ``info`` where wrappers that pay another reward keep the environment's own
_OBSERVERS = (VecMonitor, VecCheckNan, VecVideoRecorder)  # wrappers that change neither observations nor rewards

# ---------------------------------------------------------------------- values


def single_number(reward: Any, name: str = "the environment's reward") -> float:
    """
    A reward as a float.

    :param reward: a number, or an array that holds one
    :param name: for the error
    :return: the number
    :raises ValueError: for anything else, naming type and shape
    """
    try:
        values = np.asarray(reward)
        if values.size == 1 and values.dtype.kind in "fiub":
            return float(values.reshape(()))
    except (TypeError, ValueError):  # a ragged sequence
        values = np.empty(0, dtype=object)
    raise ValueError(f"{name} is a {type(reward).__name__} of shape {values.shape}: {reward!r:.60}, wanted one number")


def own_copy(observation: Any) -> Any:
    """
    Deep copy of an observation.

    :param observation: an array, or a mapping or tuple of arrays, which an environment may overwrite at its next step
    :return: the same values in arrays of its own
    """
    if isinstance(observation, Mapping):
        return {key: own_copy(value) for key, value in observation.items()}
    if isinstance(observation, tuple):
        return tuple(own_copy(value) for value in observation)
    return np.array(observation, copy=True)


# ---------------------------------------------------------------------- making one


def make_by_id(env_id: str, render_mode: str | None = None, **kwargs: Any) -> gym.Env:
    """
    Make an environment by its id, as ``gymnasium.make`` does.

    :param env_id: as ``gymnasium.make`` takes it
    :param render_mode: None for none: many environments take no such argument
    :param kwargs: further arguments of ``gymnasium.make``
    :raises ValueError: when there is no such environment, or it cannot be made
    """
    mode: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        return gym.make(env_id, disable_env_checker=True, **mode, **kwargs)
    except Exception as error:  # an environment is code of others, which raises what it likes
        how = "".join(f" with {name} {value!r}" for name, value in mode.items())
        raise ValueError(f"env {printable(env_id)!r} cannot be made{how}: {printable(error)}") from error


# ---------------------------------------------------------------------- one environment, several times


def refuse_repeated(envs: Sequence[gym.Env], name: str = "env") -> None:
    """
    Check that environments are different objects.

    :param envs: that are to be stepped side by side
    :raises ValueError: when two of them are, or wrap, one and the same environment
    """
    if len({id(env.unwrapped) for env in envs}) < len(envs):
        raise ValueError(
            f"{name} gives one and the same environment several times ({envs[0]!r:.60}), which several episodes would "
            "step in turn: wanted the environment itself, or a function that makes a new one at each call"
        )


def make_several(make: Callable[[], Any], n: int, name: str = "env") -> list[gym.Env]:
    """
    Call a function that makes environments, at least twice: one that returns the same object again does not make
    environments, and the caller's own environment must not be closed.

    :param make: makes an environment
    :param n: how many
    :param name: of the argument, for errors
    :return: n different environments
    :raises ValueError: when it returns one environment twice (which is left open), or something else
    """
    made: list[gym.Env] = []
    try:
        for _ in range(max(n, 2)):
            made.append(make())
            if not isinstance(made[-1], gym.Env):
                wrong = type(made.pop()).__name__
                raise ValueError(f"{name} is a function that makes a {wrong}, wanted one that makes a gymnasium.Env")
        refuse_repeated(made, name)
    except BaseException:
        close_all(made)
        raise
    close_all(made[n:])
    return made[:n]


def close_all(envs: Sequence[gym.Env]) -> None:
    """Close environments, except those that occur twice: they were made elsewhere."""
    owners = [id(env.unwrapped) for env in envs]
    for env, owner in zip(envs, owners, strict=True):
        if owners.count(owner) == 1:
            env.close()


# ---------------------------------------------------------------------- wrappers


def wrappers_of(env: gym.Env) -> Iterator[gym.Wrapper]:
    """Wrappers around an environment, outermost first."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def vec_wrappers_of(venv: VecEnv) -> Iterator[VecEnvWrapper]:
    """Wrappers around a vectorised environment of Stable-Baselines3, outermost first."""
    while isinstance(venv, VecEnvWrapper):
        yield venv
        venv = venv.venv


def single_environments(env: Any) -> list[gym.Env]:
    """Environments inside a vectorised one of Stable-Baselines3 or gymnasium; none if they live in other processes."""
    if isinstance(env, gym.Env):
        return [env]
    held = getattr(env.unwrapped, "envs", ())
    return [one for one in held if isinstance(one, gym.Env)] if isinstance(held, Sequence) else []


def wrapped_in(env: Any, classes: Iterable[type]) -> type | None:
    """
    Search the wrappers of single environments.

    :param env: an environment, or a vectorised one of Stable-Baselines3 (in other processes too) or gymnasium
    :param classes: of wrappers of single environments
    :return: the first of these classes that an environment is wrapped in
    """
    if isinstance(env, VecEnv):
        return next((kind for kind in classes if any(env.env_is_wrapped(kind))), None)
    around = [wrapper for one in single_environments(env) for wrapper in wrappers_of(one)]
    return next((kind for kind in classes if any(isinstance(wrapper, kind) for wrapper in around)), None)


def normaliser_of(venv: VecEnv) -> VecNormalize | None:
    """
    The ``VecNormalize`` whose originals are the environment's own units.

    :raises ValueError: when a wrapper around it changes what it gives, so that the originals are not what is given
    """
    around: list[VecEnvWrapper] = []
    for wrapper in vec_wrappers_of(venv):
        if isinstance(wrapper, VecNormalize):
            if changing := [type(one).__name__ for one in around if not isinstance(one, _OBSERVERS)]:
                raise ValueError(f"env has {changing[0]} around VecNormalize, wanted VecNormalize as outermost wrapper")
            return wrapper
        around.append(wrapper)
    return None


@contextmanager
def frozen(normaliser: VecNormalize | None) -> Iterator[None]:
    """Keep the statistics of a ``VecNormalize`` constant within the block."""
    if normaliser is None:
        yield
        return
    before, normaliser.training = normaliser.training, False
    try:
        yield
    finally:
        normaliser.training = before
