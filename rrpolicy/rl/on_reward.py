"""Stable-Baselines3's PPO and SAC, trained on ρ or on the true reward with the same settings.
They train in the vectorised simulator, each action held for a few steps, and are evaluated in the real environment
through :class:`ActionRepeat`; :func:`save_policy` keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, SummaryWriter, make_output_format
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from tqdm.auto import tqdm

from rrpolicy.common.learner import MaybeCallback, as_callbacks
from rrpolicy.common.progress import ProgressLog
from rrpolicy.common.typing import Predictor
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv, RewardType
from rrpolicy.evaluation import EnvSource, Evaluation, evaluate
from rrpolicy.rewards.reward_archive import AnyReward
from rrpolicy.rewards.transforms import AveragedReward, DistanceReward
from rrpolicy.rewards.wrappers import RelativeRewardVecEnv, Transform
from rrpolicy.rl.policies import ACTION_REPEAT, ActionRepeat

EPISODE_STEPS = 300  # of training episodes, in larger mazes too: more starts teach more than longer stays at the goal
N_BASE_TRANSITIONS = 100_000  # whose highest ρ has reward 1


@dataclass(frozen=True)
class Settings:
    """
    Numbers with which an algorithm is run; the same for ρ and for the true reward.

    :param algorithm: SB3's class
    :param n_envs: balls that it steps together
    :param total_timesteps: decisions
    :param arguments: of the class
    """

    algorithm: type[BaseAlgorithm]
    n_envs: int
    total_timesteps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)


# Dead ends are left only with a long horizon, more so on ρ, which differs less from cell to cell than the true
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
    reward: AnyReward | None,
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
    :param transform: the reward for ρ (n,) at ``map_level``; None: :class:`DistanceReward` of ρ averaged over levels
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
    reward: AnyReward | None, venv: PointMazeVecEnv, transform: Transform | None = None, seed: int = 0
) -> VecEnv:
    """
    Make environments to train on, whose monitor keeps the true return.

    :param reward: ρ; None for the true reward, as its mean over the steps of a decision, so that both lie in [0, 1]
    :param transform: the reward for ρ (n,) at ``map_level``; None: :class:`DistanceReward` of :class:`AveragedReward`
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
    """Environments whose reward is the mean over the steps for which an action was held."""

    def __init__(self, venv: VecEnv, n_steps: int) -> None:
        super().__init__(venv)
        self._n_steps = n_steps

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards / self._n_steps, dones, infos


class _Advance(BaseCallback):
    """Callback that moves a progress bar by the decisions made."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self._bar = bar

    def _on_step(self) -> bool:
        self._bar.update(self.training_env.num_envs)
        return True


def evaluate_trained(
    model: Predictor, env: EnvSource, n_eval_episodes: int = 48, *, seed: int = 0, progress_bar: bool = False
) -> Evaluation:
    """
    Success and return of what :func:`train_on_reward` returned, deterministic, in the real environment.

    :param model: the algorithm, or its policy as :func:`load_policy` gives it
    :param env: as in :func:`evaluate`; its reward is the true one that is reported
    :param n_eval_episodes: episodes
    :param seed: of the first episode
    :param progress_bar: show one
    """
    acting = model if isinstance(model, ActionRepeat) else ActionRepeat(model)
    return evaluate(acting, env, n_eval_episodes, seed=seed, progress_bar=progress_bar)
