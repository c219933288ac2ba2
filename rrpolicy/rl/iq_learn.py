"""IQ-Learn (Garg et al. 2021): inverse soft Q-learning from demonstrations, as SAC with another critic loss.

A soft Q function stands for a reward and a policy at once: r(s, a) = Q(s, a) − γ V(s'), where V is the soft value of Q
under the policy. Q is fitted so that this reward is high for demonstrations and low for the agent, without a
discriminator; the χ² penalty bounds it (equation 9 there, and section 5.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from rrpolicy.common.arguments import number
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv
from rrpolicy.rl.adversarial import Decisions, Demonstrations, Peer, PeerReward
from rrpolicy.rl.policies import ACTION_REPEAT, ActionRepeat

ARGUMENTS: Mapping[str, Any] = {
    "ent_coef": 0.01,
    "learning_rate": 1e-3,
    "batch_size": 256,
    "learning_starts": 1_000,
    "policy_kwargs": {"net_arch": [64, 64]},
}


@dataclass(frozen=True)
class InverseQSettings:
    """
    Numbers with which IQ-Learn is trained.

    :param total_timesteps: decisions of the agent
    :param n_envs: environments together
    :param gradient_steps: after each step of all of them
    :param penalty: 1/4α of the χ² penalty on rewards
    :param arguments: for SAC's constructor, over :data:`ARGUMENTS`; the temperature ``ent_coef`` is a number
    """

    total_timesteps: int = 48_000
    n_envs: int = 32
    gradient_steps: int = 4
    penalty: float = 0.5
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number("ent_coef", self.arguments.get("ent_coef", ARGUMENTS["ent_coef"]), lowest=0)


INVERSE_Q_SETTINGS = InverseQSettings()


def inverse_q_loss(
    q: Tensor, value: Tensor, next_value: Tensor, expert: Tensor, discount: float, penalty: float
) -> Tensor:
    """
    The loss of Q: minus the mean reward of demonstrations, plus the value that the policy gains, plus the penalty.

    :param q: Q(s, a) (B,)
    :param value: V(s) (B,)
    :param next_value: V(s') (B,), 0 where the episode ended
    :param expert: bool (B,), which rows are demonstrations; the others are the agent's
    :param discount: γ
    :param penalty: 1/4α
    """
    reward = q - discount * next_value
    return -reward[expert].mean() + (value - discount * next_value).mean() + penalty * reward.square().mean()


class InverseSoftQ(SAC):
    """SAC whose critics are fitted to demonstrations by :func:`inverse_q_loss`; it sees no other reward."""

    demonstrations: Iterator[Mapping[str, Array]]
    penalty: float

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Half of each batch are demonstrations, half is what the agent did; actor and temperature are as in SAC."""
        self.policy.set_training_mode(True)
        for _ in range(gradient_steps):
            observations, actions, next_observations, going_on, expert = self._batch(batch_size // 2)
            with torch.no_grad():
                next_value = going_on * self.value(next_observations, target=True)
            value = self.value(observations)
            loss = torch.stack(
                [
                    inverse_q_loss(q[:, 0], value, next_value, expert, self.gamma, self.penalty)
                    for q in self.critic(observations, actions)
                ]
            ).sum()
            self.critic.optimizer.zero_grad()
            loss.backward()
            self.critic.optimizer.step()
            actor_loss = -self.value(observations).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward()
            self.actor.optimizer.step()
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            self._n_updates += 1

    def value(self, observations: Tensor, target: bool = False) -> Tensor:
        """Soft value V(s) (B,) at an action that the policy draws."""
        actions, log_prob = self.actor.action_log_prob(observations)
        q = torch.cat((self.critic_target if target else self.critic)(observations, actions), dim=1)
        return q.min(dim=1).values - float(self.ent_coef) * log_prob

    def _batch(self, n: int) -> tuple[Tensor, ...]:
        """Observations, actions, next observations, whether the episode goes on, and which rows are demonstrations."""
        buffer: Any = self.replay_buffer
        own, shown = buffer.sample(n), next(self.demonstrations)
        pairs = (
            (own.observations, shown["obs"]),
            (own.actions, self.policy.scale_action(shown["acts"])),
            (own.next_observations, shown["next_obs"]),
            (1.0 - own.dones[:, 0], np.ones(n)),
        )
        joined = (torch.cat([mine, torch.as_tensor(its[:n], dtype=mine.dtype)]) for mine, its in pairs)
        return *joined, torch.arange(2 * n) >= n


class InverseReward:
    """
    r(s, a) = Q(s, a) − γ V(s') of a fitted Q, with V at the policy's mean action.

    :param model: which has learned
    """

    def __init__(self, model: InverseSoftQ) -> None:
        self.model = model

    @torch.no_grad()
    def predict(self, state: Array, action: Array, next_state: Array, done: Array) -> Array:
        """Transitions (n, obs_dim), (n, act_dim), (n, obs_dim), (n,) -> (n,)."""
        model = self.model
        here, there = (torch.as_tensor(np.asarray(one), dtype=torch.float32) for one in (state, next_state))
        taken = torch.as_tensor(model.policy.scale_action(np.asarray(action)), dtype=torch.float32)
        q, following = (
            torch.cat(model.critic(*pair), dim=1).min(dim=1).values
            for pair in ((here, taken), (there, model.actor(there, deterministic=True)))
        )
        return (q - model.gamma * following * ~torch.as_tensor(np.asarray(done, dtype=bool))).numpy()


def train_inverse_q(
    dataset: TrajectoryDataset,
    maze: Any,
    goal: Any,
    seed: int = 0,
    settings: InverseQSettings = INVERSE_Q_SETTINGS,
) -> Peer:
    """
    Learn a reward and a policy from demonstrations and own episodes, which are as long as the longest demonstration.

    :param dataset: the expert's, of PointMaze
    :param maze: the maze, or whatever :meth:`MazeGeometry.parse` reads
    :param goal: (row, column) in cells: only the starts of episodes depend on it
    :param seed: of starts, weights and training, global generators included
    :param settings: how long and with which numbers
    :raises ValueError: for demonstrations shorter than a decision
    """
    decisions = Decisions.of(dataset)
    n_decisions = int(dataset.episode_lengths.max()) // ACTION_REPEAT  # of an episode
    venv = PointMazeVecEnv(maze, goal, settings.n_envs, n_decisions * ACTION_REPEAT, ACTION_REPEAT)
    arguments = {"gradient_steps": settings.gradient_steps, **deepcopy({**ARGUMENTS, **settings.arguments})}
    model = InverseSoftQ("MlpPolicy", venv, device="cpu", seed=seed, buffer_size=settings.total_timesteps, **arguments)
    model.set_logger(Logger(None, []))
    model.penalty = settings.penalty
    model.demonstrations = iter(Demonstrations(decisions, model.batch_size, seed))
    model.learn(settings.total_timesteps)
    return Peer(PeerReward(InverseReward(model)), ActionRepeat(model), model.num_timesteps * ACTION_REPEAT)
