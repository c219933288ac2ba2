"""The command ``train-on-reward``: PPO or SAC trained on ρ, compared with training on the true reward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import typer
from stable_baselines3.common.base_class import BaseAlgorithm

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.options import agent_label, report, task_of
from rrpolicy.common.device import AUTO
from rrpolicy.common.files import naming
from rrpolicy.common.folders import sole_use
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import Row, compare, result_row
from rrpolicy.experiments import DEFAULT_ENV_ID, Task, plain_row
from rrpolicy.rewards.reward_archive import AnyReward
from rrpolicy.rl.on_reward import train_on_reward
from rrpolicy.rl.policies import ActionRepeat, save_policy


class Algorithm(StrEnum):
    """The keys of ``SETTINGS``, as a choice."""

    PPO = "PPO"
    SAC = "SAC"


def train_agents_on_reward(
    out: options.Out,
    reward: Annotated[str | None, typer.Option("--reward", help="The extracted reward: zoo name or path.")] = None,
    true_reward: Annotated[bool, typer.Option("--true-reward", help="Train on the true reward, too.")] = False,
    env: options.MaybeEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", help="Stable-Baselines3's algorithm.", case_sensitive=False)
    ] = Algorithm.PPO,
    total_timesteps: Annotated[
        int | None, typer.Option("--total-timesteps", min=1, help="Decisions; default: the algorithm's own number.")
    ] = None,
    seed: options.Seed = 0,
    n_episodes: options.Episodes = 48,
    progress: options.Progress = True,
    device: options.Device = "auto",
) -> None:
    """
    Train PPO or SAC on an extracted reward, and on the true one for comparison, from the same starts and seed.

    Training runs in the vectorised simulator; the table shows success and return under the true dense reward in the
    real environment. Leaves results.json and a folder for each agent, with its learning curves (CSV, TensorBoard) and
    policy.zip, which `rrpolicy enjoy` takes.

    \b
    Examples:
      rrpolicy train-on-reward --reward PointMaze_UMaze-v3/reward-3-1 --true-reward --out runs/ppo
      rrpolicy train-on-reward --reward runs/reward --algorithm SAC --seed 1 --out runs/sac
      rrpolicy train-on-reward --true-reward --env PointMaze_UMaze-v3 --goal 3,1 --out runs/true
    """
    if reward is None and not true_reward:
        raise ValueError("nothing to train on: give --reward, --true-reward or both")
    if reward is None and device != AUTO:
        raise ValueError("--device is for --reward: the algorithms themselves run on the CPU")
    task = task_of([reward], env, maze_map, goal) if reward else Task.create(env or DEFAULT_ENV_ID, maze_map, goal)
    if not task.is_maze:
        raise ValueError(f"--env {task.env_id} is not a PointMaze, whose simulator the training needs")
    if task.goal is None:
        raise ValueError("--goal is needed: success is measured there")
    sources: list[tuple[str, AnyReward | None]] = []
    if reward is not None:
        sources.append((f"{algorithm}-{agent_label(reward, None)}", zoo.load_reward(reward)))
    if true_reward:
        sources.append((f"{algorithm}-true-reward", None))
    comparison = _Comparison(task, algorithm, total_timesteps, seed, n_episodes, progress)
    with sole_use(out):
        report(comparison.rows(sources, out), out)


@dataclass(frozen=True)
class _Comparison:
    """Agents that differ only in the reward they were trained on."""

    task: Task
    algorithm: str
    total_timesteps: int | None
    seed: int
    n_episodes: int
    progress: bool

    def rows(self, sources: Sequence[tuple[str, AnyReward | None]], out: Path) -> list[Row]:
        """
        Train and evaluate one agent for each reward.

        :param sources: names of the agents and their rewards, the true one (None) last
        :param out: gets a folder for each agent
        """
        agents: dict[str, Predictor] = {}
        costs: dict[str, list[Row]] = {}
        for name, source in sources:
            before = time.process_time()
            model = self._trained(source, out / name)
            spent = {"decisions": float(model.num_timesteps), "cpu_seconds": time.process_time() - before}
            costs[name] = [plain_row(name, metric, cost) for metric, cost in spent.items()]
            agents[name] = ActionRepeat(model)
            card = {**self.task.to_card(), "seed": self.seed, "paid": name.removeprefix(f"{self.algorithm}-"), **spent}
            save_policy(ActionRepeat(model), out / name / "policy.zip", card)
        results = compare(agents, self._make, self.n_episodes, progress_bar=self.progress)
        rows = [row for name, result in results.items() for row in [*result.rows(name), *costs[name]]]
        if len(results) == 2:
            ours, true = (result.returns for result in results.values())
            rows.append(result_row(sources[0][0], "return_over_true", ours / true))
        return rows

    def _trained(self, source: AnyReward | None, folder: Path) -> BaseAlgorithm:
        with naming(folder, folder):
            return train_on_reward(
                source,
                self.task.maze,
                self.task.goal,
                self.algorithm,
                self.total_timesteps,
                self.seed,
                out=folder,
                progress_bar=self.progress,
            )

    def _make(self) -> gym.Env:
        return self.task.make(reward_type="dense")
