"""Maps of rewards whose shape is known: linear ones are reproduced, peaked ones have their maximum where it belongs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.rewards.ensemble import Ensemble
from rrpolicy.rewards.maps import SUPPORT_VISITS, reward_map
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.transforms import AveragedReward

MAZE = MazeGeometry.parse(["########", "#...#..#", "#.#...##", "#...#..#", "########"])
OPEN = MazeGeometry.parse(["########", *["#......#"] * 6, "########"])


class Known:
    """A reward given by a function of the position, which remembers what it was asked."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], **layout: Any) -> None:
        self.function = function
        self.layout = TrajectoryLayout(observation_dim=4, action_dim=2, horizon=4, **layout)
        self.asked: tuple[np.ndarray, np.ndarray | None] | None = None

    def predict(self, observations: np.ndarray, actions: np.ndarray | None = None) -> np.ndarray:
        self.asked = observations, actions
        return self.function(observations[:, :2].astype(np.float64))


def peaked(cell: Any, maze: MazeGeometry = MAZE) -> Known:
    return Known(lambda xy: -np.linalg.norm(xy - maze.cell_to_xy(cell), axis=1), plan_actions=False)


@pytest.mark.parametrize("goal", [(1, 1), (3, 6), (2, 4), (1, 5), (2.3, 3.6), (0.7, 2.2)])
def test_the_maximum_is_at_the_goal(goal: Any) -> None:
    drawn = reward_map(peaked(goal), MAZE)
    assert drawn.goal_error_cells(goal) < 0.11 and drawn.same_cell(goal)
    away = (3, 1) if goal != (3, 1) else (1, 1)
    distance = np.linalg.norm(MAZE.cell_to_xy(away) - drawn.maximum)
    assert not drawn.same_cell(away) and drawn.goal_error_cells(away) == pytest.approx(distance)


@pytest.mark.parametrize("smoothing", [0.0, 0.15, 0.4])
def test_smoothing_leaves_a_plane_as_it_is_beside_walls_too(smoothing: float) -> None:
    plane = Known(lambda xy: 3.0 + 2.0 * xy[:, 0] - 5.0 * xy[:, 1], plan_actions=False)
    drawn = reward_map(plane, MAZE, smoothing=smoothing)
    np.testing.assert_allclose(drawn.values, 3.0 + drawn.xy @ [2.0, -5.0], atol=1e-5)


def test_smoothing_averages_noise_away() -> None:
    rng = np.random.default_rng(0)
    noise = Known(lambda xy: rng.normal(size=len(xy)), plan_actions=False)
    drawn = reward_map(noise, OPEN, smoothing=0.3)
    inner = drawn.values[OPEN.clearance(drawn.xy) > 0.9]
    assert inner.std() == pytest.approx(1 / (2 * np.sqrt(np.pi) * 3.0), rel=0.25)  # a Gaussian of 3 points


def test_the_grid_is_a_picture_of_the_maze() -> None:
    drawn = reward_map(Known(lambda xy: 10.0 * xy[:, 1] + xy[:, 0], plan_actions=False), MAZE, points_per_cell=6)
    assert drawn.grid.shape == (30, 48) == drawn.filled.shape
    assert (np.isnan(drawn.grid) == np.kron(MAZE.walls, np.ones((6, 6), dtype=bool))).all()
    assert drawn.grid[6, 6] == np.nanmax(drawn.grid[:, 6]) and drawn.grid[6, 6] > drawn.grid[23, 6]  # y falls downward
    assert (np.diff(drawn.grid[8, 6:24]) > 0).all()  # x grows to the right
    free = np.isfinite(drawn.grid)
    assert (drawn.filled[free] == drawn.grid[free]).all() and np.isfinite(drawn.filled).all()


def test_resting_balls_clear_of_the_walls_are_scored() -> None:
    reward = Known(lambda xy: xy[:, 0], plan_actions=True)
    drawn = reward_map(reward, MAZE, points_per_cell=5, wall_margin=0.25)
    assert reward.asked is not None
    observations, actions = reward.asked
    assert (observations[:, 2:] == 0).all() and actions is not None and actions.shape == (len(drawn.xy), 2)
    assert not actions.any()
    np.testing.assert_allclose(observations[:, :2], drawn.xy, atol=1e-6)
    assert MAZE.clearance(drawn.xy).min() == pytest.approx(0.3)


