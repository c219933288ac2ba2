"""Rounds in closed loop: a reward is also fitted where the steered base goes, in plans and in an environment.

Extraction compares two agents at noised data. Steering leads elsewhere: to plans that neither data set holds, and to
states that only the steered base visits. A round plans from there, compares base and expert at every x_t of these
plans, and lets the extraction continue. It uses an environment's dynamics, but neither its reward nor any label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.agents.planning import CHUNK, Planner
from rrpolicy.common.arguments import whole
from rrpolicy.common.device import CPU
from rrpolicy.common.environments import make_by_id
from rrpolicy.common.noise import randint
from rrpolicy.data.collect import collect
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.on_policy import Sampler, Visit, learn_on_policy
from rrpolicy.rewards.relative_reward import RelativeReward


@dataclass(frozen=True)
class Rounds:
    """
    Sizes of an on-policy round.

    :param n_plans: plans of the steered base, and as many of base and expert together
    :param n_visited: environment steps of base and steered base each, in closed loop
    :param n_envs: environments in which they are collected
    """

    n_plans: int = 4096
    n_visited: int = 6000
    n_envs: int = 16

    def __post_init__(self) -> None:
        for name in ("n_plans", "n_visited", "n_envs"):
            whole(name, getattr(self, name), 2 if name == "n_plans" else 1)

    def visited_starts(
        self,
        base: DiffusionAgent,
        planner: Planner,
        make_env: Callable[[], gym.Env],
        seed: int,
        generator: torch.Generator,
    ) -> Tensor:
        """Starts (2 n_plans, H, D) of plans, pinned at states that the steered base and the base visit."""
        visited = []
        for agent in (planner, base):
            envs = DummyVecEnv([make_env] * self.n_envs)
            try:
                visited.append(collect(agent, envs, self.n_visited, seed))
            finally:
                envs.close()
        data = TrajectoryDataset.concatenate(visited)
        chosen = randint(len(data), (2 * self.n_plans,), generator, CPU).numpy()
        known = data.windows(base.layout, chosen).observations[:, : base.layout.n_observation_rows]
        return base.pinned_at(known)


def refine(
    extractor: RewardExtractor,
    data: Sequence[TrajectoryDataset],
    env: str | Callable[[], gym.Env] | None = None,
    *,
    n_rounds: int = 2,
    total_timesteps: int | None = None,
    rounds: Rounds | None = None,
    steer: Callable[[RelativeReward], Planner] | None = None,
    seed: int = 0,
) -> RewardExtractor:
    """
    Continue an extraction with rounds in which the two agents are also compared where the steered base goes.

    :param extractor: of two `DiffusionAgent`, has learned from ``data``
    :param data: where base and expert were compared, [base data, expert data]
    :param env: the id of an environment or a function that makes one, in which base and steered base collect states to
        plan from; None: plans start from states of ``data``
    :param n_rounds: each learns from the plans of all rounds so far
    :param total_timesteps: gradient steps of a round; None: a third of those that the extractor has taken
    :param rounds: sizes of a round; None for the defaults
    :param steer: makes a planner of the current reward; None: ``GuidedPlanner(base, reward)``
    :param seed: of plans, episodes and value targets
    :return: the extractor
    :raises ValueError: for an extractor of other models, or numbers out of range
    """
    base, expert, sizes = extractor.base, extractor.expert, rounds or Rounds()
    if not (isinstance(base, DiffusionAgent) and isinstance(expert, DiffusionAgent)):
        raise ValueError(f"the extractor compares a {type(base).__name__}, wanted two DiffusionAgent")
    whole("n_rounds", n_rounds, 0)
    steps = extractor.num_timesteps // 3 if total_timesteps is None else whole("total_timesteps", total_timesteps, 0)
    make_env = partial(make_by_id, env) if isinstance(env, str) else env
    planner_of = steer or partial(GuidedPlanner, base)
    generator = torch.Generator().manual_seed(seed + 1)
    events = as_events(data, base, expert, seed)

    def samplers(index: int) -> Iterator[Sampler]:
        planner = planner_of(extractor.reward)
        if make_env is None:
            starts = events.draw(2 * sizes.n_plans, generator)
        else:
            starts = sizes.visited_starts(base, planner, make_env, seed + 1000 * (index + 1), generator)
        others = starts[sizes.n_plans :].chunk(2)
        for agent, own in ((planner, starts[: sizes.n_plans]), *zip((base, expert), others, strict=True)):
            for part in own.split(CHUNK):  # sampled in one go each, so that a plan can be told from its x_t
                yield partial(_sample_plans, agent, part, generator)

    return learn_on_policy(extractor, data, steps, n_rounds, samplers, generator)


def _sample_plans(agent: Planner, starts: Tensor, generator: torch.Generator, visit: Visit) -> Tensor:
    return agent.sample_at(starts, generator, visit)
