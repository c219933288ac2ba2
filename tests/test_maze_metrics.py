"""Orders of cells that are known: the path's own is perfect, the straight line's fails where walls stand between."""

import numpy as np
import pytest

from rrpolicy.common.stats import spearman
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.maze_metrics import (
    cell_rewards,
    crosses_walls,
    dense_reward,
    detour_pairs,
    euclidean_values,
    occupancy_log_ratio,
    path_order,
    topology_pairs,
)

UMAZE = MazeGeometry.parse(["#####", "#...#", "###.#", "#...#", "#####"])
OPEN = MazeGeometry.parse(["######", "#....#", "#....#", "#....#", "######"])
HOOK = MazeGeometry.parse(["########", "#....#.#", "#.####.#", "#......#", "########"])
LONG = MazeGeometry.parse(["#######", "#.....#", "#####.#", "#.....#", "#.#####", "#.....#", "#######"])


def test_spearman_of_known_ranks() -> None:
    assert spearman(np.array([1, 5, 2.0]), np.array([10, 99, 11.0])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3.0]), np.array([9, 4, 1.0])) == pytest.approx(-1)
    assert spearman(np.arange(4.0), np.array([1, 0, 3, 2.0])) == pytest.approx(1 - 6 * 4 / (4 * 15))
    assert spearman(np.array([1, 1, 2.0]), np.array([1, 2, 3.0])) == pytest.approx(np.sqrt(0.75))  # ties
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
    with pytest.raises(ValueError, match="equally long, got 2 and 3"):
        spearman(np.ones(2), np.ones(3))


def test_topology_pairs_stand_on_two_sides_of_a_wall() -> None:
    assert topology_pairs(UMAZE, (3, 1)).tolist() == [[[3, 1], [1, 1]], [[3, 2], [1, 2]]]
    assert topology_pairs(UMAZE, (1, 1)).tolist() == [[[1, 1], [3, 1]], [[1, 2], [3, 2]]]
    assert topology_pairs(UMAZE, (2, 3)).shape == (0, 2, 2)  # in the middle of the way both sides are equally far
    assert len(topology_pairs(OPEN, (1, 1))) == 0


def test_the_straight_line_has_every_detour_pair_wrong() -> None:
    pairs = detour_pairs(HOOK, (1, 6)).tolist()
    assert [[3, 1], [1, 4]] in pairs and [[2, 1], [1, 2]] in pairs and [[3, 6], [1, 6]] not in pairs
    straight, path = euclidean_values(HOOK, (1, 6)), HOOK.path_distances((1, 6))
    for near, far in pairs:
        assert path[tuple(near)] < path[tuple(far)] and straight[tuple(near)] < straight[tuple(far)]
    assert not path_order(straight, HOOK, (1, 6)).detours.any()
    assert path_order(-path, HOOK, (1, 6)).detours.sum() == len(pairs)
    assert detour_pairs(OPEN, (1, 1)).shape[1:] == (2, 2)
    assert detour_pairs(UMAZE, (2, 3)).shape == (0, 2, 2)


def test_the_path_is_in_order_and_the_straight_line_is_not() -> None:
    goal = (5, 5)
    by_path = path_order(-LONG.path_distances(goal), LONG, goal)
    assert by_path.spearman == pytest.approx(1) and by_path.pairs.all() and len(by_path.pairs) >= 8
    straight = path_order(euclidean_values(HOOK, (1, 6)), HOOK, (1, 6))  # the upper arm is near, the lower one leads
    assert straight.spearman < 0.7 and straight.pairs.mean() < 0.5
    assert path_order(-HOOK.path_distances((1, 6)), HOOK, (1, 6)).pairs.all()
    backwards = path_order(LONG.path_distances(goal), LONG, goal)
    assert backwards.spearman == pytest.approx(-1) and not backwards.pairs.any()
    assert path_order(euclidean_values(OPEN, (1, 1)), OPEN, (1, 1)).spearman > 0.95
    assert by_path.pearson == pytest.approx(1) and backwards.pearson == pytest.approx(-1)
    curved = path_order(np.exp(-LONG.path_distances(goal)), LONG, goal)
    assert curved.spearman == pytest.approx(1) and 0 < curved.pearson < 0.9


def test_ties_are_not_in_order() -> None:
    flat = path_order(np.where(LONG.walls, np.nan, 1.0), LONG, (5, 5))
    assert np.isnan(flat.spearman) and not flat.pairs.any()


def test_cells_that_are_not_known_are_not_compared() -> None:
    values = -LONG.path_distances((5, 5))
    values[1, 1] = np.nan
    assert path_order(values, LONG, (5, 5)).spearman == pytest.approx(1)
    assert len(path_order(values, LONG, (5, 5)).pairs) < len(topology_pairs(LONG, (5, 5)))
    with pytest.raises(ValueError, match=r"values has shape \(2, 2\), the maze has \(7, 7\) cells"):
        path_order(np.zeros((2, 2)), LONG, (5, 5))


def test_a_map_is_averaged_over_its_cells() -> None:
    k = 4
    rows, columns = (np.arange(n * k) // k for n in UMAZE.shape)
    exact = 10.0 * rows[:, None] + columns[None]
    grid = np.where(np.kron(UMAZE.walls, np.ones((k, k))), np.nan, exact + np.tile([-1, 1], 10)[None])
    drawn = RewardMap(UMAZE, np.zeros((1, 2)), np.zeros(1), grid)
    values = cell_rewards(drawn)
    expected = 10.0 * np.arange(5)[:, None] + np.arange(5)
    np.testing.assert_allclose(values[~UMAZE.walls], expected[~UMAZE.walls])
    assert np.isnan(values[UMAZE.walls]).all()


def test_counting_finds_where_the_expert_is_more_often() -> None:
    base = np.repeat(UMAZE.cell_to_xy(UMAZE.free_cells), 99, axis=0)
    expert = np.concatenate([base, np.repeat(UMAZE.cell_to_xy([(3, 1)]), 700, axis=0)])
    ratio = occupancy_log_ratio(UMAZE, base, expert)
    assert ratio[3, 1] == pytest.approx(np.log(4)) and ratio[1, 1] == pytest.approx(-np.log(2))
    assert np.isnan(ratio[0, 0]) and np.isfinite(ratio[~UMAZE.walls]).all()
    np.testing.assert_allclose(occupancy_log_ratio(UMAZE, base, base)[~UMAZE.walls], 0)


def test_the_dense_reward_is_the_environments() -> None:
    states = np.hstack([UMAZE.cell_to_xy([(3, 1), (3, 3), (1, 1)]), np.ones((3, 2))])
    np.testing.assert_allclose(dense_reward(UMAZE, (3, 1), states), np.exp([0, -2, -2]))


def test_plans_through_walls_are_seen_between_their_points() -> None:
    around = UMAZE.cell_to_xy([(1, 1), (1, 3), (3, 3), (3, 1)])
    jumping = UMAZE.cell_to_xy([(1, 1), (3, 1), (3, 2), (3, 3)])
    inside = UMAZE.cell_to_xy([(1, 1), (1, 2), (2, 2), (2, 2)])
    corner = UMAZE.cell_to_xy([(1, 1), (1, 2.3), (1.7, 2.98), (3, 3)])
    corner[2] -= [0.49, 0.0]  # scratches the inner corner by 0.01
    assert crosses_walls(UMAZE, np.stack([around, jumping, inside, corner])).tolist() == [False, True, True, False]
    assert crosses_walls(UMAZE, corner[None], tolerance=0.0).tolist() == [True]
