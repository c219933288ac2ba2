"""Commands that draw (heat map, plans, learning curve) and that measure speed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from rrpolicy import experiments, zoo
from rrpolicy.cli import options
from rrpolicy.cli.agents import load_agent_for, load_planner_for
from rrpolicy.cli.options import agent_label, recipe_for, report, task_of
from rrpolicy.cli.program import echo
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.evaluation import benchmark as benchmarks
from rrpolicy.evaluation.plots import plot_learning_curve, plot_plans, plot_reward_map, range_note
from rrpolicy.experiments import DEFAULT_ENV_ID, Task, plain_row
from rrpolicy.experiments.scoring import latency as latency_of

plot_app = typer.Typer(help="Draw heat maps, plans and learning curves.", **options.SETTINGS)
benchmark_app = typer.Typer(help="Measure speed.", **options.SETTINGS)


@plot_app.command("heat-map")
def heat_map(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="Zoo name, or path of an archive.")],
    out: options.Out,
    env: options.MaybeEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Draw a reward over its maze, the goal marked with a star, the maximum with a ring.

    \b
    Example:
      rrpolicy plot heat-map PointMaze_UMaze-v3/reward-3-1 --out runs/pictures
    """
    task = task_of([reward], env, maze_map, goal)
    loaded = zoo.load_reward(reward)
    loaded.check_environment(task.env_id)
    drawn = experiments.map_reward(loaded, task.maze, recipe_for(task, recipe))
    plot_reward_map(drawn, task.goal, out / "heat_map.png", title=f"{task.env_id}: {agent_label(reward, None)}")
    row, column = (float(value) for value in task.maze.xy_to_rowcol(drawn.maximum))
    rows = [plain_row("reward", "maximum_row", row), plain_row("reward", "maximum_column", column)]
    if task.goal is not None:
        rows.append(plain_row("reward", "goal_error_cells", drawn.goal_error_cells(task.goal)))
    rows.append(plain_row("reward", "map_range", drawn.range))
    report(rows, out)
    if note := range_note(drawn):
        warnings.warn(f"the map {note}: so does that of a pair without a difference", RrpolicyWarning, stacklevel=1)
    echo(f"written: {out / 'heat_map.png'}")


@plot_app.command("plans")
def plans(
    agent: options.AgentName,
    out: options.Out,
    env: options.MaybeEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    reward: options.Reward = None,
    scale: options.Scale = None,
    n_candidates: options.Candidates = None,
    n_plans: Annotated[int, typer.Option("--n-plans", min=1, help="Plans, each from a random free cell.")] = 24,
    seed: options.Seed = 0,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Draw an agent's plans over the maze.

    \b
    Examples:
      rrpolicy plot plans PointMaze_UMaze-v3/base --out runs/pictures
      rrpolicy plot plans PointMaze_UMaze-v3/base --reward PointMaze_UMaze-v3/reward-3-1 --out runs/pictures
    """
    task = task_of([reward, agent] if reward else [agent], env, maze_map, goal)
    player = load_planner_for(agent, task, recipe_for(task, recipe), reward, scale, n_candidates)
    observations = experiments.observations_for_plans(task.maze, n_plans, seed)
    called = agent_label(agent, reward)
    plot_plans(player, task.maze, observations, out / f"plans-{called}.png", goal=task.goal, title=called)
    echo(f"written: {out / f'plans-{called}.png'}")


@plot_app.command("learning-curve")
def learning_curve(
    progress: Annotated[list[Path], typer.Argument(metavar="PROGRESS_CSV...", help="Logs of training runs.")],
    out: options.Out,
    metric: Annotated[str, typer.Option("--metric", help="Column of the log.")] = "train/loss",
) -> None:
    """
    Draw a logged value over gradient steps.

    \b
    Example:
      rrpolicy plot learning-curve runs/base/progress.csv runs/expert/progress.csv --out runs/pictures
    """
    runs: dict[str, str | Path] = {}
    for path in progress:
        file = path / "progress.csv" if path.is_dir() else path
        name = file.parent.name or file.stem
        runs[name if name not in runs else str(file)] = file
    plot_learning_curve(runs, out / "learning_curve.png", metric=metric)
    echo(f"written: {out / 'learning_curve.png'}")


@benchmark_app.callback()
def benchmark() -> None:
    """Measure speed."""


@benchmark_app.command()
def latency(
    agent: Annotated[
        str | None, typer.Option("--agent", help="Time this agent (zoo name or path) instead of an untrained maze's.")
    ] = None,
    reward: options.Reward = None,
    out: options.MaybeOut = None,
    n_repeats: Annotated[int, typer.Option("--n-repeats", min=1, help="Plans timed.")] = 200,
    seed: options.Seed = 0,
    recipe: options.RecipeFile = None,
    fast: Annotated[bool, typer.Option("--fast", help="Time plans by ONNX Runtime, too (extra fast).")] = False,
    device: options.Device = "auto",
) -> None:
    """
    Time guided plans on one thread, and a reference setting in the same run (medians, milliseconds).

    The reference is a temporal U-Net of width 32 with 20 ancestral steps that plans at every environment step. With
    --agent that agent's decisions are timed instead: milliseconds for one alone, and how many a core makes in a second
    for 64 environments at once. --fast times ONNX Runtime's plans beside torch's, an agent's by turns (CPU time).

    \b
    Examples:
      rrpolicy benchmark latency --out runs/latency
      rrpolicy benchmark latency --agent Hopper-v5/base --reward Hopper-v5/reward --out runs/latency
      rrpolicy benchmark latency --agent Hopper-v5/base --reward Hopper-v5/reward --fast
    """
    if agent is None:
        if reward is not None:
            raise ValueError("--reward needs --agent")
        task = Task.create(DEFAULT_ENV_ID)
        report(latency_of(recipe_for(task, recipe), n_repeats, seed, task, fast), out)
        return
    task = task_of([reward, agent] if reward else [agent])
    values, name = recipe_for(task, recipe), agent_label(agent, reward)
    if fast:
        planner = load_planner_for(agent, task, values, reward)
        rows = benchmarks.compiled_ratios(planner, planner.compile(), task.make, name, n_repeats, seed)
    else:
        player = load_agent_for(agent, task, values, reward, None, None)
        rows = benchmarks.decisions(player, task.make, name, n_repeats, seed)
    report(rows, out)
