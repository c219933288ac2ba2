"""Figures hold the numbers that they were given, at the right places, and leave matplotlib's globals alone."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers.agents import maze_planner
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.contour import ContourSet
from PIL import Image

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.envs import MazeGeometry, make_point_maze
from rrpolicy.evaluation.plots import (
    COLOURS,
    GOAL,
    WALL,
    plot_hero,
    plot_learning_curve,
    plot_plans,
    plot_reward_map,
)
from rrpolicy.rewards.fit_report import LEAST_RANGE
from rrpolicy.rewards.maps import RewardMap

MAZE = MazeGeometry.parse(["#####", "#...#", "###.#", "#...#", "#####"])


@pytest.fixture(autouse=True)
def no_pyplot() -> Any:
    yield
    assert pyplot.get_fignums() == []


@pytest.fixture(scope="module")
def drawn() -> RewardMap:
    """A map that is highest at the cell (3, 1) and, k = 2, has four places in each cell."""
    places = MAZE.cell_to_xy(np.stack(np.meshgrid(*(np.arange(10) / 2 - 0.25,) * 2, indexing="ij"), axis=-1))
    values = -np.linalg.norm(places - MAZE.cell_to_xy((3.25, 0.75)), axis=-1)
    free = ~MAZE.is_wall(places)
    return RewardMap(MAZE, places[free], values[free], np.where(free, values, np.nan))


@pytest.fixture(scope="module")
def maze() -> gym.Env:
    return make_point_maze(maze_map=MAZE, goal=(3, 1), max_episode_steps=4)


@pytest.fixture(scope="module")
def planner(maze: gym.Env) -> DiffusionAgent:
    return maze_planner(maze)


class Still:
    def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation), 2), np.float32), None


def marks(axes: Axes, marker: str) -> list[np.ndarray]:
    return [line.get_xydata()[0] for line in axes.lines if line.get_marker() == marker]  # type: ignore[index]


def pixel(path: Path, axes: Axes, xy: Any) -> str:
    """Colour of a written picture at a point of the axes."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    figure = axes.figure
    x, y = axes.transData.transform(xy) / figure.bbox.size  # type: ignore[union-attr]
    return to_hex(picture[int((1 - y) * len(picture)), int(x * picture.shape[1])] / 255)


def test_a_heat_map_marks_goal_and_maximum(drawn: RewardMap, tmp_path: Path) -> None:
    figure = plot_reward_map(drawn, (3, 1), tmp_path / "new" / "map", title="Reward")
    axes, scale = figure.axes
    np.testing.assert_allclose(marks(axes, "*"), [MAZE.cell_to_xy((3, 1))])
    np.testing.assert_allclose(marks(axes, "o"), [MAZE.cell_to_xy((3.25, 0.75))] * 2)
    assert axes.get_title() == "Reward" and axes.get_aspect() == 1.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x (m)", "y (m)") and "nats" in scale.get_ylabel()
    path = tmp_path / "new" / "map.png"
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]
    assert pixel(path, axes, MAZE.cell_to_xy((2, 1.5))) == WALL
    assert pixel(path, axes, MAZE.cell_to_xy((3, 1))) == GOAL
    image = axes.images[0]
    assert image.get_clim() == (np.nanmin(drawn.grid), np.nanmax(drawn.grid))
    np.testing.assert_array_equal(image.get_array(), drawn.filled)


def test_a_constant_map_can_be_drawn(drawn: RewardMap) -> None:
    flat = RewardMap(MAZE, drawn.xy, 0 * drawn.values, 0 * drawn.grid)
    axes = plot_reward_map(flat).axes[0]
    assert marks(axes, "*") == [] and axes.get_title().splitlines()[0] == "Extracted reward ρ"


def test_a_map_of_small_range_is_pale_and_says_so(drawn: RewardMap, tmp_path: Path) -> None:
    """Colours are not stretched over a map's own range where that is smaller than of any reward."""
    small = RewardMap(MAZE, drawn.xy, 0.01 * drawn.values, 0.01 * drawn.grid)
    paths = [tmp_path / "map.png", tmp_path / "small.png"]
    colours = []
    for one, path in zip((drawn, small), paths, strict=True):
        figure = plot_reward_map(one, path=path)
        axes, scale = figure.axes
        colours.append([pixel(path, axes, MAZE.cell_to_xy(cell)) for cell in ((3, 2), (1, 1))])
        assert f"range {one.range:.3g}" in scale.get_ylabel()
    low, high = axes.images[0].get_clim()
    assert high - low == pytest.approx(LEAST_RANGE)
    assert low + high == pytest.approx(np.nanmin(small.grid) + np.nanmax(small.grid))
    told = [text.get_text() for text in axes.texts]
    assert any(f"spans {small.range:.2g} nats, less than 0.25" in text for text in told)
    assert not axes.collections or not any(isinstance(one, ContourSet) for one in axes.collections)

    def difference(pair: list[str]) -> float:
        return float(np.abs(np.subtract(*map(to_rgb, pair))).max())

    assert difference(colours[0]) > 0.2 > 0.03 > difference(colours[1])
    assert min(to_rgb(colours[1][0])) > 0.5  # near white
    figure = plot_reward_map(small, least_range=0.0)
    assert figure.axes[0].images[0].get_clim() == (np.nanmin(small.grid), np.nanmax(small.grid))


