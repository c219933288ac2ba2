"""Policies without planning: Stable-Baselines3's PPO and SAC, trained on ρ or on the true reward alike, and behaviour
cloning. They train in the vectorised simulator, each action held for a few steps; whoever evaluates them does it in the
real environment, through :class:`ActionRepeat`. They are kept without pickles, unlike Stable-Baselines3's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, SummaryWriter, make_output_format
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from tqdm.auto import tqdm, trange

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.learner import MaybeCallback, as_callbacks
from rrpolicy.common.progress import ProgressLog
from rrpolicy.common.seeding import MAX_SB3_SEED, checked_seed
from rrpolicy.common.spaces import box_from_dict, box_to_dict, flat_box
from rrpolicy.common.typing import Array, Predictor, State
from rrpolicy.common.weights import check_layers
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.report import check_actions
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv, RewardType
from rrpolicy.evaluation import EnvSource, Evaluation, evaluate
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.transforms import AveragedReward, DistanceReward
from rrpolicy.rewards.wrappers import RelativeRewardVecEnv, Transform

ACTION_REPEAT = 5  # environment steps per decision: 0.05 s
EPISODE_STEPS = 300  # of training episodes, in larger mazes too: more starts teach more than longer stays at the goal
N_BASE_TRANSITIONS = 100_000  # whose highest ρ is paid 1
POLICY_KIND = "sb3-policy"


@dataclass(frozen=True)
class Settings:
    """
    How an algorithm is run; the same for ρ and for the true reward.

    :param algorithm: SB3's class
    :param n_envs: balls that it steps together
    :param total_timesteps: decisions
    :param arguments: of the class
    """

    algorithm: type[BaseAlgorithm]
    n_envs: int
    total_timesteps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)


# Dead ends are left only by who looks far ahead, more so on ρ, which differs less from cell to cell than the true
# reward: gamma is 0.99, a horizon of 5 s. SAC's returns over five decisions carry values through long mazes.
SETTINGS: Mapping[str, Settings] = {
    "PPO": Settings(
        PPO,
        n_envs=128,
        total_timesteps=38 * 128 * 32,
        arguments={"n_steps": 32, "batch_size": 512, "n_epochs": 10, "learning_rate": 1e-3, "gamma": 0.99},
    ),
    "SAC": Settings(
        SAC,
        n_envs=64,
        total_timesteps=96_000,
        arguments={
            "learning_rate": 2e-3,
            "gamma": 0.99,
            "n_steps": 5,
            "batch_size": 256,
            "buffer_size": 96_000,
            "learning_starts": 4_000,
            "train_freq": 1,
            "gradient_steps": 4,
            "ent_coef": "auto_0.1",
            "policy_kwargs": {"net_arch": [64, 64]},
        },
    ),
}


# ---------------------------------------------------------------------- training


def train_on_reward(
    reward: RelativeReward | None,
    maze: Any,
    goal: Any,
    algorithm: str = "PPO",
    total_timesteps: int | None = None,
    seed: int = 0,
    *,
    transform: Transform | None = None,
    reward_type: RewardType = "dense",
    max_episode_steps: int = EPISODE_STEPS,
    out: str | Path | None = None,
    callback: MaybeCallback = None,
    progress_bar: bool = False,
    **arguments: Any,
) -> BaseAlgorithm:
    """
    Train a policy from scratch in the vectorised simulator. Its actions are meant to be held for ``ACTION_REPEAT``
    environment steps: act with ``ActionRepeat(model)``.

    :param reward: ρ with a step head, scored where each decision leads; None trains on the true reward
    :param maze: the maze, or whatever :meth:`MazeGeometry.parse` reads
    :param goal: (row, column) in cells: of the true reward, which with ρ is only logged
    :param algorithm: ``"PPO"`` or ``"SAC"``
    :param total_timesteps: decisions; None: the algorithm's own number
    :param seed: of starts, weights and training
    :param transform: what is paid for ρ (n,) at ``map_level``; None: :class:`DistanceReward` of ρ averaged over levels
        (:class:`AveragedReward`), fitted on base data of the maze
    :param reward_type: which true reward
    :param max_episode_steps: environment steps of a training episode
    :param out: folder for the learning curves under the *true* reward, ``progress.csv`` and, where tensorboard is
        installed, its events, in place of those of an earlier run; None for none
    :param callback: SB3's
    :param progress_bar: show one
    :param arguments: for the algorithm's constructor, over ``SETTINGS``
    :return: the trained algorithm
    :raises ValueError: for an unknown algorithm, a number below 1, or a reward that cannot score these observations
    """
    if algorithm not in SETTINGS:
        raise ValueError(f"algorithm must be one of {', '.join(SETTINGS)}, got {algorithm!r}")
    settings = SETTINGS[algorithm]
    total = settings.total_timesteps if total_timesteps is None else total_timesteps
    if total < 1:
        raise ValueError(f"total_timesteps is {total}, it must be at least 1")
    venv = PointMazeVecEnv(maze, goal, settings.n_envs, max_episode_steps, ACTION_REPEAT, reward_type)
    env = make_reward_env(reward, venv, transform, seed)
    values = {**deepcopy(settings.arguments), **arguments, "env": env, "seed": seed}  # SB3 writes into policy_kwargs
    model = settings.algorithm(**{"policy": "MlpPolicy", "device": "cpu", "stats_window_size": venv.num_envs, **values})
    if out is not None:
        model.set_logger(_logger(Path(out)))
    # a row of the log per PPO roll-out; SAC counts episodes, which end together
    log_interval = venv.num_envs if algorithm == "SAC" else 1
    try:
        with tqdm(total=total, unit="decision", leave=False, disable=not progress_bar) as bar:
            model.learn(total, [_Advance(bar), *as_callbacks(callback)], log_interval=log_interval)
    finally:
        if out is not None:
            model.logger.close()
    return model


def _logger(folder: Path) -> Logger:
    """CSV and, where tensorboard is installed, its events; those of an earlier run are removed."""
    for old in (*folder.glob("events.out.tfevents.*"), folder / "progress.csv"):
        old.unlink(missing_ok=True)  # TensorBoard would show both runs as one
    outputs: list[KVWriter] = [ProgressLog(folder / "progress.csv")]
    if SummaryWriter is not None:
        outputs.append(make_output_format("tensorboard", str(folder)))
    return Logger(str(folder), outputs)


def make_reward_env(
    reward: RelativeReward | None, venv: PointMazeVecEnv, transform: Transform | None = None, seed: int = 0
) -> VecEnv:
    """
    Environments to train on, whose monitor keeps the true return.

    :param reward: ρ; None for the true reward, as its mean over the steps of a decision, so that both lie in [0, 1]
    :param transform: what is paid for ρ (n,) at ``map_level``; None: :class:`DistanceReward` of :class:`AveragedReward`
    :param seed: of the base data that the bounded reward is fitted on
    """
    monitored = VecMonitor(venv)
    if reward is None:
        return _MeanRewardVecEnv(monitored, venv.action_repeat)
    if transform is None:
        data = collect_point_maze(venv.maze, N_BASE_TRANSITIONS, seed=seed)
        averaged = AveragedReward(reward)
        bounded = DistanceReward.fit(averaged, data.observations, data.actions)
        return RelativeRewardVecEnv(monitored, averaged, bounded)
    return RelativeRewardVecEnv(monitored, reward, transform)


class _MeanRewardVecEnv(VecEnvWrapper):
    """Pays the mean reward of the steps for which an action was held."""

    def __init__(self, venv: VecEnv, n_steps: int) -> None:
        super().__init__(venv)
        self._n_steps = n_steps

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards / self._n_steps, dones, infos


class _Advance(BaseCallback):
    """Moves a progress bar by the decisions made."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True


