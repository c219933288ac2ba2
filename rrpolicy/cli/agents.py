"""Agents by name, for the commands that run one: diffusion agents, steered or not, and policies of other learners."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from rrpolicy import experiments, zoo
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.agents.planning import Planner
from rrpolicy.common.archive import read_archive
from rrpolicy.common.messages import RrpolicyWarning, printable
from rrpolicy.common.spaces import check_spaces
from rrpolicy.experiments import Recipe, Task
from rrpolicy.export.actors import OnnxActor
from rrpolicy.export.loading import load_onnx
from rrpolicy.export.policy import OnnxPolicy
from rrpolicy.export.rewards import OnnxReward
from rrpolicy.export.session import SUFFIX
from rrpolicy.images.reward import ImageReward
from rrpolicy.rewards.algebra import RewardAlgebra
from rrpolicy.rl.policies import POLICY_KIND, POLICY_KINDS, ActionRepeat, Policy, Sb3Agent, check_fits, load_policy
from rrpolicy.rl.sb3_files import is_sb3_agent, load_sb3_agent


def load_agent_for(
    name: str,
    task: Task,
    recipe: Recipe,
    reward: str | None,
    scale: float | None,
    n_candidates: int | None,
    algorithm: str | None = None,
    fast: bool = False,
) -> Planner | Policy | OnnxPolicy | OnnxActor:
    """
    The agent of a name, steered when a reward is given.

    :param algorithm: of a file of Stable-Baselines3 whose name does not hold it
    :param fast: plan by ONNX Runtime where that can be
    :raises ValueError: for something that cannot act, or not in the task's environment
    """
    given = {"--reward": reward, "--scale": scale, "--n-candidates": n_candidates}
    if name.endswith(SUFFIX):
        _refuse(given, f"{name!r} is exported with what it was steered by")
        exported = load_onnx(name)
        if isinstance(exported, OnnxReward):
            raise ValueError(f"{name!r} is a reward, wanted an agent")
        with closing(task.make()) as env:
            check_spaces(exported.observation_space, exported.action_space, env.observation_space, env.action_space)
        return exported
    if algorithm is not None and not is_sb3_agent(source_of(name)):
        raise ValueError(f"--algorithm is for files of Stable-Baselines3, {name!r} is none")
    policy = load_policy_for(name, task, algorithm)
    if policy is None:
        planner = load_planner_for(name, task, recipe, reward, scale, n_candidates)
        return compiled(planner) if fast else planner
    _refuse({**given, "--fast": fast or None}, f"{name!r} is a policy without plans")
    return policy


def _refuse(given: Mapping[str, Any], reason: str) -> None:
    """:raises ValueError: naming the first option that has a value"""
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{reason}, {option} needs a diffusion agent")


def compiled(planner: Planner) -> Planner:
    """The planner by ONNX Runtime; itself, with a warning of one line, where it cannot be exported."""
    try:
        return planner.compile()
    except ValueError as error:
        warnings.warn(f"--fast is left out: {printable(error, 200)}", RrpolicyWarning, stacklevel=2)
        return planner


def load_planner_for(
    name: str,
    task: Task,
    recipe: Recipe,
    reward: str | None = None,
    scale: float | None = None,
    n_candidates: int | None = None,
) -> Planner:
    """
    The diffusion agent of a name, steered when a reward is given.

    :raises ValueError: for something else, or an agent that was not made for the task's environment
    """
    agent = zoo.load(name)
    if isinstance(agent, RewardAlgebra | ImageReward):
        raise ValueError(f"{name!r} is a reward, wanted an agent")
    if isinstance(agent, Sb3Agent | ActionRepeat):
        raise ValueError(f"{name!r} is a policy without plans, wanted a diffusion agent")
    if not isinstance(agent, Planner):
        raise ValueError(f"{name!r} is about images, wanted an agent")
    with closing(task.make()) as env:
        check_spaces(agent.observation_space, agent.action_space, env.observation_space, env.action_space)
    if reward is None:
        if scale is not None:
            raise ValueError("--scale needs --reward")
        return agent if n_candidates is None else agent.with_planning(n_candidates=n_candidates)
    if isinstance(agent, GuidedPlanner):
        raise ValueError(f"{name!r} is steered already, --reward needs a plain agent")
    return experiments.steer(agent, zoo.load_reward(reward), recipe, scale=scale, n_candidates=n_candidates)


def load_policy_for(name: str, task: Task, algorithm: str | None = None) -> Policy | None:
    """
    The policy of a name, from an archive or a file of Stable-Baselines3; None for archives of other kinds.

    :param algorithm: of a file of Stable-Baselines3 whose name does not hold it
    :raises ValueError: for a policy that was not made for the task's environment
    """
    source = source_of(name)
    if is_sb3_agent(source):
        with closing(task.make()) as env:
            return load_sb3_agent(source, task.env_id, env.observation_space, env.action_space, algorithm)
    archive = read_archive(source)
    if archive.kind not in POLICY_KINDS:
        return None
    home = archive.card.get("environment", task.env_id)
    if home != task.env_id:
        raise ValueError(f"{source}: a policy for {home}, wanted one for {task.env_id}")
    policy = load_policy(source)
    with closing(task.make()) as env:
        check_fits(policy, env.observation_space, env.action_space)
    if archive.kind != POLICY_KIND and task.is_maze:  # older archives do not hold the number of steps
        return ActionRepeat(policy)
    return policy


def source_of(name: str) -> str | os.PathLike[str]:
    """The file of a name, or the name itself where it is one of Stable-Baselines3's hub repositories."""
    return name if is_sb3_agent(name) else zoo.find(name)
