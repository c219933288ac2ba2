"""AIRL and GAIL of the `imitation` library, which learn a reward from demonstrations by acting, in the maze.

Demonstrations are resampled to their decisions, each action held for some steps; training runs in the vectorised
simulator (Fu, Luo, Levine 2018; Ho, Ermon 2016). DIFO (Huang et al. 2024) is GAIL with a diffusion model for its
discriminator. `imitation` is optional and imported only where they are built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from torch import Tensor
from tqdm.auto import trange

from rrpolicy.common.typing import Array, Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv
from rrpolicy.rl.diffusion_discriminator import DiffusionDiscriminator
from rrpolicy.rl.on_reward import SETTINGS
from rrpolicy.rl.policies import ACTION_REPEAT, ActionRepeat

INSTALL = (  # without its dependencies: its pins are older than what it runs with
    "AIRL and GAIL need imitation: pip install tensorboard rich && pip install --no-deps imitation==1.0.1"
)


@dataclass(frozen=True)
class PeerSettings:
    """
    Numbers with which AIRL and GAIL are trained, chosen for the best map and policy on UMaze and Medium with a seed
    that is not reported. DIFO has them, too; none were looked for.

    :param total_timesteps: decisions, rounded down to whole rounds of the generator; None: 150 rounds, of DIFO 60
    :param generator: for PPO, over ``SETTINGS["PPO"]``
    :param net_arch: hidden widths of the reward and, with AIRL, of the potential
    :param batch_size: expert decisions in a batch of the discriminator, beside as many of the generator
    :param n_updates: batches after each round
    :param learning_rate: Adam's
    :param denoising: of DIFO, weight of the denoising loss beside that of its discriminator
    """

    total_timesteps: int | None = None
    generator: Mapping[str, Any] = field(default_factory=lambda: {"ent_coef": 0.03, "target_kl": 0.02})
    net_arch: tuple[int, ...] = (64, 64)
    batch_size: int = 1024
    n_updates: int = 8
    learning_rate: float = 1e-3
    denoising: float = 1.0


N_ROUNDS = {"airl": 150, "gail": 150, "difo": 60}  # unless settings say otherwise; a round of DIFO costs most
PEERS = tuple(N_ROUNDS)
PEER_SETTINGS = PeerSettings()


class Trainer(Protocol):
    """The part of `imitation`'s ``AdversarialTrainer`` that is used."""

    def train_gen(self) -> None:
        """Run a round of the generator."""
        ...

    def train_disc(self) -> Any:
        """Train on a batch of the discriminator."""
        ...


class RewardNet(Protocol):
    """The part of `imitation`'s ``RewardNet`` that is used."""

    def predict(self, state: Array, action: Array, next_state: Array, done: Array) -> Array:
        """Transitions (n, obs_dim), (n, act_dim), (n, obs_dim), (n,) -> (n,)."""
        ...


@dataclass(frozen=True)
class Peer:
    """
    The result of learning from demonstrations by acting: AIRL, GAIL, DIFO or IQ-Learn.

    :param reward: the learned reward
    :param agent: the policy
    :param environment_steps: used for training
    """

    reward: PeerReward
    agent: Predictor
    environment_steps: int