def test_the_maximum_is_looked_for_where_the_base_has_been() -> None:
    rng = np.random.default_rng(0)
    left = OPEN.cell_to_xy(np.array([1.0, 1.0]) + rng.uniform(-0.2, 0.2, (2000, 2)))
    right = OPEN.cell_to_xy(np.array([6.0, 6.0]) + rng.uniform(-0.02, 0.02, (SUPPORT_VISITS - 1, 2)))
    reward = Known(lambda xy: xy[:, 0] - xy[:, 1], plan_actions=False)  # highest at the bottom right
    everywhere = reward_map(reward, OPEN)
    known = reward_map(reward, OPEN, base_xy=np.concatenate([left, right]))
    assert everywhere.same_cell((6, 6)) and known.same_cell((1, 1))
    assert known.goal_error_cells((1.35, 1.35)) < 0.15 and (known.values == everywhere.values).all()
    once_more = np.concatenate([left, right, right[:1]])
    assert reward_map(reward, OPEN, base_xy=once_more).same_cell((6, 6))
    with pytest.raises(ValueError, match="holds no place that was visited 20 times"):
        reward_map(reward, OPEN, base_xy=right)


def relative_reward(heads: Any, **step_kwargs: Any) -> RelativeReward:
    layout = TrajectoryLayout(4, 2, 4, observation_columns=(0, 1), plan_actions=False)
    unit = Affine(np.zeros(4, np.float32), np.full(4, 2.0, np.float32))
    action = Affine(np.zeros(2, np.float32), np.ones(2, np.float32))
    torch.manual_seed(0)
    return RelativeReward(
        DiffusionProcess(20),
        layout.event_shape,
        torch.as_tensor(np.array(layout.pinned)),
        layout,
        Normalizer(unit, action, "limits"),
        heads,
        {"width": 16, "n_blocks": 1},
        {"width": 16, "n_blocks": 1, **step_kwargs},
    )


def test_a_relative_reward_is_scored_by_its_step_head_at_low_noise() -> None:
    reward = relative_reward(("window", "step"))
    drawn = reward_map(reward, MAZE, points_per_cell=3, smoothing=0.0)
    observations = np.concatenate([drawn.xy, np.zeros_like(drawn.xy)], axis=1)
    np.testing.assert_allclose(drawn.values, reward.predict(observations, levels=[reward.map_level]), atol=1e-5)
    assert drawn.values.std() > 0
    far = reward_map(reward, MAZE, points_per_cell=3, smoothing=0.0, levels=[reward.far_level])
    np.testing.assert_allclose(far.values, reward.predict(observations, levels=[6]), atol=1e-5)
    assert np.abs(far.values - drawn.values).max() > 1e-3


def test_sums_and_ensembles_are_read_where_all_parts_take_states_without_noise() -> None:
    fewer = relative_reward(("step",), n_clean_levels=3)
    for reward in (relative_reward(("step",)) + fewer, Ensemble([relative_reward(("step",)), fewer])):
        assert (reward.n_clean_levels, reward.far_level) == (3, 2)
        drawn = reward_map(reward, MAZE, points_per_cell=3, smoothing=0.0, levels=[reward.far_level])
        observations = np.concatenate([drawn.xy, np.zeros_like(drawn.xy)], axis=1)
        np.testing.assert_allclose(drawn.values, reward.predict(observations, levels=[2]), atol=1e-5)


def test_a_maze_beyond_what_the_reward_was_made_for_is_warned_about() -> None:
    reward = relative_reward(("step",))
    assert reward.normalizer is not None
    reward.normalizer = replace(reward.normalizer, observations=Affine(np.zeros(4), np.full(4, 1.0)))
    share = float((np.abs(reward_map(peaked((1, 1)), MAZE).xy) > 1.5).any(axis=1).mean())
    with pytest.warns(RrpolicyWarning, match="of the maze lies beyond") as caught:
        reward_map(reward, MAZE)
    assert caught[0].filename == __file__
    assert str(caught[0].message) == (
        f"{share:.0%} of the maze lies beyond what the reward was made for: x, y within [-1.5, 1.5], [-1.5, 1.5], "
        "the maze reaches over [-2.85, 2.85], [-1.35, 1.35]"
    )


def test_levels_of_a_reward_that_takes_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels is \[5\], and AveragedReward.predict takes none"):
        reward_map(AveragedReward(relative_reward(("step",))), MAZE, levels=[5])


def test_what_cannot_be_mapped_is_refused() -> None:
    with pytest.raises(ValueError, match="head is 'step'"):
        reward_map(relative_reward(("window",)), MAZE)
    reward = peaked((1, 1))
    for arguments, message in (
        ({"points_per_cell": 0}, "points_per_cell=0"),
        ({"points_per_cell": 2.5}, "points_per_cell=2.5"),
        ({"wall_margin": -0.1}, "wall_margin=-0.1"),
        ({"wall_margin": 0.6}, "wall_margin=0.6 leaves no place"),
        ({"smoothing": np.nan}, "smoothing=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            reward_map(reward, MAZE, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lies in a wall"):
        reward_map(reward, MAZE).goal_error_cells((0, 0))
    narrow = Known(lambda xy: xy[:, 0], plan_actions=False)
    narrow.layout = TrajectoryLayout(1, 1, 4)
    with pytest.raises(ValueError, match="begin with x, y"):
        reward_map(narrow, MAZE)
