"""What D4RL calls 0 and 100 on its locomotion tasks: the returns of a random policy and of the expert (Fu et al. 2020).
Normalised scores make the returns of different robots comparable; environments outside this table have none."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor

from rrpolicy.common.environments import wrappers_of
from rrpolicy.common.spaces import FlatSpaces
from rrpolicy.common.typing import Array


class ReferenceScore(NamedTuple):
    """Undiscounted returns of an episode.

    :param random: of a random policy, score 0
    :param expert: of the expert, score 100
    """

    random: float
    expert: float


REFERENCE_SCORES: Mapping[str, ReferenceScore] = {
    "halfcheetah": ReferenceScore(-280.178953, 12135.0),
    "hopper": ReferenceScore(-20.272305, 3234.3),
    "walker2d": ReferenceScore(1.629008, 4592.3),
}


def reference_score(name: str | None) -> ReferenceScore | None:
    """
    The returns that are 0 and 100 for a robot, whatever the version of its environment.

    :param name: an environment or a dataset: ``"Hopper-v5"``, ``"hopper-medium-v2"``, ``"mujoco/hopper/medium-v0"``
    :return: None where D4RL's table has no such robot
    """
    words = re.split(r"[/:_-]", (name or "").lower())
    return next((REFERENCE_SCORES[word] for word in words if word in REFERENCE_SCORES), None)


def normalized_score(name: str, returns: Any) -> Array:
    """
    D4RL's score: 0 for the random policy, 100 for the expert, linear in between and beyond.

    :param name: as in :func:`reference_score`
    :param returns: undiscounted returns, any shape
    :return: scores of that shape, float64
    :raises ValueError: for a robot that is not in the table
    """
    reference = reference_score(name)
    if reference is None:
        raise ValueError(f"name is {name!r}, wanted an environment of {', '.join(REFERENCE_SCORES)}")
    return 100.0 * (np.asarray(returns, dtype=np.float64) - reference.random) / (reference.expert - reference.random)


# ---------------------------------------------------------------------- which environments have a score

_APPEARANCE = frozenset(
    {
        "render_mode",
        "width",
        "height",
        "camera_id",
        "camera_name",
        "default_camera_config",
        "max_geom",
        "visual_options",
    }
)
_HARMLESS = (  # wrappers under which returns are those of the environment
    wrappers.PassiveEnvChecker,
    wrappers.OrderEnforcing,
    wrappers.TimeLimit,
    wrappers.RecordEpisodeStatistics,
    wrappers.RecordVideo,
    wrappers.HumanRendering,
    wrappers.RenderCollection,
    wrappers.ClipAction,
    wrappers.RescaleAction,
    wrappers.NormalizeObservation,
    wrappers.RescaleObservation,
    wrappers.DtypeObservation,
    wrappers.FlattenObservation,
    wrappers.ReshapeObservation,
    wrappers.FrameStackObservation,
    Monitor,
    FlatSpaces,
)


def is_registered(env: gym.Env) -> bool:
    """
    Whether an environment is the one registered under its id: default arguments and time limit, and no wrapper that
    changes rewards or actions' effects. A wrapper that keeps the original reward in ``info`` has an attribute
    ``keeps_original_reward``.
    """
    spec, known = env.spec, None if env.spec is None else gym.registry.get(env.spec.id)
    if spec is None or known is None:
        return False
    around = list(wrappers_of(env))
    harmless = all(isinstance(one, _HARMLESS) or getattr(one, "keeps_original_reward", False) for one in around)
    limits = [one.spec.max_episode_steps for one in around if isinstance(one, wrappers.TimeLimit) and one.spec]
    limit = min((steps for steps in limits if steps is not None), default=None)
    return harmless and limit == known.max_episode_steps and _default_arguments(env, spec.kwargs, known.kwargs)


def _default_arguments(env: gym.Env, given: Mapping[str, Any], registered: Mapping[str, Any]) -> bool:
    """Whether the arguments that an environment was made with are its own defaults."""
    parameters = inspect.signature(type(env.unwrapped).__init__).parameters
    defaults = {name: one.default for name, one in parameters.items()} | dict(registered)
    names = (set(given) | set(registered)) - _APPEARANCE
    return all(name in defaults and repr(given.get(name, defaults[name])) == repr(defaults[name]) for name in names)