def train_peer(
    name: str,
    dataset: TrajectoryDataset,
    maze: Any,
    goal: Any,
    seed: int = 0,
    settings: PeerSettings = PEER_SETTINGS,
    progress_bar: bool = False,
) -> Peer:
    """
    Learn a reward and a policy from demonstrations and own episodes, which are as long as the longest demonstration.

    :param name: ``"airl"``, ``"gail"`` or ``"difo"``
    :param dataset: the expert's, of PointMaze
    :param maze: the maze, or whatever :meth:`MazeGeometry.parse` reads
    :param goal: (row, column) in cells: only the starts of episodes depend on it
    :param seed: of starts, weights and training, global generators included
    :param settings: how long and with which numbers
    :param progress_bar: show one
    :raises ValueError: for an unknown name, less than one round, demonstrations shorter than a decision, or when
        `imitation` is not installed, saying how it can be
    """
    if name not in PEERS:
        raise ValueError(f"name must be one of {', '.join(PEERS)}, got {name!r}")
    demonstrations = Demonstrations(Decisions.of(dataset), settings.batch_size, seed)
    n_envs = SETTINGS["PPO"].n_envs
    n_decisions = int(dataset.episode_lengths.max()) // ACTION_REPEAT  # of an episode
    venv = PointMazeVecEnv(maze, goal, n_envs, n_decisions * ACTION_REPEAT, ACTION_REPEAT)
    arguments = {**SETTINGS["PPO"].arguments, **settings.generator}
    model = PPO("MlpPolicy", venv, device="cpu", seed=seed, **arguments)
    one, total = n_envs * model.n_steps, settings.total_timesteps
    n_rounds = N_ROUNDS[name] if total is None else total // one
    if n_rounds < 1:
        raise ValueError(f"total_timesteps is {total}, it must be at least {one}, one round")
    with tempfile.TemporaryDirectory() as folder:  # its logger insists on one
        trainer, net = _build(name, settings, venv, model, demonstrations, folder)
        for _ in trange(n_rounds, unit="round", leave=False, disable=not progress_bar):
            trainer.train_gen()
            for _ in range(settings.n_updates):
                trainer.train_disc()
    return Peer(PeerReward(net), ActionRepeat(model), model.num_timesteps * ACTION_REPEAT)


class PeerReward:
    """
    A reward network evaluated at balls that stay where they are, for maps and EPIC.

    :param net: which takes PointMaze's observations
    """

    layout = TrajectoryLayout(observation_dim=4, action_dim=2, horizon=1, plan_actions=False)

    def __init__(self, net: RewardNet) -> None:
        self._net = net

    def predict(self, observations: Array, actions: Array | None = None) -> Array:
        """States (n, 4) in environment units -> rewards (n,) of staying there with no force, in the network's units."""
        states = np.asarray(observations, dtype=np.float32)
        forces = np.zeros((len(states), 2), dtype=np.float32) if actions is None else actions
        return self._net.predict(states, forces, states, np.zeros(len(states), dtype=bool))


# ---------------------------------------------------------------------- demonstrations


class Decisions(NamedTuple):
    """
    Demonstrations resampled to decisions, each of whose actions is held for a few steps.

    ``observations`` (n, obs_dim), ``actions`` (n, action_dim) the mean of those taken meanwhile, which gives the same
    impulse, and ``next_observations`` (n, obs_dim) after the last of them.
    """

    observations: Array
    actions: Array
    next_observations: Array

    @classmethod
    def of(cls, dataset: TrajectoryDataset, n_steps: int = ACTION_REPEAT) -> Decisions:
        """
        Make a decision of every row whose episode is recorded long enough.

        :param n_steps: environment steps per decision
        :raises ValueError: when no episode is
        """
        lengths = dataset.episode_lengths
        ends = np.repeat(np.cumsum(lengths), lengths)
        starts = np.flatnonzero(np.arange(len(dataset)) + n_steps < ends)
        if not len(starts):
            raise ValueError(f"dataset has no episode of {n_steps + 1} rows, the longest has {lengths.max()}")
        sums = np.cumsum(dataset.actions, axis=0, dtype=np.float64) - dataset.actions  # of all before a row
        means = (sums[starts + n_steps] - sums[starts]) / n_steps
        observations = dataset.observations
        return cls(observations[starts], means.astype(np.float32), observations[starts + n_steps])


@dataclass(frozen=True)
class Demonstrations:
    """
    Endless random batches of decisions, as `imitation` reads them; every iterator yields the same.

    :param decisions: to draw from
    :param batch_size: decisions in a batch
    :param seed: of the draws
    """

    decisions: Decisions
    batch_size: int
    seed: int

    def __iter__(self) -> Iterator[dict[str, Array]]:
        rng = np.random.default_rng(self.seed)
        while True:
            rows = rng.integers(len(self.decisions.actions), size=self.batch_size)
            drawn = Decisions(*(array[rows] for array in self.decisions))
            yield {
                "obs": drawn.observations,
                "acts": drawn.actions,
                "next_obs": drawn.next_observations,
                "dones": np.zeros(self.batch_size, dtype=bool),
            }


