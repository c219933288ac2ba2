"""The demo with a robot: base, steered base and expert act; what the zoo lacks is trained by a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rrpolicy import experiments, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import Row, write_results
from rrpolicy.evaluation.plots import COLOURS, FAINT, INK
from rrpolicy.evaluation.video import CannotDraw, VideoInfo
from rrpolicy.experiments.demos.stage import HERO, Stage
from rrpolicy.experiments.locomotion.artifacts import Demonstrations, RobotStore
from rrpolicy.experiments.locomotion.film import SECONDS, Moment, film, moments
from rrpolicy.experiments.locomotion.measure_pair import comparisons
from rrpolicy.experiments.locomotion.spec import RobotUnit, of_case
from rrpolicy.experiments.recipes import cases_of
from rrpolicy.experiments.report import draw_interval, light, name_rows, save_figure
from rrpolicy.experiments.results import flat_rows
from rrpolicy.rewards.reward_archive import AnyReward

SCORE = "normalized_score"
CALLED = {SCORE: "normalised score", "base": "base alone", "steered": "base steered by ρ"}
SIDE, WIDE = 1.75, 4.2  # inches: of a frame, of the scores
N_EPISODES = 16
NAMES = ("base", "expert", "reward")
WHEN = tuple(np.linspace(0.0, SECONDS, 5).tolist())  # seconds, of the picture's frames


def robot_demo(stage: Stage, from_scratch: bool = False) -> list[Row]:
    """
    Run the demo with a robot.

    :param stage: whose task is an environment of which the zoo has base, expert and reward, or whose recipe says how
        demonstrations are made
    :param from_scratch: train all three even if the zoo has them
    :return: the rows of ``results.json``
    :raises ValueError: when the zoo lacks them and the recipe makes no demonstrations, naming what the zoo has
    """
    env_id = stage.task.env_id
    scratch = from_scratch or env_id not in robots_of_the_zoo()
    if scratch and not cases_of(stage.recipe):
        has = f"the zoo has {', '.join(robots_of_the_zoo()) or 'none'}"
        raise ValueError(
            f"the demo needs a PointMaze, a robot of the zoo ({has}) or a recipe with data, env is {env_id!r}"
        )
    n_episodes = stage.n_episodes or N_EPISODES
    stage.clear()
    base, expert, reward = _train(stage) if scratch else _load(stage)
    steered = experiments.steer(base, reward, stage.recipe)
    agents = stage.prepared({"base": base, "steered": steered, "expert": expert})
    with stage.environments(stage.task, n_episodes) as envs:
        results = stage.evaluate(agents, envs, n_episodes)
    rows = [row for name, result in results.items() for row in result.rows(name)]
    rows += flat_rows(row for row in comparisons(results, "base", "expert") if np.isfinite(row["mean"]))
    write_results(rows, stage.out)
    try:
        _draw(stage, agents, rows)
    except CannotDraw as error:
        warnings.warn(f"no pictures and no videos: {error}", RrpolicyWarning, stacklevel=2)
    stage.finish(rows)
    return rows


def _draw(stage: Stage, agents: Mapping[str, Predictor], rows: Sequence[Row]) -> None:
    """The picture, and a video of each agent."""
    title = f"{stage.task.env_id}: scores, and one episode of each (seed {stage.seed})"
    with stage.timed("pictures"):
        strips = {
            name: moments(agent, stage.task, WHEN, stage.seed, stage.deterministic) for name, agent in agents.items()
        }
        plot_robots(rows, strips, WHEN, stage.out / HERO, title)

    def record(agent: Predictor, path: Path, caption: str) -> VideoInfo:
        return film(agent, stage.task, path, stage.seed, stage.deterministic)

    stage.film(agents, record)


def _load(stage: Stage) -> tuple[DiffusionAgent, DiffusionAgent, AnyReward]:
    base, expert, reward = (f"{stage.task.env_id}/{name}" for name in NAMES)
    stage.log(f"{stage.task.env_id}, seed {stage.seed}: {base}, {expert}, {reward} from the zoo")
    return zoo.load_agent(base), zoo.load_agent(expert), zoo.load_reward(reward)


def _train(stage: Stage) -> tuple[DiffusionAgent, DiffusionAgent, AnyReward]:
    """As the locomotion experiment does, in the folder ``work`` beside the pictures."""
    case = cases_of(stage.recipe)[0]
    unit = RobotUnit(str(stage.recipe.get("name")), case, stage.seed, stage.task.env_id)
    stage.log(f"{unit.env_id}, seed {stage.seed}: base, expert and reward from scratch, {case} data")
    work = stage.out / "work"
    store = RobotStore(work, of_case(stage.recipe, case), Demonstrations(work / "data"))
    with stage.timed("data"):
        store.data(unit)
    with stage.timed("training the base"):
        base, _ = store.base(unit)
    with stage.timed("fine-tuning the expert"):
        expert, _ = store.expert(unit)
    with stage.timed("extracting the reward"):
        reward, _ = store.reward(unit)
    for name, agent in {"base": base, "expert": expert}.items():
        experiments.save_agent(agent, stage.out / f"{name}.zip", stage.task.to_card())
    reward.save(stage.out / "reward.zip", card=stage.task.to_card())
    return base, expert, reward


def robots_of_the_zoo() -> list[str]:
    """Environments of which the zoo has base, expert and reward, without a goal."""
    there = {entry["name"] for entry in zoo.entries() if not zoo.is_image(entry)}
    environments = dict.fromkeys(name.partition("/")[0] for name in there)
    return sorted(env_id for env_id in environments if all(f"{env_id}/{name}" in there for name in NAMES))


# ---------------------------------------------------------------------- the picture


def plot_robots(
    rows: Sequence[Row], strips: Mapping[str, Sequence[Moment]], seconds: Sequence[float], path: Path, title: str
) -> Figure:
    """
    Write the picture.

    :param rows: with a score for each agent
    :param strips: of each agent, the frames of one episode; fewer than ``seconds`` where the robot has fallen
    :param seconds: when they were taken
    :param path: where it is written
    :param title: of the picture
    :return: the figure
    """
    n_rows, n_columns = len(strips), len(seconds)
    figure = Figure(figsize=(WIDE + SIDE * n_columns, 0.75 + SIDE * n_rows), layout="constrained")
    grid = figure.add_gridspec(n_rows, 1 + n_columns, width_ratios=[WIDE / SIDE, *[1.0] * n_columns])
    metrics = {row["metric"] for row in rows}
    metric = SCORE if SCORE in metrics else "return"
    scores = {row["agent"]: row for row in rows if row["metric"] == metric}
    _draw_scores(figure.add_subplot(grid[:, 0]), [scores[name] for name in strips], CALLED.get(metric, metric))
    for line, strip in enumerate(strips.values()):
        for column, when in enumerate(seconds):
            axes = figure.add_subplot(grid[line, 1 + column])
            _draw_moment(axes, strip[column] if column < len(strip) else None)
            if line == 0:
                axes.set_title(f"{when:.3g} s", fontsize=9, color=FAINT)
    figure.suptitle(title, fontsize=12, color=INK)
    save_figure(figure, path)
    return figure


def _draw_scores(axes: Axes, rows: Sequence[Row], what: str) -> None:
    """A dot, its interval and a number for each agent, the first on top, level with its frames."""
    for height, row in enumerate(reversed(rows)):
        number = row["mean"], row["ci_low"], row["ci_high"]
        draw_interval(axes, height, number, COLOURS[row["agent"]], f"{row['mean']:.0f}", size=11)
    name_rows(axes, [CALLED.get(row["agent"], str(row["agent"])) for row in rows], top=0.5)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    light(axes, "x", size=10)
    axes.set_xlabel(f"{what} (95 % interval, n = {rows[0]['n']})", fontsize=9, color=FAINT)


def _draw_moment(axes: Axes, moment: Moment | None) -> None:
    """A frame with the distance travelled, or an empty place."""
    axes.axis("off")
    if moment is None:
        axes.set_box_aspect(1)
        return
    axes.imshow(moment.picture)
    travelled = "" if moment.travelled is None else f"{moment.travelled:.1f} m"
    text = f"fell after {moment.seconds:.1f} s" if moment.fallen else travelled
    axes.text(0.04, 0.04, text, transform=axes.transAxes, fontsize=8, color=INK)
