"""The demo with a robot: base, expert and reward come from the zoo; the base, the steered base and the expert walk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rrpolicy import experiments, zoo
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import Row, write_results
from rrpolicy.evaluation.video import VideoInfo
from rrpolicy.experiments.demos.robot_picture import plot_robots
from rrpolicy.experiments.demos.stage import HERO, Stage
from rrpolicy.experiments.locomotion.film import SECONDS, film, moments
from rrpolicy.experiments.locomotion.pairs import comparisons

N_EPISODES = 16
NAMES = ("base", "expert", "reward")
WHEN = tuple(np.linspace(0.0, SECONDS, 5).tolist())  # seconds, of the picture's frames


def robot_demo(stage: Stage) -> list[Row]:
    """
    Do it all.

    :param stage: whose task is an environment of which the zoo has base, expert and reward
    :return: the rows of ``results.json``
    :raises ValueError: when the zoo has not, naming the environments that it has
    """
    env_id = stage.task.env_id
    if env_id not in (known := robots_of_the_zoo()):
        has = f"the zoo has {', '.join(known)}" if known else "the zoo has none"
        raise ValueError(f"the demo needs a PointMaze or a robot of the zoo ({has}), env is {env_id!r}")
    n_episodes = stage.n_episodes or N_EPISODES
    stage.clear()
    stage.log(f"{env_id}, seed {stage.seed}: {', '.join(f'{env_id}/{name}' for name in NAMES)} from the zoo")
    base, expert = (zoo.load_agent(f"{env_id}/{name}") for name in ("base", "expert"))
    steered = experiments.steer(base, zoo.load_reward(f"{env_id}/reward"), stage.recipe)
    agents: dict[str, Predictor] = {"base": base, "steered": steered, "expert": expert}
    with stage.environments(stage.task, n_episodes) as envs:
        results = stage.evaluate(agents, envs, n_episodes)
    rows = [row for name, result in results.items() for row in result.rows(name)]
    rows += [row for row in comparisons(results, "base", "expert") if np.isfinite(row["mean"])]
    write_results(rows, stage.out)
    with stage.timed("pictures"):
        strips = {
            name: moments(agent, stage.task, WHEN, stage.seed, stage.deterministic) for name, agent in agents.items()
        }
        plot_robots(
            rows, strips, WHEN, stage.out / HERO, f"{env_id}: scores, and one episode of each (seed {stage.seed})"
        )

    def record(agent: Predictor, path: Path, caption: str) -> VideoInfo:
        return film(agent, stage.task, path, stage.seed, stage.deterministic)

    stage.film(agents, record)
    stage.finish(rows)
    return rows


def robots_of_the_zoo() -> list[str]:
    """Environments of which the zoo has base, expert and reward, without a goal."""
    there = {entry["name"] for entry in zoo.entries() if not zoo.is_image(entry)}
    environments = dict.fromkeys(name.partition("/")[0] for name in there)
    return sorted(env_id for env_id in environments if all(f"{env_id}/{name}" in there for name in NAMES))
