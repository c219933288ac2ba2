"""Policies without planning: networks of Stable-Baselines3 from observation to action, and how they act and are kept.

One archive kind, ``policy``, holds what any of the algorithms has trained, with the statistics of its observations and
the number of steps for which it holds an action. It is written and read without pickles; older kinds stay readable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from rrpolicy.agents.environment import Env, flat_environment
from rrpolicy.common.archive import Archive, read_archive, write_archive
from rrpolicy.common.boxes import box_from_dict, box_to_dict
from rrpolicy.common.device import resolve
from rrpolicy.common.spaces import check_spaces, flat_box
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.rl.networks import ACTIVATIONS, actor_weights, filled, network_of
from rrpolicy.rl.vecnormalize import ObservationStatistics

POLICY_KIND = "policy"
POLICY_KINDS = (POLICY_KIND, "sb3-policy", "offline-policy")  # the later ones are those of older versions
ACTION_REPEAT = 5  # environment steps per decision in a maze: 0.05 s


# ---------------------------------------------------------------------- acting


class Sb3Agent:
    """
    A policy of Stable-Baselines3 with the normalisation of observations that it was trained with.

    :param policy: the policy, or the actor of an off-policy algorithm
    :param algorithm: the algorithm that trained it
    :param statistics: None when it was trained on plain observations
    """

    def __init__(self, policy: BasePolicy, algorithm: str, statistics: ObservationStatistics | None = None) -> None:
        self.policy, self.algorithm, self.statistics = policy, algorithm, statistics
        self.observation_space, self.action_space = policy.observation_space, policy.action_space

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State | None]:
        """
        As :class:`Predictor` says; there is no memory, and what is drawn comes from torch's global generator.

        :raises ValueError: for a wrong shape, NaN or infinite observations
        """
        observations = np.asarray(observation)
        if observations.dtype.kind == "f" and not np.isfinite(observations).all():
            shape = self.observation_space.shape
            wanted = f"finite values of shape {shape} or (n_envs, *{shape})"
            raise ValueError(f"observation of shape {observations.shape} holds NaN or inf, wanted {wanted}")
        if self.statistics is not None:
            observations = self.statistics.normalize(observations)
        learning = self.policy.training  # predict ends that
        found = self.policy.predict(observations, deterministic=deterministic)
        if learning:
            self.policy.set_training_mode(True)
        return found

    def __call__(
        self, observation: Any, state: State | None = None, episode_start: Array | None = None
    ) -> tuple[Array, State | None]:
        """:meth:`predict` with draws, as rollouts of `imitation` call a policy."""
        return self.predict(observation, state, episode_start)


class MeanAction:
    """
    A policy that always acts by its mean; what it would draw comes from torch's global generator.

    :param policy: Stable-Baselines3's, or an algorithm
    """

    def __init__(self, policy: Predictor) -> None:
        self.policy = policy

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State | None]:
        """As :class:`Predictor` says, deterministic or not."""
        return self.policy.predict(observation, state, episode_start, True)


class ActionRepeat:
    """
    A predictor that takes every n-th action from another one and holds it in between.

    Its memory is ``(action held (n_envs, act_dim), steps it was held (n_envs,), *the other's memory)``.

    :param agent: anything with ``predict``, e.g. what :func:`train_on_reward` returns
    :param n_steps: environment steps per decision
    :raises ValueError: when n_steps is below 1
    """

    def __init__(self, agent: Predictor, n_steps: int = ACTION_REPEAT) -> None:
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}, it must be at least 1")
        self.agent, self.n_steps = agent, n_steps
        self.observation_space: Any = getattr(agent, "observation_space", None)
        self.action_space: Any = getattr(agent, "action_space", None)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, State | None]:
        """
        As :class:`Predictor` says; only the environments that are due are passed on, in one batch.

        :param observation: ``(obs_dim,)`` or ``(n_envs, obs_dim)``
        """
        observations = np.asarray(observation)
        starts = np.zeros(1 if observations.ndim == 1 else len(observations), dtype=bool)
        starts |= False if episode_start is None else np.asarray(episode_start, dtype=bool)
        if observations.ndim == 1:
            actions, state = self.predict(observations[None], state, starts, deterministic)
            return actions[0], state
        if state is None:
            actions, memory = self.agent.predict(observations, None, np.ones_like(starts), deterministic)
            return actions, (np.array(actions), np.ones(len(actions), dtype=np.int64), *(memory or ()))
        held, age, *inner = (array.copy() for array in state)
        due = starts | (age >= self.n_steps)
        if due.any():
            part = tuple(array[due] for array in inner) or None
            held[due], memory = self.agent.predict(observations[due], part, starts[due], deterministic)
            age[due] = 0
            for array, values in zip(inner, memory or (), strict=True):
                array[due] = values
        return held.copy(), (held, age + 1, *inner)


Policy = Sb3Agent | ActionRepeat


# ---------------------------------------------------------------------- archives


def save_policy(
    policy: BaseAlgorithm | BasePolicy | Policy,
    path: str | Path,
    card: Mapping[str, Any] | None = None,
    algorithm: str | None = None,
) -> Path:
    """
    Write a policy as one archive without pickles. Critics of off-policy algorithms are left out.

    :param policy: an algorithm of Stable-Baselines3 (PPO, A2C, SAC, TD3, DDPG; TQC and TRPO of sb3-contrib) with plain
        layers, its policy or actor, what :func:`clone_behaviour` or :func:`train_offline` returns, an
        :class:`Sb3Agent`, or an :class:`ActionRepeat` of one of these, whose number of steps is kept. Of an algorithm
        whose environment is in ``VecNormalize`` the statistics of observations are kept, too
    :param path: file; ``.zip`` is added when missing
    :param card: facts about the policy
    :param algorithm: name of what trained it; None: the algorithm's class, where one is given
    :return: the path written
    :raises ValueError: for a policy that could not be rebuilt from its archive, or spaces that are no flat boxes
    """
    n_steps, acting = (policy.n_steps, policy.agent) if isinstance(policy, ActionRepeat) else (1, policy)
    agent = _agent_of(acting)
    seen, acted = flat_box(agent.observation_space, "observation"), flat_box(agent.action_space, "action")
    network, activation = network_of(agent.policy)
    config: dict[str, Any] = {
        "network": network,
        "algorithm": algorithm or agent.algorithm,
        "activation": activation,
        "observation_space": box_to_dict(seen),
        "action_space": box_to_dict(acted),
        "action_repeat": n_steps,
    }
    tensors = {"policy": dict(agent.policy.state_dict())}
    if (known := agent.statistics) is not None:
        config["statistics"] = {"clip": known.clip, "epsilon": known.epsilon}
        tensors["statistics"] = {"mean": torch.as_tensor(known.mean), "variance": torch.as_tensor(known.variance)}
    return write_archive(path, POLICY_KIND, config, tensors, card)


def load_policy(
    path: str | os.PathLike[str], env: Env | str | None = None, device: torch.device | str = "auto"
) -> Policy:
    """
    Read what :func:`save_policy` wrote, and policies of older versions.

    :param path: file, with or without ``.zip``
    :param env: an environment, or its id, whose spaces are compared with the policy's; None: they are not
    :param device: of the policy's weights
    :return: the policy, which acts as the algorithm did; :class:`ActionRepeat` where it holds its actions
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for an archive that is damaged, foreign, unsafe or of another kind, naming file and fault, or an
        environment with other spaces
    """
    target, archive = resolve(device), read_archive(path, POLICY_KINDS)
    with archive.rebuilding():
        agent, n_steps = _rebuilt(archive) if archive.kind == POLICY_KIND else (_rebuilt_older(archive), 1)
    agent.policy.to(target)
    policy = agent if n_steps == 1 else ActionRepeat(agent, n_steps)
    if env is not None:
        made = flat_environment(env)
        try:
            check_fits(policy, made.observation_space, made.action_space)
        finally:
            if isinstance(env, str):
                made.close()
    return policy


def check_fits(policy: Policy, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """
    Compare a policy's spaces with those of an environment. Observations without bounds fit any of their number, since
    neither data nor older archives hold the bounds.

    :raises ValueError: when they differ in shape or (finite) bounds
    """
    seen, acted = flat_box(policy.observation_space, "observation"), flat_box(policy.action_space, "action")
    if isinstance(observation_space, spaces.Box) and not seen.is_bounded() and seen.shape == observation_space.shape:
        seen = observation_space
    check_spaces(seen, acted, observation_space, action_space)


def _agent_of(acting: Any) -> Sb3Agent:
    """An algorithm, policy or actor as the agent that acts like it."""
    if isinstance(acting, Sb3Agent):
        return acting
    if not isinstance(acting, BaseAlgorithm | BasePolicy):
        raise ValueError(f"policy is a {type(acting).__name__}, wanted an algorithm or a policy of Stable-Baselines3")
    if isinstance(acting, BasePolicy):
        return Sb3Agent(getattr(acting, "actor", acting), "")
    name, policy = type(acting).__name__, acting.policy
    normaliser = acting.get_vec_normalize_env()
    if normaliser is None or not normaliser.norm_obs:
        return Sb3Agent(getattr(policy, "actor", policy), name)
    flat_box(policy.observation_space, "observation")
    moments: Any = normaliser.obs_rms
    statistics = ObservationStatistics(
        np.array(moments.mean), np.array(moments.var), float(normaliser.clip_obs), float(normaliser.epsilon)
    )
    return Sb3Agent(getattr(policy, "actor", policy), name, statistics)


def _rebuilt(archive: Archive) -> tuple[Sb3Agent, int]:
    """The agent of an archive, and for how many steps it holds an action."""
    config, known = archive.config, archive.config.get("statistics")
    seen, acted = (box_from_dict(config[f"{name}_space"]) for name in ("observation", "action"))
    statistics = None
    if known is not None:
        mean, variance = (archive.tensors["statistics"][name].numpy() for name in ("mean", "variance"))
        if mean.shape != seen.shape or variance.shape != seen.shape or (variance < 0).any():
            raise ValueError(f"statistics have shapes {mean.shape} and {variance.shape}, wanted {seen.shape} and >= 0")
        statistics = ObservationStatistics(mean, variance, known["clip"], known["epsilon"])
    activation, name = ACTIVATIONS[config["activation"]], config["network"]
    policy = filled(name, seen, acted, archive.tensors["policy"], activation)
    return Sb3Agent(policy, config.get("algorithm") or "", statistics), int(config.get("action_repeat", 1))


def _rebuilt_older(archive: Archive) -> Sb3Agent:
    """The agent of an archive of older versions, without bounds of observations and sometimes of actions."""
    algorithm = archive.config.get("algorithm", "TD3+BC")
    network = {"PPO": "actor-critic", "SAC": "squashed-gaussian"}.get(algorithm, "deterministic")
    (observation_dim,), (action_dim,) = archive.config["dims"]
    bounds = archive.config.get("action_space")
    seen, acted = boxes(observation_dim, action_dim, None if bounds is None else box_from_dict(bounds))
    stored = archive.tensors["policy"]
    return Sb3Agent(filled(network, seen, acted, actor_weights(stored) if algorithm == "SAC" else stored), algorithm)


def boxes(
    observation_dim: int, action_dim: int, action_space: gym.spaces.Box | None = None
) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """The space of observations without bounds, and that of actions, in [-1, 1] unless given."""
    return (
        gym.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32) if action_space is None else action_space,
    )
