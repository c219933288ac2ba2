"""The steps of a recipe as plain functions: collect, train, fine-tune, extract, discriminate, steer, map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym

from rrpolicy.agents.arguments import grouped
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.agents.refining import Rounds, refine
from rrpolicy.common.arguments import whole
from rrpolicy.common.options import COMPUTING
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.envs.controller import PDController
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.experiments.recipes import Recipe, build, section, total_timesteps, without_steps
from rrpolicy.experiments.task import Task
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.maps import RewardMap, reward_map
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.reward_archive import AnyReward

MAX_SHIFT = 0.5  # bound on guidance of the recipes that name none, with which their published numbers were made


def collect_base(task: Task, recipe: Recipe, seed: int) -> TrajectoryDataset:
    """Demonstrations that wander between random goals of the task's maze."""
    return _collect(task, recipe, "base_transitions", seed=seed)


def collect_expert(task: Task, recipe: Recipe, seed: int) -> TrajectoryDataset:
    """
    Demonstrations that go to the task's goal and stay.

    :raises ValueError: when the task has no goal
    """
    if task.goal is None:
        raise ValueError("an expert needs a goal: goal=(row, column)")
    return _collect(task, recipe, "expert_transitions", goal=task.goal, seed=seed)


def _collect(task: Task, recipe: Recipe, count: str, **arguments: Any) -> TrajectoryDataset:
    """Collect demonstrations; entries of ``[data]`` other than the two counts are options of the collector."""
    values = section(recipe, "data")
    counts = {name: values.pop(name, None) for name in ("base_transitions", "expert_transitions")}
    arguments |= {"maze": task.maze, "n_transitions": build(whole, "data", recipe, name=count, value=counts[count])}
    return build(collect_point_maze, "data", recipe, **{**values, **arguments})


# ---------------------------------------------------------------------- agents


def new_agent(
    task: Task, recipe: Recipe, seed: int, part: str = "base", normalizer: Normalizer | None = None
) -> DiffusionAgent:
    """
    An untrained agent of the recipe's ``[agent]`` section and of the section ``part``.

    :param normalizer: to share with another agent; None: a maze's own, elsewhere fitted in ``learn``
    :raises ValueError: for a section with unknown keys, naming it
    """
    arguments = {**section(recipe, "agent"), **without_steps(section(recipe, part))}
    if isinstance(arguments.get("controller"), Mapping):
        arguments["controller"] = PDController.from_dict(arguments["controller"])
    arguments["normalizer"] = task.normalizer() if normalizer is None else normalizer
    env = task.make()
    try:
        agent = build(_agent, "agent", recipe, **{"policy": "MlpPolicy", **arguments, "env": env, "seed": seed})
    finally:
        env.close()
    agent.env = None
    return agent


def _agent(**arguments: Any) -> DiffusionAgent:
    """An agent from a recipe's arguments, which are flat."""
    return DiffusionAgent(**grouped(arguments))


def fine_tuned(agent: DiffusionAgent, recipe: Recipe, seed: int, part: str = "expert") -> DiffusionAgent:
    """
    An agent that starts from another one's averaged weights, in the same space, ready to be fine-tuned.

    :raises ValueError: for a section with unknown keys, naming it
    """
    config = copy.deepcopy(agent._config())
    changes = {**without_steps(section(recipe, part)), "seed": seed}
    known = sorted({*config["training"], *COMPUTING})
    if unknown := sorted(set(changes) - set(known)):
        raise ValueError(f"recipe section [{part}] has {unknown}, known are {known}")
    config["training"].update(changes)
    policy = None if isinstance(agent.policy_class, str) else agent.policy_class
    arguments = {"config": config, "tensors": agent._extra_tensors(), "policy": policy}
    follower = build(DiffusionAgent._from_config, part, recipe, **arguments)
    weights = agent.averaged.state_dict()
    follower.set_parameters({"policy": weights, "averaged": weights}, exact_match=False)
    return follower


def train_base(
    task: Task, recipe: Recipe, dataset: TrajectoryDataset, seed: int = 0, progress_bar: bool = False
) -> DiffusionAgent:
    """A base trained by the recipe."""
    agent = new_agent(task, recipe, seed)
    return agent.learn(dataset, total_timesteps(recipe, "base"), log_interval=0, progress_bar=progress_bar)


def train_expert(
    base: DiffusionAgent, recipe: Recipe, dataset: TrajectoryDataset, seed: int = 0, progress_bar: bool = False
) -> DiffusionAgent:
    """An expert fine-tuned from the base, which stays as it is."""
    agent = fine_tuned(base, recipe, seed)
    return agent.learn(dataset, total_timesteps(recipe, "expert"), log_interval=0, progress_bar=progress_bar)


# ---------------------------------------------------------------------- rewards


