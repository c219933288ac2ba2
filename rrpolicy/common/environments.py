"""Helpers for environments that the library did not make: copies of reused buffers, rewards that are arrays, checks for
one environment given several times, and the wrappers around single and vectorised environments with what they do to
rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import vector
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from rrpolicy.common.messages import printable

ORIGINAL_REWARD = "original_reward"  # key of ``info`` where wrappers that pay another reward keep the environment's own
_OBSERVERS = (VecMonitor, VecCheckNan, VecVideoRecorder)  # wrappers that change neither observations nor rewards
_REWARDS_KEPT = (  # wrappers under which returns are those of the environments; VecNormalize is undone
    *_OBSERVERS,
    VecNormalize,
    VecFrameStack,
    VecTransposeImage,
    VecExtractDictObs,
    vector.RecordEpisodeStatistics,
    vector.RecordVideo,
    vector.HumanRendering,
    vector.DictInfoToList,
    vector.ClipAction,
    vector.RescaleAction,
    vector.NormalizeObservation,
    vector.RescaleObservation,
    vector.DtypeObservation,
    vector.FlattenObservation,
    vector.ReshapeObservation,
)
_STATISTICS = {gym.wrappers.NormalizeObservation: "obs_rms", gym.wrappers.NormalizeReward: "return_rms"}

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


class Copying(gym.Wrapper[Any, Any, Any, Any]):
    """
    An environment that returns what vectorised environments can hold: observations that are copies, rewards that are
    numbers, ends that are booleans, and a new ``info`` each time.

    :param env: an environment that may fill its arrays again, and pay an array of one number
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return deepcopy(observation), dict(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return deepcopy(observation), single_number(reward), bool(terminated), bool(truncated), dict(info)


@contextmanager
def copying(env: Any) -> Iterator[None]:
    """
    Within the block the environments of a vectorised one are in :class:`Copying`, so that the last observation of an
    episode is not overwritten by the first one of the next.

    :param env: a vectorised environment of Stable-Baselines3 or gymnasium; one whose environments live in other
        processes is left as it is
    """
    base: Any = env.unwrapped
    if not isinstance(base, DummyVecEnv | SyncVectorEnv):
        yield
        return
    held = base.envs
    base.envs = [one if isinstance(one, Copying) else Copying(one) for one in held]
    try:
        yield
    finally:
        base.envs = held


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


def vec_wrappers_of(venv: Any) -> Iterator[Any]:
    """Wrappers around a vectorised environment of Stable-Baselines3 or gymnasium, outermost first."""
    while isinstance(venv, VecEnvWrapper | VectorWrapper):
        yield venv
        venv = venv.venv if isinstance(venv, VecEnvWrapper) else venv.env


def single_environments(env: Any) -> list[gym.Env]:
    """Environments inside a vectorised one of Stable-Baselines3 or gymnasium; none if they live in other processes."""
    if isinstance(env, gym.Env):
        return [env]
    held = getattr(env.unwrapped, "envs", ())
    return [one for one in held if isinstance(one, gym.Env)] if isinstance(held, Sequence) else []


def wrapped_in(env: Any, classes: Iterable[type]) -> type | None:
    """
    Search the wrappers of single environments.

    :param env: an environment, or a vectorised one of Stable-Baselines3 or gymnasium
    :param classes: of wrappers of single environments; in other processes of gymnasium only its two normalisers are
        found
    :return: the first of these classes that an environment is wrapped in
    """
    if isinstance(env, VecEnv):
        return next((kind for kind in classes if any(env.env_is_wrapped(kind))), None)
    if isinstance(env.unwrapped, AsyncVectorEnv):  # which tells attributes, not classes
        told = {kind: env.unwrapped.call("has_wrapper_attr", name) for kind, name in _STATISTICS.items()}
        return next((kind for kind in classes if any(told.get(kind, ()))), None)
    around = [wrapper for one in single_environments(env) for wrapper in wrappers_of(one)]
    return next((kind for kind in classes if any(isinstance(wrapper, kind) for wrapper in around)), None)


def keeps_rewards(env: VecEnv | gym.vector.VectorEnv[Any, Any, Any]) -> bool:
    """
    Whether the returns that are counted in a vectorised environment are those of the environments in it: its class and
    every wrapper around it are known to leave rewards as they are, to be undone, or, by an attribute
    ``keeps_original_reward``, to tell the originals.
    """
    known = type(env.unwrapped) in (DummyVecEnv, SyncVectorEnv)
    return known and all(isinstance(one, _REWARDS_KEPT) or _tells(one) for one in vec_wrappers_of(env))


def _tells(wrapper: Any) -> bool:
    return bool(getattr(type(wrapper), "keeps_original_reward", False))  # wrappers of SB3 pass attributes through


def refuse_normalised_rewards(env: Any) -> None:
    """
    Check that rewards are not normalised in a way that cannot be undone.

    :param env: an environment, or a vectorised one of Stable-Baselines3 or gymnasium
    :raises ValueError: when it is in gymnasium's ``NormalizeReward``, unless a wrapper inside that tells the originals
    """
    kinds, around = (gym.wrappers.NormalizeReward, vector.NormalizeReward), list(vec_wrappers_of(env))
    singles = single_environments(env)
    for chain in [[*around, *wrappers_of(one)] for one in singles] or [around]:
        inside = max((index + 1 for index, one in enumerate(chain) if _tells(one)), default=0)
        if any(isinstance(one, kinds) for one in chain[inside:]):
            raise ValueError(no_originals("NormalizeReward"))
    if not singles and wrapped_in(env, kinds[:1]):
        raise ValueError(no_originals("NormalizeReward"))


def no_originals(name: str) -> str:
    """Message for a wrapper that keeps no originals."""
    return (
        f"env is wrapped in {name}, whose originals cannot be recorded: wanted the environment without it, or in "
        "VecNormalize of Stable-Baselines3"
    )


def normaliser_of(venv: VecEnv) -> VecNormalize | None:
    """
    The ``VecNormalize`` whose originals are the environment's own units.

    :raises ValueError: when a wrapper around it changes what it gives, so that the originals are not what is given, or
        it is around another one
    """
    around: list[VecEnvWrapper] = []
    for wrapper in vec_wrappers_of(venv):
        if isinstance(wrapper, VecNormalize):
            if changing := [type(one).__name__ for one in around if not isinstance(one, _OBSERVERS)]:
                raise ValueError(f"env has {changing[0]} around VecNormalize, wanted VecNormalize as outermost wrapper")
            if any(isinstance(one, VecNormalize) for one in vec_wrappers_of(wrapper.venv)):
                raise ValueError("env has VecNormalize around VecNormalize, wanted one of them")
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
