"""The steps of the main job as commands: demo, train, extract, enjoy, record-video."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import gymnasium as gym
import typer
from joblib import cpu_count

from rrpolicy import experiments, zoo
from rrpolicy.cli import options
from rrpolicy.cli.agents import compiled, load_agent_for
from rrpolicy.cli.data_commands import warn_of_data
from rrpolicy.cli.options import agent_label, recipe_for, report, task_in_card, task_of
from rrpolicy.cli.program import Program, echo
from rrpolicy.common.folders import sole_use
from rrpolicy.common.jobs import Jobs
from rrpolicy.common.messages import RrpolicyWarning, at, printable
from rrpolicy.common.processes import current
from rrpolicy.common.version import __version__
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.readers import load_dataset
from rrpolicy.evaluation import RESULTS_FILE, evaluate
from rrpolicy.evaluation.video import record_video
from rrpolicy.experiments import DEFAULT_ENV_ID, FASHION_MNIST, Task, plain_row
from rrpolicy.experiments.demos import N_SAMPLES, Demo, ImagesDemo
from rrpolicy.experiments.recipes import check_section, with_entries, with_steps
from rrpolicy.experiments.results import flat_rows
from rrpolicy.experiments.runs import TrainingRun, clear
from rrpolicy.rewards.maps import reward_map

app = typer.Typer(
    cls=Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Rewards from pairs of diffusion agents: extract the reward that explains their difference, steer the base.",
    context_settings={"help_option_names": ["-h", "--help"]},
    **options.SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"rrpolicy {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = (
        False
    ),
) -> None:
    """Rewards from pairs of diffusion agents: extract the reward that explains their difference, steer the base."""


@app.command()
def demo(
    out: options.Out = Path("runs/demo"),
    env: options.Env = DEFAULT_ENV_ID,
    goal: options.Goal = None,
    seed: options.Seed = 0,
    maze_map: options.MazeMap = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Train base and expert, too.")] = False,
    n_episodes: Annotated[
        int | None,
        typer.Option(
            "--n-episodes",
            min=1,
            help="Episodes of each agent; default: 48, of a robot 16. Images: samples, 512.",
        ),
    ] = None,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    fast: options.Fast = False,
    html: Annotated[bool, typer.Option("--html", help="In a maze: a page that plans in the browser, too.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", metavar="N", min=1, help="Processes on this machine; default: 2, or 1 on a single core."
        ),
    ] = None,
    device: options.Device = "auto",
) -> None:
    """
    Demo: extract and draw a maze's reward, or load a robot's or an image pair's; then run base, steered base, expert.

    Base and expert come from the zoo, or are trained with --from-scratch (implied by --maze-map, and for a robot of
    your own recipe that the zoo has not). Leaves results.json, hero.png, a video of each agent; in a maze heat_map.png
    and archives; of images a page. --html adds page/index.html, to be opened in a browser. A second process trains the
    discriminator that a maze's reward is compared with.

    \b
    Examples:
      rrpolicy demo --out runs/demo
      rrpolicy demo --html --out runs/demo
      rrpolicy demo --env Hopper-v5 --out runs/hopper
      rrpolicy demo --env FashionMNIST --out runs/images
      rrpolicy demo --env PointMaze_Medium-v3 --goal 6,6 --seed 1 --out runs/medium
      rrpolicy demo --maze-map maze.txt --goal 1,5 --out runs/mine
    """
    if env == FASHION_MNIST:
        if goal or maze_map or from_scratch or recipe or fast or html:
            raise ValueError(
                f"--env {FASHION_MNIST} is about images: --goal, --maze-map, --from-scratch, --recipe, --fast and "
                "--html are not"
            )
        with sole_use(out):
            ImagesDemo(out, seed, n_samples=n_episodes or N_SAMPLES, log=echo).run()
        return
    task = Task.create(env, maze_map, goal)
    values = recipe_for(task, recipe)
    with sole_use(out):
        prepare = compiled if fast else None
        where = Jobs(jobs or min(2, cpu_count()))
        Demo(task, out, values, seed, n_episodes, progress, echo, prepare, where, from_scratch, html).run()


@app.command()
def train(
    dataset: Annotated[list[str], typer.Option("--dataset", help=f"{options.DATA_SOURCE} Repeatable.")],
    out: options.Out,
    env: options.DataEnv = None,
    maze_map: options.MazeMap = None,
    seed: options.Seed = 0,
    total_timesteps: Annotated[
        int | None, typer.Option("--total-timesteps", min=0, help="Gradient steps; default: the recipe's.")
    ] = None,
    init_from: Annotated[str | None, typer.Option("--init-from", help="Fine-tune this agent.")] = None,
    checkpoint_freq: Annotated[int, typer.Option("--checkpoint-freq", min=1, help="Steps per checkpoint.")] = 1000,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    precision: options.Precision = None,
    accumulate: options.Accumulate = None,
    fast_noise: options.FastNoise = None,
    compile: options.Compile = None,
    device: options.Device = "auto",
) -> None:
    """
    Train an agent; leaves agent.zip, checkpoint.zip and progress.csv. Stopped and resumed equals uninterrupted.

    \b
    Examples:
      rrpolicy train --dataset data/base --out runs/base
      rrpolicy train --dataset mine.npz --env my_package:MyEnv-v0 --out runs/base
      rrpolicy train --dataset data/expert --init-from runs/base/agent.zip --out runs/expert
      rrpolicy train --dataset data/base --out runs/base --resume
      rrpolicy train --dataset data/base --out runs/base --device cuda --precision bf16 --fast-noise
    """
    data = [load_dataset(one) for one in dataset]
    task = task_of_data(data, env, maze_map, dataset, init_from)
    warn_of_data(data, task)
    part, how = "expert" if init_from else "base", {"precision": precision, "accumulate": accumulate}
    values = with_entries(recipe_for(task, recipe), part, **how, fast_noise=fast_noise, compile=compile)
    run = TrainingRun(task, data, out, values, seed, total_timesteps, init_from, checkpoint_freq)
    agent = run.run(resume, progress)
    echo(f"{agent.num_timesteps} steps: {out / 'agent.zip'}")


def task_of_data(
    data: list[TrajectoryDataset], env: str | None, maze_map: Path | None, names: list[str], init_from: str | None
) -> Task:
    """
    The environment, in the maze and with the goal that the data were collected for, unless a maze is given.

    :raises ValueError: when it is not given, and neither the data nor the agent that is fine-tuned names it
    """
    task = Task.create(env or _home_of_data(data, maze_map, names, init_from), maze_map)
    try:
        return task.as_collected([one.metadata for one in data])
    except ValueError as error:  # the options have been checked
        raise ValueError(at(", ".join(names), f"maze and goal of the data: {error}")) from error


def _home_of_data(data: list[TrajectoryDataset], maze_map: Path | None, names: list[str], init_from: str | None) -> str:
    """The id of the environment that the data were recorded in, else that of the agent that is fine-tuned."""
    noted = {str(home): name for one, name in zip(data, names, strict=True) if (home := one.metadata.get("env_id"))}
    if len(noted) > 1:
        places = " and ".join(f"{name} in {home}" for home, name in noted.items())
        raise ValueError(f"--env is needed: {places} were recorded in different environments")
    for home, name in noted.items():
        if home not in gym.registry:  # making it could import a module that the file names
            raise ValueError(
                at(
                    name,
                    f"the data's environment {printable(home)} is not registered here, name the "
                    f"package that registers it: --env my_package:{printable(home)}",
                )
            )
        return home
    if init_from is not None and (task := task_in_card(init_from, needed=False)) is not None:
        return task.env_id
    if maze_map is None and all(one.metadata.get("maze") is None for one in data):
        raise ValueError(f"--env is needed: {' and '.join(names)} do not say where they were recorded")
    return DEFAULT_ENV_ID


@app.command()
def extract(
    base: Annotated[str, typer.Option("--base", help="The weak agent: zoo name or path.")],
    expert: Annotated[str, typer.Option("--expert", help="The strong agent: zoo name or path.")],
    out: options.Out,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help="Where to compare them; repeatable. Default: own samples.")
    ] = None,
    total_timesteps: Annotated[
        int | None, typer.Option("--total-timesteps", min=0, help="Gradient steps; default: the recipe's.")
    ] = None,
    seed: options.Seed = 0,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    precision: options.Precision = None,
    accumulate: options.Accumulate = None,
    fast_noise: options.FastNoise = None,
    device: options.Device = "auto",
) -> None:
    """
    Extract the reward that explains the difference of two agents; leaves reward.zip and R² per noise level.

    Prints the fit report that stays with the reward. Warnings say so where the reward explains no more, or spans no
    more nats, than that of a pair without a difference, and where ρ holds much less where the steered base goes than at
    the data.

    \b
    Examples:
      rrpolicy extract --base PointMaze_UMaze-v3/base --expert PointMaze_UMaze-v3/expert-3-1 --out runs/reward
      rrpolicy extract --base runs/base --expert runs/expert --dataset data/base --dataset data/expert --out runs/reward
    """
    base, expert = zoo.hub.with_revision(base), zoo.hub.with_revision(expert)
    weak, strong = zoo.load_agent(base), zoo.load_agent(expert)
    task = task_in_card(expert, needed=False) or task_in_card(base, needed=False)
    values = with_steps(recipe_for(task, recipe), "extraction", total_timesteps)
    how = {"precision": precision, "accumulate": accumulate, "fast_noise": fast_noise}
    values = with_entries(values, "extraction", **how)
    data = [load_dataset(one) for one in dataset or []]
    training, held_out = experiments.split_data(data, seed, values) if data else (None, None)
    if task is not None and task.goal is not None:
        check_section(values, "map", reward_map)
    with sole_use(out):
        extractor = experiments.extract(weak, strong, training, values, seed, progress, fit_dataset=held_out)
        reward = extractor.reward
        if not current().is_main:
            return
        rows = flat_rows(experiments.explained_rows(reward, weak, strong, held_out, values, seed))
        rows += experiments.fit_rows(reward)
        if task is not None and task.goal is not None:
            error = experiments.map_reward(reward, task.maze, values).goal_error_cells(task.goal)
            rows.append(plain_row("reward", "goal_error_cells", error))
        card = {
            **({} if task is None else task.to_card()),
            "base": base,
            "expert": expert,
            "seed": seed,
            "recipe": values.get("name"),
            "version": __version__,
        }
        reward.save(out / "reward.zip", card=card)
        clear(out, (RESULTS_FILE,))  # those of the reward that was there
        report(rows, out)
        echo(f"{reward.fit or ''}")
        steering = experiments.steering_options(weak, reward, values)
        if advice := extractor.check_steering(held_out, **steering).advice:
            warnings.warn(advice, RrpolicyWarning, stacklevel=1)


@app.command()
def enjoy(
    agent: options.AgentName,
    env: options.MaybeEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    reward: options.Reward = None,
    scale: options.Scale = None,
    n_candidates: options.Candidates = None,
    n_episodes: options.Episodes = 48,
    seed: options.Seed = 0,
    out: options.MaybeOut = None,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    algorithm: options.AlgorithmOfFile = None,
    fast: options.Fast = False,
    device: options.Device = "auto",
) -> None:
    """
    Let an agent run in its environment and print success and return with 95 % intervals.

    \b
    Examples:
      rrpolicy enjoy PointMaze_UMaze-v3/expert-3-1
      rrpolicy enjoy PointMaze_UMaze-v3/base --goal 3,1 --out runs/base
      rrpolicy enjoy PointMaze_UMaze-v3/base --reward PointMaze_UMaze-v3/reward-3-1 --scale 2
      rrpolicy enjoy Hopper-v5/base --reward Hopper-v5/reward --fast
      rrpolicy enjoy runs/hopper-sac.zip
      rrpolicy enjoy sb3/tqc-Hopper-v3 --env Hopper-v5
    """
    task = task_of([reward, agent] if reward else [agent], env, maze_map, goal)
    values = recipe_for(task, recipe)
    check_section(values, "evaluation", evaluate)
    player = load_agent_for(agent, task, values, reward, scale, n_candidates, algorithm, fast)
    settings = {**experiments.section(values, "evaluation"), "n_eval_episodes": n_episodes}
    result = evaluate(player, task.make, seed=seed, progress_bar=progress, **settings)
    report(result.rows(agent_label(agent, reward)), out)


@app.command("record-video")
def record(
    agent: options.AgentName,
    out: options.Out,
    env: options.MaybeEnv = None,
    maze_map: options.MazeMap = None,
    goal: options.Goal = None,
    reward: options.Reward = None,
    scale: options.Scale = None,
    n_candidates: options.Candidates = None,
    n_steps: Annotated[
        int | None, typer.Option("--n-steps", min=1, help="Environment steps; default: one episode.")
    ] = None,
    seed: options.Seed = 0,
    recipe: options.RecipeFile = None,
    algorithm: options.AlgorithmOfFile = None,
    fast: options.Fast = False,
    device: options.Device = "auto",
) -> None:
    """
    Film an agent with its plan overlaid (no display and no OpenGL needed).

    \b
    Examples:
      rrpolicy record-video PointMaze_UMaze-v3/expert-3-1 --out runs/videos
      rrpolicy record-video PointMaze_UMaze-v3/base --reward PointMaze_UMaze-v3/reward-3-1 --out runs/videos
    """
    task = task_of([reward, agent] if reward else [agent], env, maze_map, goal)
    values = recipe_for(task, recipe)
    player = load_agent_for(agent, task, values, reward, scale, n_candidates, algorithm, fast)
    called = agent_label(agent, reward)
    deterministic = experiments.section(values, "evaluation").get("deterministic", True)
    path = out / f"{called}.mp4"
    info = record_video(player, task.make, path, n_steps, seed, deterministic=deterministic, caption=called)
    report([plain_row(called, "n_frames", float(info.n_frames))], out)
    echo(f"{info.path}: {info.n_frames} pictures, drawn by {info.renderer}")