def test_a_goal_in_a_wall_is_refused(drawn: RewardMap) -> None:
    with pytest.raises(ValueError, match="lies in a wall"):
        plot_reward_map(drawn, (2, 1))


def test_the_hero_shows_reward_and_rollouts(drawn: RewardMap, maze: gym.Env, tmp_path: Path) -> None:
    agents = {"base": Still(), "other": Still()}
    figure = plot_hero(drawn, agents, maze, tmp_path / "hero.png", goal=(3, 1), seed=5, n_episodes=3)
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "x (m)"]
    assert len(panels) == 3 and panels[1].get_title().strip() == "base alone"
    assert "0% of 3 episodes" in panels[1].texts[-1].get_text()
    starts = [maze.reset(seed=5 + episode)[0][:2] for episode in range(3)]
    for panel in panels[1:]:
        paths = next(c for c in panel.collections if isinstance(c, LineCollection) and len(c.get_segments()) == 3)
        np.testing.assert_allclose([segment[0] for segment in paths.get_segments()], starts)
        assert {len(segment) for segment in paths.get_segments()} == {5}
    assert len(plot_hero(drawn, Still(), maze, n_episodes=1).axes) == 3  # two panels and a scale


def test_plans_are_drawn_where_they_lead(planner: DiffusionAgent, tmp_path: Path) -> None:
    observations = np.zeros((2, 4))
    observations[:, :2] = MAZE.cell_to_xy([(1, 1), (3, 3)])
    path = tmp_path / "plans.png"
    figure = plot_plans({"a": planner, "b": planner}, MAZE, observations, path, (3, 1), "Plans", deterministic=True)
    panels = [axes for axes in figure.axes if axes.get_title() in ("a", "b")]
    plans = planner.plan(observations)
    for panel in panels:
        lines = next(c for c in panel.collections if isinstance(c, LineCollection) and c.get_array() is not None)
        segments = np.array(lines.get_segments()).reshape(2, 3, 2, 2)
        np.testing.assert_allclose(segments[:, :, 0], plans[:, :-1], atol=1e-6)
        np.testing.assert_allclose(segments[:, :, 1], plans[:, 1:], atol=1e-6)
    assert len(panels) == 2 and path.stat().st_size > 0
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["0", "4.5", "9"]
    planner.layout = type(planner.layout)(4, 2, 4, 3, (2, 3), plan_actions=False)
    with pytest.raises(ValueError, match="must plan x and y first"):
        plot_plans(planner, MAZE, observations[0])


def write_log(path: Path, values: list[float]) -> Path:
    lines = ["time/total_timesteps,train/loss,train/empty", *(f"{100 * i},{value}," for i, value in enumerate(values))]
    path.write_text("\n".join([*lines, ",1.0,"]) + "\n")
    return path


def test_learning_curves(tmp_path: Path) -> None:
    values = [8.0, 4.0, 2.0, 1.0, 0.5]
    figure = plot_learning_curve(write_log(tmp_path / "progress.csv", values), tmp_path / "curve.pdf", title="Base")
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [(100 * i, value) for i, value in enumerate(values)])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [6, 14 / 3, 7 / 3, 3.5 / 3, 0.75])
    assert axes.get_yscale() == "log" and axes.get_legend() is None and axes.get_title() == "Base"
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    other = write_log(tmp_path / "other.csv", [1.0, -1.0])
    (axes,) = plot_learning_curve({"base": tmp_path, "other": other}).axes  # a folder stands for its log
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["base", "other"]
    assert axes.get_yscale() == "linear" and axes.lines[0].get_color() == COLOURS["base"]


def test_logs_without_the_values_are_named(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [1.0])
    with pytest.raises(ValueError, match=r"log\.csv: has no values of 'train/empty'.*it has.*train/loss"):
        plot_learning_curve(log, metric="train/empty")
    with pytest.raises(ValueError, match=r"could not read the log .*none\.csv"):
        plot_learning_curve(tmp_path / "none.csv")


def test_a_failed_picture_leaves_nothing(drawn: RewardMap, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="xyz"):
        plot_reward_map(drawn, path=tmp_path / "map.xyz")
    assert list(tmp_path.iterdir()) == []
