"""Agents trained on the extracted reward beside agents trained on the true one (the paper's second metric).

Both have the same algorithm, budget and seed and run in the same episodes of the real environment; trained policies and
their learning curves are kept with the other archives, so a unit that was stopped goes on with the next agent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy.common.archive import read_archive
from rrpolicy.evaluation import Evaluation, Row
from rrpolicy.experiments.maze2d.artifacts import MazeStore, curve_path, read_progress, write_curves
from rrpolicy.experiments.maze2d.spec import MazeUnit
from rrpolicy.experiments.report import paired_ratio
from rrpolicy.experiments.results import Log, Recorder, plain_row
from rrpolicy.experiments.scoring import environments, n_episodes
from rrpolicy.experiments.store import create_once
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.transforms import AveragedReward
from rrpolicy.rl import on_reward
from rrpolicy.rl.on_reward import evaluate_trained, train_on_reward
from rrpolicy.rl.policies import ACTION_REPEAT, POLICY_KINDS, ActionRepeat, load_policy, save_policy

MAX_ENVS = 8  # a small network gains nothing from larger batches, and a maze takes tens of megabytes
_MAKES_THE_REWARD = ("data", "agent", "base", "expert", "extraction")  # sections of the recipe
_FORM = "exp(-sqrt(2 (max - rho)))"  # DistanceReward's form: a policy trained on another form is not this one


def measure_training(store: MazeStore, unit: MazeUnit, curves: Path, log: Log = lambda text: None) -> Recorder:
    """
    Train and run all agents, and compare them episode by episode.

    :param store: makes the reward and keeps the policies
    :param unit: a pair
    :param curves: folder for the unit's learning curves
    :param log: called with a line of text at each step
    """
    recorder = Recorder(log)
    recorder.start("extracting the reward")
    sources: Mapping[str, RelativeReward | None] = {"reward": store.reward(unit)[0], "true": None}
    learned = {}
    with environments(unit.task, min(n_episodes(store.recipe), MAX_ENVS), reward_type="dense") as envs:
        for algorithm in on_reward.SETTINGS:
            results = {}
            for source, reward in sources.items():
                agent = f"{algorithm}-{source}"
                recorder.start(f"training {agent}")
                path = _trained(store, unit, algorithm, source, reward)
                card = read_archive(path, POLICY_KINDS).card
                learned[algorithm, source] = np.array(card["curve"]).reshape(-1, 3)
                recorder.times(**{agent: card["cpu_seconds"]})
                recorder.start(f"episodes of {agent}")
                results[source] = evaluate_trained(
                    load_policy(path), envs, n_episodes(store.recipe), seed=unit.seed * 1000
                )
                recorder.rows([*results[source].rows(agent), plain_row(agent, "decisions", card["decisions"])])
            recorder.rows(_ratios(algorithm, results["reward"], results["true"]))
    write_curves(curve_path(curves, unit), learned)
    recorder.done()
    return recorder


def _ratios(algorithm: str, ours: Evaluation, true: Evaluation) -> list[Row]:
    """Success and return of the agent trained on ρ, relative to the same algorithm trained on the true reward."""
    return [
        {
            "agent": f"{algorithm}-reward",
            "reference": f"{algorithm}-true",
            "metric": name,
            **paired_ratio(ours.values(metric), true.values(metric)),
        }
        for metric, name in (("success_rate", "success_ratio"), ("return", "return_ratio"))
    ]


def _trained(store: MazeStore, unit: MazeUnit, algorithm: str, source: str, reward: RelativeReward | None) -> Path:
    """The archive of a trained policy, whose card holds its cost and its learning curve."""
    settings = on_reward.SETTINGS[algorithm]
    made_with: list[Any] = [settings.n_envs, settings.total_timesteps, settings.arguments]
    made_with += [on_reward.EPISODE_STEPS, ACTION_REPEAT]
    if reward is not None:  # what the true reward makes does not depend on the recipe
        made_with += [{part: store.recipe.get(part) for part in _MAKES_THE_REWARD}, _FORM]
        made_with += AveragedReward(reward).levels

    def make(path: Path) -> None:
        started = time.process_time()
        folder = path.with_suffix("")
        model = train_on_reward(reward, unit.task.maze, unit.goal, algorithm, seed=unit.seed, out=folder)
        seconds = time.process_time() - started
        curve = read_progress(folder / "progress.csv").tolist()
        card = {"cpu_seconds": seconds, "decisions": model.num_timesteps, "curve": curve}
        save_policy(ActionRepeat(model), path, card)

    return create_once(store.path(f"{unit.name}/training", f"{algorithm}-{source}", (), *made_with), make)
