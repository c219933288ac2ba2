"""The command that distills a planner into a policy without planning, or into an agent that plans in fewer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rrpolicy import experiments
from rrpolicy.agents.planning import Planner
from rrpolicy.cli import options
from rrpolicy.cli.agents import compiled, load_planner_for
from rrpolicy.cli.options import agent_label, recipe_for, report, task_of
from rrpolicy.cli.program import echo
from rrpolicy.common.folders import sole_use
from rrpolicy.common.options import LearnOptions
from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.readers import load_dataset
from rrpolicy.evaluation import RESULTS_FILE, Row, compare
from rrpolicy.experiments import Recipe, Task
from rrpolicy.experiments.runs import CHECKPOINT, clear
from rrpolicy.rl.dagger import Dagger
from rrpolicy.rl.distill import Distillation
from rrpolicy.rl.distill_plans import PlanDistillation
from rrpolicy.rl.policies import save_policy

POLICY, AGENT = "policy.zip", "agent.zip"


def distill(
    agent: options.AgentName,
    out: options.Out,
    env: options.MaybeEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    reward: options.Reward = None,
    scale: options.Scale = None,
    n_candidates: options.Candidates = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", help=f"Label states of data, not of an environment. {options.DATA_SOURCE}"),
    ] = None,
    plan_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Distill into a diffusion agent that plans in so many steps, without the reward."),
    ] = None,
    n_rounds: Annotated[int, typer.Option("--rounds", min=0, help="Rounds of DAgger.")] = 3,
    total_timesteps: Annotated[int, typer.Option("--total-timesteps", min=1, help="Gradient steps of a fit.")] = 6000,
    n_episodes: options.Episodes = 48,
    seed: options.Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    fast: options.Fast = False,
    device: options.Device = "auto",
) -> None:
    """
    Distill a planner, steered where a reward is given, into an MLP of Stable-Baselines3's shape.

    Leaves policy.zip, or agent.zip with --plan-steps, which `rrpolicy enjoy` and `rrpolicy export` take,
    checkpoint.zip, and results.json with the scores of planner and student in the same episodes. Stopped and resumed
    equals uninterrupted.

    \b
    Examples:
      rrpolicy distill Hopper-v5/base --reward Hopper-v5/reward --fast --out runs/student
      rrpolicy distill Hopper-v5/base --reward Hopper-v5/reward --dataset data/hopper --out runs/student
      rrpolicy distill Hopper-v5/base --reward Hopper-v5/reward --plan-steps 1 --out runs/one-step
    """
    task = task_of([reward, agent] if reward else [agent], env, maze_map, goal)
    values = recipe_for(task, recipe)
    planner = load_planner_for(agent, task, values, reward, scale, n_candidates)
    teacher = compiled(planner) if fast else planner
    data = [load_dataset(one) for one in dataset or []]
    with sole_use(out):
        checkpoint = out / CHECKPOINT
        if resume and checkpoint.exists():
            distillation = _resumed(checkpoint, teacher, plan_steps)
        else:
            clear(out, (CHECKPOINT, POLICY, AGENT, RESULTS_FILE))
            distillation = _started(teacher, plan_steps, seed)
        source: Any = TrajectoryDataset.concatenate(data) if data else task.make
        loop: LearnOptions = {"progress_bar": progress, "checkpoint_path": checkpoint, "log_interval": 0}
        distillation.learn(source, total_timesteps, n_rounds=n_rounds, **loop)
        rows = _scores(distillation, task, values, n_episodes, seed, progress)
        facts = {"teacher": agent_label(agent, reward), "agent": agent, "reward": reward, "seed": seed}
        counts = {"n_labels": distillation.n_labels, "held_out_error": distillation.best_loss}
        card = {**task.to_card(), **facts, **counts, "results": rows}
        report(rows, out)
        echo(f"written: {_save(distillation, out, card)}")


def _started(teacher: Planner, plan_steps: int | None, seed: int) -> Dagger[Any]:
    return Distillation(teacher, seed=seed) if plan_steps is None else PlanDistillation(teacher, plan_steps, seed=seed)


def _resumed(checkpoint: Path, teacher: Planner, plan_steps: int | None) -> Dagger[Any]:
    """
    The distillation of a checkpoint.

    :raises ValueError: when the checkpoint's student is of another kind, or plans in another number of steps
    """
    if plan_steps is None:
        return Distillation.load(checkpoint, teacher=teacher)
    distillation = PlanDistillation.load(checkpoint, teacher=teacher)
    if distillation.n_sampling_steps != plan_steps:
        raise ValueError(f"--plan-steps is {plan_steps}, in {checkpoint} it is {distillation.n_sampling_steps}")
    return distillation


def _save(distillation: Dagger[Any], out: Path, card: dict[str, Any]) -> Path:
    """The student as an archive with a card."""
    if isinstance(distillation, PlanDistillation):
        distillation.student.save(out / AGENT, resumable=False, card=card)
        return out / AGENT
    student: Any = distillation.student
    return save_policy(student, out / POLICY, card)


def _scores(
    distillation: Dagger[Any], task: Task, recipe: Recipe, n_episodes: int, seed: int, progress: bool
) -> list[Row]:
    """Planner and student in the same episodes."""
    settings = {**experiments.section(recipe, "evaluation"), "n_episodes": n_episodes, "seed": seed}
    as_planned = bool(settings.get("deterministic", True))
    plans = isinstance(distillation, PlanDistillation)
    settings["deterministic"] = {"planner": as_planned, "student": as_planned if plans else True}
    settings.pop("n_eval_episodes", None)
    agents: dict[str, Predictor] = {"planner": distillation.teacher, "student": distillation.student}
    results = compare(agents, task.make, progress_bar=progress, **settings)
    return [row for name, result in results.items() for row in result.rows(name)]