def clone_behaviour(
    dataset: TrajectoryDataset,
    n_steps: int = 5_000,
    seed: int = 0,
    *,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    net_arch: Sequence[int] = (256, 256),
    action_space: gym.spaces.Box | None = None,
    progress_bar: bool = False,
) -> ActorCriticPolicy:
    """
    Behaviour cloning: a Gaussian policy of SB3 fitted to the actions by maximum likelihood.

    :param dataset: what to imitate
    :param n_steps: gradient steps
    :param seed: of weights and batches; the global generators are left alone
    :param batch_size: transitions in a batch
    :param learning_rate: Adam's, decayed to 0 along a cosine
    :param net_arch: hidden widths
    :param action_space: into whose bounds the policy's actions are clipped; None: [-1, 1]
    :param progress_bar: show one
    :return: a policy that acts at every environment step
    :raises ValueError: when actions of the dataset lie outside these bounds
    """
    seed, spaces = checked_seed(seed, MAX_SB3_SEED), _spaces(dataset.observation_dim, dataset.action_dim, action_space)
    check_actions(dataset, spaces[1], "action_space, the environment's")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {"pi": list(net_arch), "vf": []}
        policy = ActorCriticPolicy(*spaces, lambda _: learning_rate, net_arch=layers)
    observations, actions = torch.tensor(dataset.observations), torch.tensor(dataset.actions)  # theirs are read-only
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(policy.optimizer, max(n_steps, 1))
    generator = torch.Generator().manual_seed(seed)
    policy.set_training_mode(True)
    for _ in trange(n_steps, unit="step", leave=False, disable=not progress_bar):
        rows = torch.randint(len(observations), (batch_size,), generator=generator)
        loss = -policy.get_distribution(observations[rows]).log_prob(actions[rows]).mean()
        policy.optimizer.zero_grad()
        loss.backward()
        policy.optimizer.step()
        decay.step()
    policy.set_training_mode(False)
    return policy