def extract(
    base: DiffusionAgent,
    expert: DiffusionAgent,
    data: Sequence[TrajectoryDataset] | None,
    recipe: Recipe,
    seed: int = 0,
    progress_bar: bool = False,
    **kwargs: Any,
) -> RewardExtractor:
    """
    The relative reward of two agents, in the extractor's ``reward``.

    :param data: where they are compared; None for their own samples
    :param kwargs: for ``learn``, e.g. ``checkpoint_path``
    """
    extractor = new_extractor(base, expert, recipe, seed)
    total = total_timesteps(recipe, "extraction")
    return extractor.learn(data, total, log_interval=0, progress_bar=progress_bar, **kwargs)


def new_extractor(base: DiffusionAgent, expert: DiffusionAgent, recipe: Recipe, seed: int = 0) -> RewardExtractor:
    """An extractor of the recipe's ``[extraction]`` section that has not learned yet."""
    arguments = without_steps(section(recipe, "extraction"))
    return build(RewardExtractor, "extraction", recipe, **{**arguments, "base": base, "expert": expert, "seed": seed})


def extract_on_policy(
    base: DiffusionAgent,
    expert: DiffusionAgent,
    data: Sequence[TrajectoryDataset],
    recipe: Recipe,
    seed: int = 0,
    n_rounds: int = 1,
    make_env: Callable[[], gym.Env] | None = None,
) -> RewardExtractor:
    """
    Extraction followed by on-policy rounds: the two agents are also compared at every x_t that the steered base visits.

    Offline, plans start from states of the data. In closed loop they start from states that base and steered base
    visit: such rounds use the environment's dynamics, but neither its reward nor any label.

    :param data: where they are compared, [base data, expert data]
    :param recipe: its section ``[rounds]`` may hold the gradient steps of a round (default: a third of the
        extraction's) and the keyword arguments of :class:`Rounds`
    :param n_rounds: number of rounds
    :param make_env: for rounds in closed loop; None: plans start from states of ``data``
    """
    values = section(recipe, "rounds") if "rounds" in recipe else {}
    given = {name: value for name, value in values.items() if name not in ("n_rounds", "total_timesteps")}
    rounds = build(Rounds, "rounds", recipe, **given)
    extractor = extract(base, expert, data, recipe, seed)
    own = "total_timesteps" in values
    steps = total_timesteps(recipe, "rounds") if own else total_timesteps(recipe, "extraction") // 3
    return refine(
        extractor,
        data,
        make_env,
        n_rounds=n_rounds,
        total_timesteps=steps,
        rounds=rounds,
        steer=lambda reward: steer(base, reward, recipe),
        seed=seed,
    )


def discriminate(
    base: DiffusionAgent,
    expert: DiffusionAgent,
    data: Sequence[TrajectoryDataset],
    recipe: Recipe,
    seed: int = 0,
    progress_bar: bool = False,
) -> RelativeReward:
    """
    The baseline's reward from the same data.

    :param data: [base data, expert data]
    """
    arguments = without_steps(section(recipe, "discriminator"))
    arguments |= {"base": base, "expert": expert, "seed": seed}
    learner = build(DiscriminatorReward, "discriminator", recipe, **arguments)
    total = total_timesteps(recipe, "discriminator")
    return learner.learn(data, total, log_interval=0, progress_bar=progress_bar).reward


def steer(base: DiffusionAgent, reward: AnyReward, recipe: Recipe, **overrides: Any) -> GuidedPlanner:
    """
    The base steered by a reward with the options of the recipe's section ``[steering]``, or by a discriminator's with
    those of ``[discriminator_steering]`` where there is one. The default of ``max_shift`` is that of :data:`MAX_SHIFT`.

    :param overrides: arguments of ``GuidedPlanner`` that count more; None for none
    """
    own = f"{reward.source}_steering"
    name = own if own in recipe else "steering"
    given = {key: value for key, value in overrides.items() if value is not None}
    arguments = {"max_shift": MAX_SHIFT, **section(recipe, name), **given}
    return build(GuidedPlanner, name, recipe, **{**arguments, "agent": base, "reward": reward})


def map_reward(
    reward: AnyReward,
    maze: MazeGeometry,
    recipe: Recipe,
    base_data: TrajectoryDataset | None = None,
    levels: Sequence[int] | None = None,
) -> RewardMap:
    """
    The reward over the maze, drawn with the options of the recipe's section ``[map]``.

    :param base_data: the maximum is looked for where these have been; None: everywhere
    :param levels: see `reward_map`
    """
    base_xy = None if base_data is None else base_data.observations[:, :2]
    given = {"reward": reward, "maze": maze, "base_xy": base_xy, "levels": levels}
    return build(reward_map, "map", recipe, **{**section(recipe, "map"), **given})


def save_agent(agent: DiffusionAgent, path: Path, card: Mapping[str, Any], half: bool = False) -> None:
    """Write an agent for use, without what only training needs."""
    agent.save(path, resumable=False, half=half, card=card)
