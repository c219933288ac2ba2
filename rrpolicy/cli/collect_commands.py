"""The command ``collect``: waypoint demonstrations in mazes, roll-outs of one or several agents in any environment, and
the replay buffer of a SAC run. The result is always a whole Minari folder with metadata of how it was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.agents import load_planner_for, load_policy_for, source_of
from rrpolicy.cli.options import agent_label
from rrpolicy.cli.program import echo
from rrpolicy.common.archive import read_archive
from rrpolicy.common.device import AUTO
from rrpolicy.common.folders import sole_use
from rrpolicy.common.messages import at
from rrpolicy.common.typing import Predictor
from rrpolicy.data.collect import MixtureComponent, collect_mixture, collect_point_maze
from rrpolicy.data.reference_scores import normalized_score, reference_score
from rrpolicy.evaluation import RESULTS_FILE, Row, result_row, table, write_results
from rrpolicy.experiments import DEFAULT_ENV_ID, Task
from rrpolicy.experiments.runs import CHECKPOINT, clear, write_dataset
from rrpolicy.rl.policies import POLICY_KINDS, Sb3Agent, save_policy
from rrpolicy.rl.replay import ReplayTraining
from rrpolicy.rl.sb3_files import is_sb3_agent

MAX_ENVS = 8
STEPS_PER_ENV = 1000  # fewer would leave most episodes unfinished
TRAINING_STEPS = 1_000_000


def collect(
    out: options.Out,
    env: options.AgentsEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    n_transitions: Annotated[int, typer.Option("--n-transitions", min=1, help="Rows.")] = 400_000,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            "--agent",
            metavar="NAME[:SHARE]",
            help="Roll out this agent: zoo name, path, SB3 file or hub id; repeatable, each for its share of the rows.",
        ),
    ] = None,
    algorithm: Annotated[
        options.Algorithm | None,
        typer.Option(
            "--algorithm",
            help="What trained the SB3 files, when their names do not tell; or what --from-training runs (SAC).",
            case_sensitive=False,
        ),
    ] = None,
    n_envs: Annotated[
        int | None,
        typer.Option(
            "--n-envs",
            min=1,
            help=f"Environments together; default: one per {STEPS_PER_ENV} rows of an agent, at most {MAX_ENVS}.",
        ),
    ] = None,
    action_noise: Annotated[
        float,
        typer.Option(
            "--action-noise",
            min=0,
            callback=options.finite,
            help="Standard deviation of Gaussian noise on agents' actions.",
        ),
    ] = 0.0,
    epsilon: Annotated[
        float,
        typer.Option(
            "--epsilon", min=0, max=1, callback=options.finite, help="Probability of a uniformly random action instead."
        ),
    ] = 0.0,
    deterministic: Annotated[bool, typer.Option("--deterministic/--stochastic", help="Agents' mode.")] = False,
    seed: options.Seed = 0,
    from_training: Annotated[
        bool, typer.Option("--from-training", help="Train SAC and keep its replay buffer, all of it.")
    ] = False,
    total_timesteps: Annotated[
        int, typer.Option("--total-timesteps", min=1, help="Environment steps of --from-training.")
    ] = TRAINING_STEPS,
    stop_return: Annotated[
        float | None,
        typer.Option(
            "--stop-return",
            callback=options.finite,
            help="End the data of --from-training where the mean "
            "return of 10 training episodes reaches this; without --policy-out the training, too.",
        ),
    ] = None,
    policy_out: Annotated[
        Path | None,
        typer.Option(
            "--policy-out",
            metavar="FILE",
            callback=options.file_for_results,
            help="Where --from-training keeps its last policy, an expert of the same lineage for --agent.",
        ),
    ] = None,
    checkpoint_freq: Annotated[
        int, typer.Option("--checkpoint-freq", min=1, help="Steps per checkpoint of --from-training.")
    ] = 50_000,
    train_freq: Annotated[
        int, typer.Option("--train-freq", min=1, help="Environment steps per gradient step of --from-training.")
    ] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint of --from-training.")] = False,
    progress: options.Progress = True,
    device: options.Device = "auto",
) -> None:
    """
    Make a dataset (a Minari folder), from waypoint demonstrations, from agents, or from a SAC run.

    In a maze without an agent: without a goal it wanders, with a goal it goes there and stays. Files of
    Stable-Baselines3 are never unpickled; of their weights a policy is built anew.

    \b
    Examples:
      rrpolicy collect --env PointMaze_UMaze-v3 --n-transitions 1000000 --out data/base
      rrpolicy collect --env PointMaze_UMaze-v3 --goal 3,1 --out data/expert
      rrpolicy collect --agent PointMaze_UMaze-v3/base --n-transitions 20000 --out data/rollouts
      rrpolicy collect --env Hopper-v5 --agent sb3/tqc-Hopper-v3 --n-transitions 100000 --out data/hopper-expert
      rrpolicy collect --env Hopper-v5 --agent a2c/Hopper-v3.zip:2 --agent ars/Hopper-v3.zip:1 --action-noise 0.1 \\
        --epsilon 0.05 --out data/hopper-mixed
      rrpolicy collect --from-training --env Hopper-v5 --stop-return 1000 --policy-out runs/hopper-sac.zip \\
        --out data/hopper-medium-replay
    """
    task = Task.create(env or _home_of_agents(agent or (), maze_map), maze_map, goal)
    how = {"action_noise": action_noise, "epsilon": epsilon, "deterministic": deterministic}
    if not agent and (any(how.values()) or n_envs is not None):
        raise ValueError("--action-noise, --epsilon, --deterministic and --n-envs need --agent")
    if device != AUTO and not agent:
        raise ValueError("--device is for --agent: demonstrations have no network, and --from-training runs on the CPU")
    if from_training and (agent or algorithm not in (None, options.Algorithm.SAC)):
        raise ValueError("--from-training trains SAC: --agent and other algorithms cannot be given with it")
    if not from_training and (stop_return is not None or policy_out is not None or resume):
        raise ValueError("--stop-return, --policy-out and --resume need --from-training")
    if not (from_training or agent or task.is_maze):
        raise ValueError(f"--env {env} is not a PointMaze: --agent is needed to collect there, or --from-training")
    with sole_use(out):
        if from_training:
            rows = _from_training(
                task, out, total_timesteps, stop_return, policy_out, checkpoint_freq, train_freq, resume, seed, progress
            )
        elif agent:
            rows = _from_agents(task, out, agent, algorithm, n_transitions, n_envs, seed, how)
        else:
            dataset = collect_point_maze(task.maze, n_transitions, goal=task.goal, seed=seed)
            rows = _write(dataset, out, task, [])
    if rows:
        echo(table(rows))


def _write(dataset: Any, out: Path, task: Task, rows: list[Row]) -> list[Row]:
    write_dataset(dataset, out, task)
    if rows:
        write_results(rows, out)
    echo(f"{dataset.n_transitions} transitions in {dataset.n_episodes} episodes: {out}")
    return rows


def _return_rows(name: str, env_id: str, returns: Sequence[float]) -> list[Row]:
    """Raw return and, where D4RL has references, normalised score of the finished episodes."""
    if not len(returns):
        return []
    rows = [result_row(name, "return", returns)]
    if reference_score(env_id) is not None:
        rows.append(result_row(name, "normalized_score", normalized_score(env_id, returns)))
    return rows


# ---------------------------------------------------------------------- agents


def _from_agents(
    task: Task,
    out: Path,
    names: Sequence[str],
    algorithm: str | None,
    n_transitions: int,
    n_envs: int | None,
    seed: int,
    how: dict[str, Any],
) -> list[Row]:
    drivers = [_driver(name, task, algorithm) for name in names]
    smallest = n_transitions * min(one.share for one in drivers) / sum(one.share for one in drivers)
    count = n_envs or min(MAX_ENVS, max(1, int(smallest) // STEPS_PER_ENV))
    live = DummyVecEnv([task.make] * count)
    try:
        dataset = collect_mixture(drivers, live, n_transitions, seed, task.env_id, **how)
    finally:
        live.close()
    rows = [row for one in dataset.metadata["agents"] for row in _return_rows(one["name"], task.env_id, one["returns"])]
    return _write(dataset, out, task, rows)


def _home_of_agents(names: Sequence[str], maze_map: Path | None) -> str:
    """The environment in the card of the first agent that has one."""
    archives = [zoo.find(name) for name, _ in map(name_and_share, names) if not is_sb3_agent(name)]
    for path in archives if maze_map is None else ():
        try:
            task = Task.from_card(read_archive(path).card)
        except ValueError as error:
            raise ValueError(at(path, error)) from error
        if task is not None:
            return task.env_id
    return DEFAULT_ENV_ID


def _driver(text: str, task: Task, algorithm: str | None) -> MixtureComponent:
    """
    A policy to collect with, and its share of the data.

    :param text: a name, or a name and a share
    :raises ValueError: for something that cannot act in the task's environment
    """
    name, share = name_and_share(text)
    label, source = agent_label(name, None), source_of(name)
    agent: Predictor = load_policy_for(name, task, algorithm) or load_planner_for(name, task, {})
    if is_sb3_agent(source) and isinstance(agent, Sb3Agent):
        known = {"algorithm": agent.algorithm, "normalised_observations": agent.statistics is not None}
        label = label if label.startswith(agent.algorithm) else f"{agent.algorithm}-{label}"
        return MixtureComponent(label, agent, share, {"source": name, **known})
    archive = read_archive(source)
    facts: dict[str, Any] = {"source": name, "kind": archive.kind}
    if archive.kind in POLICY_KINDS:
        facts["card"] = archive.card
    return MixtureComponent(label, agent, share, facts)


def name_and_share(text: str) -> tuple[str, float]:
    """``"a/b.zip:0.5"`` -> ``("a/b.zip", 0.5)``; a colon that no number follows belongs to the name."""
    name, colon, number = text.rpartition(":")
    try:
        share = float(number) if colon else 1.0
    except ValueError:
        return text, 1.0
    if not (name or not colon) or not (math.isfinite(share) and share > 0):
        raise ValueError(f"--agent {text}: the share is {number}, wanted a number above 0")
    return (name if colon else text), share


# ---------------------------------------------------------------------- training


def _from_training(
    task: Task,
    out: Path,
    total: int,
    stop_return: float | None,
    policy_out: Path | None,
    checkpoint_freq: int,
    train_freq: int,
    resume: bool,
    seed: int,
    progress: bool,
) -> list[Row]:
    if task.is_maze:
        raise ValueError(f"--env {task.env_id} is a maze, where train-on-reward trains: --from-training cannot")
    checkpoint, env = out / CHECKPOINT, task.make()
    try:
        if resume and checkpoint.exists():
            run = ReplayTraining.load(checkpoint, env, seed=seed, train_freq=train_freq)
        else:
            run = ReplayTraining(env, seed, train_freq=train_freq)
            clear(out, ("metadata.json", CHECKPOINT, RESULTS_FILE))
        train = partial(run.train, checkpoint=checkpoint, checkpoint_freq=checkpoint_freq, progress_bar=progress)
        train(total, stop_return)
        dataset = run.dataset(stop_return)
        if stop_return is not None and not dataset.metadata["reached"]:
            echo(f"a mean return of {stop_return:g} was not reached: the data are all {run.num_timesteps} steps")
        rows = _write(dataset, out, task, _return_rows("SAC-training", task.env_id, dataset.metadata["returns"]))
        if policy_out is not None:
            train(total)
            kept = save_policy(run.model, policy_out, run.facts())
            echo(f"policy after {run.num_timesteps} steps: {kept}")
    finally:
        env.close()
    return rows
