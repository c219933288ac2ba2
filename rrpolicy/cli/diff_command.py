"""The command ``rrpolicy diff``: what changed between two policies, and can it be believed?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.options import recipe_for, report, task_in_card, task_of, warn_of_places
from rrpolicy.cli.program import echo
from rrpolicy.common.folders import sole_use
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.comparison import Clip, Comparison, diff, names_of_environment
from rrpolicy.comparison.difference import SCALES
from rrpolicy.data.readers import load_dataset
from rrpolicy.evaluation import Row
from rrpolicy.experiments import Task, plain_row, section, steer
from rrpolicy.experiments.recipes import Recipe, without_steps
from rrpolicy.experiments.results import estimate_row

FAILED = 3  # exit code where a check of --fail-above or --require-null fails
BASE = typer.Argument(metavar="BASE", help="The first agent: zoo name, path of an archive or hub name.")
EXPERT = typer.Argument(metavar="EXPERT", help="The second one, in the same space.")


def compare_policies(
    base: Annotated[str, BASE],
    expert: Annotated[str, EXPERT],
    out: options.Out,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", help=f"Where to compare them. {options.DATA_SOURCE} Repeatable.")
    ] = None,
    env: options.AgentsEnv = None,
    reward: Annotated[str | None, typer.Option("--reward", help="Reward of the pair, if it is known already.")] = None,
    null: Annotated[
        list[str] | None, typer.Option("--null", help="Another training of the base, such as another seed; repeatable.")
    ] = None,
    feature_names: Annotated[
        str | None,
        typer.Option("--feature-names", help="Names of an observation's, then an action's entries: a,b,c."),
    ] = None,
    n_samples: Annotated[int, typer.Option("--n-samples", min=16, help="Windows of each model.")] = 512,
    n_rewards: Annotated[
        int, typer.Option("--n-rewards", min=0, help="Rewards to extract; 0 for distances alone.")
    ] = 2,
    total_timesteps: Annotated[
        int, typer.Option("--total-timesteps", min=1, help="Gradient steps of each extraction.")
    ] = 1000,
    fail_above: Annotated[
        float | None,
        typer.Option("--fail-above", metavar="NATS", min=0, callback=options.finite, help="Exit 3 for a larger KL."),
    ] = None,
    require_null: Annotated[
        float | None,
        typer.Option(
            "--require-null", metavar="P", min=0, max=1, help="Exit 3 for a smaller p-value of the null test."
        ),
    ] = None,
    seed: options.Seed = 0,
    progress: options.Progress = True,
    recipe: options.RecipeFile = None,
    device: options.Device = "auto",
) -> None:
    """
    Compare two policies: how far apart, beyond what two trainings of one model show or not, where, and how sure.

    Leaves index.html, which holds all it needs, comparison.json with every number, results.json and the pictures.
    With --env, counterfactual.mp4 shows base, base steered by half and whole, and expert from one start of it, too.
    Without --null, four equal trainings are made by fine-tuning the base on its own samples. The exit code is 3 when
    a check of --fail-above or --require-null fails.

    \b
    Examples:
      rrpolicy diff PointMaze_UMaze-v3/base PointMaze_UMaze-v3/expert-3-1 --out runs/diff
      rrpolicy diff Hopper-v5/base Hopper-v5/expert --reward Hopper-v5/reward --out runs/diff
      rrpolicy diff old.zip new.zip --null seed1.zip --null seed2.zip --null seed3.zip --require-null 0.05 --out runs/ci
      rrpolicy diff old.zip new.zip --n-rewards 0 --fail-above 0.5 --out runs/ci
    """
    weak, strong = zoo.load_agent(base), zoo.load_agent(expert)
    task = _task(env, [expert, base])
    values = recipe_for(task, recipe)
    comparison = diff(
        weak,
        strong,
        [load_dataset(one) for one in dataset] if dataset else None,
        reward=None if reward is None else zoo.load_reward(reward),
        null=[zoo.load_agent(one) for one in null] if null else None,
        feature_names=_feature_names(feature_names, task),
        names=_names(base, expert),
        n_samples=n_samples,
        n_rewards=n_rewards,
        total_timesteps=total_timesteps,
        extraction=extraction_of(values),
        seed=seed,
        log=(lambda line: echo(line, err=True)) if progress else None,
    )
    if task is not None and task.is_maze:
        comparison = replace(comparison, maze=task.maze)
    if env is not None and task is not None and comparison.reward is not None:
        comparison = replace(comparison, clip=_clip(comparison, weak, strong, task, values))
    with sole_use(out):
        page = comparison.write(out)
        report(_rows(comparison), out)
    if comparison.clip is not None and comparison.clip.missing:
        warnings.warn(f"no video: {comparison.clip.missing}", RrpolicyWarning, stacklevel=1)
    echo(comparison.verdict)
    echo(f"written: {page}")
    if failed := comparison.passes(fail_above, require_null):
        for reason in failed:
            echo(f"rrpolicy: failed: {reason}", err=True)
        raise typer.Exit(FAILED)


def _clip(comparison: Comparison, base: Any, expert: Any, task: Task, recipe: Recipe) -> Clip:
    """A video of base, steered base and expert from the start of the environment that the seed gives."""
    steered = {
        f"steered at {scale:g}": steer(base, comparison.reward, recipe, scale=scale) for scale in SCALES if scale > 0
    }
    agents = {comparison.names[0]: base, **steered, comparison.names[1]: expert}
    deterministic = section(recipe, "evaluation").get("deterministic", True)
    return Clip.record(agents, task.make, seed=comparison.seed, deterministic=deterministic)


def extraction_of(recipe: Recipe) -> dict[str, Any]:
    """Keywords of an extraction by the recipe, as far as a comparison, which needs the window head, does not choose."""
    values = without_steps(section(recipe, "extraction")) if "extraction" in recipe else {}
    values = {name: value for name, value in values.items() if name not in ("heads", "n_value_draws")}
    if values.get("value_coef") == 0:  # without values ρ has no nats
        del values["value_coef"]
    return values


def _task(env: str | None, names: Sequence[str]) -> Task | None:
    """The task of the option, else that of the first card that names one; None where neither does."""
    if env is not None:
        return task_of(list(names), env)
    homes = {name: task for name in names if (task := task_in_card(name, needed=False)) is not None}
    task = next(iter(homes.values()), None)
    if task is not None:
        warn_of_places(task, homes)
    return task


def _feature_names(given: str | None, task: Task | None) -> Sequence[str] | None:
    """Names that were given, else those that the environment's simulator has."""
    if given is not None:
        return [name.strip() for name in given.split(",")]
    if task is None:
        return None
    with closing(task.make()) as made:
        return names_of_environment(made)


def _names(base: str, expert: str) -> tuple[str, str]:
    """Short names of two agents, whole ones where the short ones are equal."""
    short = [Path(name).stem if name.endswith(".zip") else Path(name).name for name in (base, expert)]
    return (short[0], short[1]) if short[0] != short[1] else (base, expert)


def _rows(comparison: Comparison) -> list[Row]:
    """The main numbers as rows of results."""
    base, expert = comparison.names
    rows = [
        estimate_row(expert, "kl_to_base", comparison.forward.total),
        estimate_row(base, "kl_to_expert", comparison.backward.total),
        plain_row("pair", "total_variation_bound", comparison.total_variation),
    ]
    if comparison.null.null:
        rows.append(plain_row("pair", "p_value", comparison.null.p_value))
        rows += [plain_row(f"null {i + 1}", "kl", one) for i, one in enumerate(comparison.null.null)]
    if comparison.fit is not None:
        rows.append(plain_row("reward", "r2", comparison.fit.r2_held_out))
        rows.append(plain_row("reward", "r2_steered", comparison.fit.r2_steered))
    return rows