# ---------------------------------------------------------------------- archives


def save_trained(model: BaseAlgorithm, path: str | Path, card: Mapping[str, Any] | None = None) -> Path:
    """
    Keep the policy of what :func:`train_on_reward` returned, in one archive without pickles.

    :param model: an algorithm of ``SETTINGS``; of its ``policy_kwargs`` only ``net_arch`` may be set
    :param path: file; ``.zip`` is added when missing
    :param card: facts about the policy
    :return: the path written
    :raises ValueError: for a policy that could not be rebuilt from its archive, or spaces that are no flat boxes
    """
    algorithm = type(model).__name__
    other = {name for name, value in model.policy_kwargs.items() if value} - {"net_arch"}
    if algorithm not in SETTINGS or other:
        raise ValueError(
            f"model must be one of {', '.join(SETTINGS)} with no other policy_kwargs than net_arch, "
            f"got {algorithm} with {model.policy_kwargs}"
        )
    seen, acted = flat_box(model.observation_space, "observation"), flat_box(model.action_space, "action")
    config = {
        "algorithm": algorithm,
        "dims": (seen.shape, acted.shape),
        "action_space": box_to_dict(acted),
        "net_arch": model.policy_kwargs.get("net_arch"),
    }
    return write_archive(path, POLICY_KIND, config, {"policy": model.policy.state_dict()}, card)


def load_trained(path: str | Path) -> BasePolicy:
    """
    Read what :func:`save_trained` wrote.

    :return: the policy, which acts as the algorithm did: ``ActionRepeat(load_trained(path))``
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, naming file and fault
    """
    archive = read_archive(path, POLICY_KIND)
    with archive.rebuilding():
        policy_class = SETTINGS[archive.config["algorithm"]].algorithm.policy_aliases["MlpPolicy"]
        (observation_dim,), (action_dim,) = archive.config["dims"]
        bounds = archive.config.get("action_space")  # older archives are of actions in [-1, 1]
        spaces = _spaces(observation_dim, action_dim, None if bounds is None else box_from_dict(bounds))
        if archive.config["algorithm"] == "SAC" and not spaces[1].is_bounded():
            raise ValueError(f"actions of SAC are scaled to their bounds, the action space is {spaces[1]}")
        net_arch, stored = archive.config["net_arch"], archive.tensors["policy"]
        parts = net_arch if isinstance(net_arch, Mapping) else {"pi": net_arch}
        for part, widths in parts.items():
            n_inputs = observation_dim + (action_dim if part == "qf" else 0)
            check_layers([n_inputs, *(widths or [])], stored)
        policy = policy_class(*spaces, lambda _: 0.0, net_arch=archive.config["net_arch"])
        policy.load_state_dict(stored)
    policy.set_training_mode(False)
    return policy


def _spaces(
    observation_dim: int, action_dim: int, action_space: gym.spaces.Box | None = None
) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Of observations without bounds, and of actions, in [-1, 1] unless given."""
    return (
        gym.spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (action_dim,), np.float32) if action_space is None else action_space,
    )


# ---------------------------------------------------------------------- acting


class ActionRepeat:
    """
    A predictor that asks another one for every n-th action and holds it in between.

    Its memory is ``(action held (n_envs, act_dim), steps it was held (n_envs,), *the other's memory)``.

    :param agent: anything with ``predict``, e.g. what :func:`train_on_reward` returns
    :param n_steps: environment steps per decision
    :raises ValueError: when n_steps is below 1
    """

    def __init__(self, agent: Predictor, n_steps: int = ACTION_REPEAT) -> None:
        if n_steps < 1:
            raise ValueError(f"n_steps is {n_steps}, it must be at least 1")
        self.agent, self.n_steps = agent, n_steps

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


def evaluate_trained(
    model: Predictor, env: EnvSource, n_eval_episodes: int = 48, seed: int = 0, progress_bar: bool = False
) -> Evaluation:
    """
    Success and return of what :func:`train_on_reward` returned, deterministic, in the real environment.

    :param model: the algorithm, or its policy as :func:`load_trained` gives it
    :param env: as in :func:`evaluate`; its reward is the true one that is reported
    :param n_eval_episodes: episodes
    :param seed: of the first episode
    :param progress_bar: show one
    """
    return evaluate(ActionRepeat(model), env, n_eval_episodes, seed, progress_bar=progress_bar)