# ---------------------------------------------------------------------- imitation


def _build(
    name: str, settings: PeerSettings, venv: PointMazeVecEnv, model: PPO, demonstrations: Demonstrations, folder: str
) -> tuple[Trainer, RewardNet]:
    """The trainer, and the network that holds its reward."""
    try:
        from imitation.algorithms.adversarial.airl import AIRL
        from imitation.algorithms.adversarial.gail import GAIL
        from imitation.util.logger import HierarchicalLogger
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error})") from error
    widths = list(settings.net_arch)
    reward, net = (_moves_network if name == "difo" else partial(_networks, name))(widths, venv, model.gamma)

    made: Any = {"airl": AIRL, "gail": GAIL, "difo": partial(_difo, GAIL, settings)}[name]
    trainer = made(
        demonstrations=demonstrations,
        demo_batch_size=settings.batch_size,
        venv=venv,
        gen_algo=model,
        reward_net=net,
        disc_opt_kwargs={"lr": settings.learning_rate},
        custom_logger=HierarchicalLogger(Logger(folder, []), format_strs=()),
    )
    return trainer, reward


def _difo(gail: Any, settings: PeerSettings, **arguments: Any) -> Trainer:
    """GAIL whose discriminator stays a denoiser of demonstrations."""
    net, shown = arguments["reward_net"], iter(arguments["demonstrations"])
    optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate)

    class Difo(gail):
        def train_disc(self, **given: Any) -> Any:
            seen = next(shown)
            loss = settings.denoising * net.denoising_loss(*(torch.as_tensor(seen[key]) for key in ("obs", "next_obs")))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return super().train_disc(**given)

    return Difo(**arguments)


def _networks(name: str, widths: list[int], venv: PointMazeVecEnv, discount: float) -> tuple[Any, Any]:
    """A reward of positions, as ours is, and what the discriminator is made of: with AIRL a potential is added."""
    from imitation.rewards.reward_nets import BasicPotentialMLP, BasicRewardNet, ShapedRewardNet
    from imitation.util.networks import RunningNorm

    class PositionRewardNet(BasicRewardNet):
        def forward(self, state: Tensor, action: Tensor, next_state: Tensor, done: Tensor) -> Tensor:
            return super().forward(state[:, :2], action, next_state, done)

    class EndlessRewardNet(ShapedRewardNet):
        """An episode that runs out of time is not over: its last state keeps its potential."""

        def forward(self, state: Tensor, action: Tensor, next_state: Tensor, done: Tensor) -> Tensor:
            return super().forward(state, action, next_state, torch.zeros_like(done))

    normalized: dict[str, Any] = {"normalize_input_layer": RunningNorm}
    positions = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    reward = PositionRewardNet(positions, venv.action_space, use_action=False, hid_sizes=widths, **normalized)
    if name != "airl":
        return reward, reward
    potential = BasicPotentialMLP(venv.observation_space, hid_sizes=widths, **normalized)
    return reward, EndlessRewardNet(reward, potential, discount)


def _moves_network(widths: list[int], venv: PointMazeVecEnv, discount: float) -> tuple[Any, Any]:
    """The log odds of a position and the move to the next one, which are reward and discriminator at once."""
    from imitation.rewards.reward_nets import RewardNet
    from imitation.util.networks import RunningNorm

    class MovesRewardNet(RewardNet):
        """Log odds of a position and the move to the next one."""

        def __init__(self) -> None:
            super().__init__(venv.observation_space, venv.action_space, normalize_images=False)
            self.norm, self.discriminator = RunningNorm(4), DiffusionDiscriminator(4, width=widths[0])

        def forward(self, state: Tensor, action: Tensor, next_state: Tensor, done: Tensor) -> Tensor:
            return self.discriminator(self.moves(state, next_state))

        def moves(self, state: Tensor, next_state: Tensor) -> Tensor:
            here, there = state[:, :2].float(), next_state[:, :2].float()
            return self.norm(torch.cat([here, there - here], dim=1))

        def denoising_loss(self, state: Tensor, next_state: Tensor) -> Tensor:
            return self.discriminator.denoising_loss(self.moves(state, next_state))

    net = MovesRewardNet()
    return net, net
