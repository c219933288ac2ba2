"""Maze geometry and waypoints: what counts as a maze, gymnasium-robotics' coordinates, shortest paths, clearance."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium_robotics.envs.maze import maps
from gymnasium_robotics.envs.maze.maze_v4 import Maze

from rrpolicy.envs import MazeGeometry, PDController, WaypointController

UMAZE = MazeGeometry(("#####", "#...#", "###.#", "#...#", "#####"))
LARGE = MazeGeometry.parse(maps.LARGE_MAZE)
ROOMS = MazeGeometry(("#######", "#..#..#", "#######"))


def test_every_notation_gives_the_same_maze(tmp_path: Path) -> None:
    text = "\n#####\n#...#\n###.#\n#...#\n#####\n\n"
    (tmp_path / "maze.txt").write_text(text)
    forms = [maps.U_MAZE, text, list(UMAZE.rows), tmp_path / "maze.txt", str(tmp_path / "maze.txt"), UMAZE]
    forms += [["11111", "10001", "11101", "10001", "11111"], ["#####", "#   #", "### #", "#   #", "#####"]]
    assert [MazeGeometry.parse(form) for form in forms] == [UMAZE] * len(forms)
    assert UMAZE.to_gymnasium() == maps.U_MAZE
    assert MazeGeometry.parse(str(UMAZE)) == UMAZE


def test_marked_cells_survive() -> None:
    maze = MazeGeometry.parse(maps.MEDIUM_MAZE_DIVERSE_G)
    assert maze.to_gymnasium() == maps.MEDIUM_MAZE_DIVERSE_G
    assert len(maze.free_cells) == sum(cell != 1 for row in maps.MEDIUM_MAZE_DIVERSE_G for cell in row)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["####", "#.#", "####"], "row 1 has 3 columns"),
        (["####", "#.x#", "####"], "'x' in row 1, column 2"),
        (["####", "#...", "####"], "open border at row 1, column 3"),
        (["#.##", "#..#", "####"], "open border at row 0, column 1"),
        (["###", "###", "###"], "no free cell"),
        ([], "at least one row"),
        ("no such file.txt", "no such file"),
        ("", "could not read"),
        (Path("/"), "could not read"),
        ("\n\n", "at least one row"),
    ],
)
def test_what_is_no_maze_is_refused(rows: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MazeGeometry.parse(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", ["###", (), ("##", 5)])
def test_rows_must_be_strings(rows: object) -> None:
    with pytest.raises(ValueError, match="maze must have"):
        MazeGeometry(rows)  # type: ignore[arg-type]


def test_coordinates_are_those_of_gymnasium_robotics() -> None:
    theirs = Maze(maps.LARGE_MAZE, 1, 0.4)
    for cell in LARGE.free_cells:
        assert LARGE.cell_to_xy(cell) == pytest.approx(theirs.cell_rowcol_to_xy(cell), abs=0)
    points = np.random.default_rng(0).uniform(-4, 4, size=(50, 2))
    assert (LARGE.xy_to_cell(points) == [theirs.cell_xy_to_rowcol(point) for point in points]).all()
    assert LARGE.cell_to_xy(LARGE.xy_to_rowcol(points)) == pytest.approx(points)
    left, right, bottom, top = LARGE.extent
    assert LARGE.xy_to_rowcol([left, top]) == pytest.approx([-0.5, -0.5])
    assert LARGE.xy_to_rowcol([right, bottom]) == pytest.approx(np.array(LARGE.shape) - 0.5)


def test_walls_and_outside() -> None:
    assert not UMAZE.is_wall(UMAZE.cell_to_xy(UMAZE.free_cells)).any()
    assert UMAZE.is_wall(UMAZE.cell_to_xy(np.argwhere(UMAZE.walls))).all()
    assert UMAZE.is_wall([[9.0, 0.0], [0.0, -9.0]]).all()
    with pytest.raises(ValueError, match="read-only"):
        UMAZE.walls[0, 0] = False


def test_clearance_is_the_distance_to_the_nearest_wall() -> None:
    centre = UMAZE.cell_to_xy((1, 1))
    assert UMAZE.clearance(centre) == pytest.approx(0.5)
    assert UMAZE.clearance(centre + np.array([0.2, -0.4])) == pytest.approx(0.1)
    assert UMAZE.clearance(UMAZE.cell_to_xy((2, 2))) == 0.0
    # Diagonally from the corner of a lone wall cell, where no side is near.
    lone = MazeGeometry(("#####", "#...#", "#.#.#", "#...#", "#####"))
    assert lone.clearance([[0.5 + 0.3, 0.5 + 0.4], [0.5 + 0.1, 0.5 + 0.1]]) == pytest.approx([0.5, np.hypot(0.1, 0.1)])


def test_distances_of_the_u() -> None:
    inf = np.inf
    expected = [[inf] * 5, [inf, 0, 1, 2, inf], [inf, inf, inf, 3, inf], [inf, 6, 5, 4, inf], [inf] * 5]
    assert UMAZE.path_distances((1, 1)).tolist() == expected
    assert UMAZE.path_distances((1.4, 0.6)).tolist() == expected


def test_paths_are_as_long_as_the_distance_and_only_through_free_neighbours() -> None:
    distances = LARGE.path_distances((7, 10))
    for cell in LARGE.free_cells:
        path = LARGE.path(cell, (7, 10))
        assert path[0] == tuple(cell) and path[-1] == (7, 10)
        assert len(path) - 1 == distances[tuple(cell)]
        assert (np.abs(np.diff(path, axis=0)).sum(1) == 1).all()
        assert not LARGE.walls[tuple(np.transpose(path))].any()


def test_separate_rooms_have_no_path() -> None:
    assert np.isinf(ROOMS.path_distances((1, 1))[1, 4])
    with pytest.raises(ValueError, match="no path leads"):
        ROOMS.path((1, 1), (1, 5))


@pytest.mark.parametrize(
    ("cell", "message"),
    [((2, 2), r"\(2, 2\) lies in a wall"), ((1.6, 1), "in a wall"), ((1, 9), "outside"), ((-1, 1), "outside")],
)
def test_a_goal_must_be_in_a_free_cell(cell: tuple[float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        UMAZE.path_distances(cell)
    assert "goal" in str(error.value)


@pytest.mark.parametrize("cell", [(1,), (1, 2, 3), (np.nan, 1), 4])
def test_a_cell_must_be_two_numbers(cell: object) -> None:
    with pytest.raises(ValueError, match="two finite numbers"):
        UMAZE.free_cell(cell)


def test_mazes_of_environments() -> None:
    env = gym.make("PointMaze_Large-v3", disable_env_checker=True)
    assert MazeGeometry.from_env(env) == LARGE
    with pytest.raises(ValueError, match="without a maze"):
        MazeGeometry.from_env(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="maze_size_scaling"):
        MazeGeometry.from_env(gym.make("AntMaze_UMaze-v5", disable_env_checker=True))


def test_the_law_is_proportional_derivative_and_clipped() -> None:
    law = PDController(position_columns=(2, 3), velocity_columns=(0, 1), kp=2.0, kd=0.5)
    observation = np.array([0.4, -0.2, 1.0, 1.0])
    assert law.action(observation, [1.1, 0.9]) == pytest.approx([2 * 0.1 - 0.2, -2 * 0.1 + 0.1])
    assert law.action(observation, [9.0, -9.0]).tolist() == [1.0, -1.0]
    assert law.action(np.tile(observation, (3, 2, 1)), np.zeros((3, 2, 2))).shape == (3, 2, 2)
    assert PDController.from_dict(law.to_dict()) == law


def test_the_law_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="velocity_columns must pair"):
        PDController(velocity_columns=(2,))
    with pytest.raises(ValueError, match="kp must be finite"):
        PDController(kp=np.nan)
    with pytest.raises(ValueError, match="'color'"):
        PDController.from_dict({"kp": 1.0, "color": "red"})


def test_waypoints_follow_the_shortest_path() -> None:
    controller, rng = WaypointController(LARGE), np.random.default_rng(0)
    goal = LARGE.cell_to_xy((7, 10.2))[None]
    position = waypoint = LARGE.cell_to_xy((1, 1))[None]
    distance, cells = controller.distances(position, goal), 0
    while (waypoint != goal).any():
        waypoint = controller.advance(position, waypoint, goal, rng)
        left = controller.distances(waypoint, goal)
        assert left == distance - 1
        assert LARGE.clearance(waypoint).min() > 0.25
        position, distance, cells = waypoint, left, cells + 1
    assert cells == LARGE.path_distances((7, 10))[1, 1]
    assert controller.advance(position, waypoint, goal, rng) is waypoint


def test_a_ball_pushed_off_its_path_gets_a_new_waypoint() -> None:
    controller, rng = WaypointController(LARGE, jitter=0.0), np.random.default_rng(0)
    goal, lost = LARGE.cell_to_xy((7, 10))[None], LARGE.cell_to_xy((1, 4))[None]
    waypoint = controller.advance(lost, LARGE.cell_to_xy((7, 1))[None], goal, rng)
    assert LARGE.path_distances((1, 4))[tuple(LARGE.xy_to_cell(waypoint)[0])] == 1.0


def test_waypoints_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="jitter"):
        WaypointController(UMAZE, jitter=0.5)
    with pytest.raises(ValueError, match="advance_distance"):
        WaypointController(UMAZE, advance_distance=0.0)
    with pytest.raises(ValueError, match=r"goals must lie in free cells, got one in cell \(2, 2\)"):
        WaypointController(UMAZE).distances([[0.0, 1.0]], [[0.0, 0.0]])
