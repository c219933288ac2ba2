"""Pictures without OpenGL: things are where they should be, and every kind of geom leaves paint."""

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from rrpolicy.envs import MazeGeometry, SceneRender, SceneRenderer, draw_maze, make_point_maze
from rrpolicy.envs.render import BALL, FLOOR, GOAL, PLAN, WALL

MAZE = MazeGeometry(("######", "#....#", "#.##.#", "######"))  # 100 pixels per cell at size 600
GEOMS = """
<mujoco>
  <asset>
    <mesh name="tetra" vertex="0 0 0  .6 0 0  0 .6 0  0 0 .6"/>
    <hfield name="hill" nrow="3" ncol="3" size=".5 .5 .4 .1" elevation="0 0 0  0 1 0  0 0 0"/>
  </asset>
  <worldbody>
    <geom name="plane" type="plane" size="15 15 .1" rgba=".9 .9 .9 1"/>
    <geom name="sphere" type="sphere" size=".3" pos="-9 0 .5" rgba="1 0 0 1"/>
    <geom name="capsule" type="capsule" size=".15 .3" pos="-6 0 .5" rgba="1 0 0 1"/>
    <geom name="ellipsoid" type="ellipsoid" size=".2 .3 .4" pos="-3 0 .5" rgba="1 0 0 1"/>
    <geom name="cylinder" type="cylinder" size=".25 .3" pos="0 0 .5" rgba="1 0 0 .8"/>
    <geom name="box" type="box" size=".25 .25 .3" pos="3 0 .5" euler="0 0 30" rgba="1 0 0 1"/>
    <geom name="mesh" type="mesh" mesh="tetra" pos="6 0 .5" rgba="1 0 0 1"/>
    <geom name="hfield" type="hfield" hfield="hill" pos="9 0 .2" rgba="1 0 0 1"/>
    <body name="cart" pos="0 -2 .5">
      <joint type="slide" axis="1 0 0"/>
      <geom type="sphere" size=".2" rgba="0 0 1 1"/>
    </body>
  </worldbody>
</mujoco>
"""


def close_to(pixels: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(-1) < 12


def pixel(picture: np.ndarray, row: float, column: float) -> np.ndarray:
    """The pixel at fractional cell coordinates."""
    side = picture.shape[1] / MAZE.shape[1]
    return picture[int((row + 0.5) * side), int((column + 0.5) * side)]


def test_walls_floor_ball_and_goal_are_where_they_belong() -> None:
    picture = draw_maze(MAZE, size=600, position=MAZE.cell_to_xy((1, 2)), goal=MAZE.cell_to_xy((2, 4)))
    assert picture.shape == (400, 600, 3) and picture.dtype == np.uint8
    for row, column in np.ndindex(MAZE.shape):
        expected = WALL if MAZE.walls[row, column] else BALL if (row, column) == (1, 2) else None
        if expected:
            assert close_to(pixel(picture, row, column), expected)
    assert close_to(pixel(picture, 1.3, 1.3), FLOOR)
    assert close_to(pixel(picture, 2, 4), GOAL)
    side = np.flatnonzero(close_to(picture[150, 200:300], BALL))
    assert 16 <= len(side) <= 20  # a ball of radius 0.1, within its white rim


@pytest.mark.parametrize("size", [32, 99, 480])
def test_sides_are_even(size: int) -> None:
    height, width, _ = draw_maze(MAZE, size=size).shape
    assert width % 2 == height % 2 == 0 and abs(width - size) <= 1 and abs(height - size * 2 / 3) <= 1


def test_the_background_is_not_drawn_upon() -> None:
    empty = draw_maze(MAZE)
    assert (draw_maze(MAZE, position=[0.0, 0.5], caption="step 1") != empty).any()
    assert (draw_maze(MAZE) == empty).all()


def test_plans_and_the_chosen_one() -> None:
    upper, lower = ([MAZE.cell_to_xy((row, column)) for column in (1, 2, 3, 4)] for row in (0.8, 1.2))
    both = draw_maze(MAZE, size=600, plans=[upper, lower], chosen=0)
    assert close_to(pixel(both, 0.8, 2.5), PLAN) and not close_to(pixel(both, 1.2, 2.5), PLAN)
    assert not close_to(pixel(both, 1.2, 2.5), FLOOR)
    assert not close_to(draw_maze(MAZE, size=600, plans=[upper, lower]), PLAN).any()
    assert close_to(pixel(draw_maze(MAZE, size=600, plans=upper), 0.8, 2.5), PLAN)


def test_a_trail_fades_towards_the_past() -> None:
    trail = np.linspace(MAZE.cell_to_xy((1, 1)), MAZE.cell_to_xy((1, 4)), 200)
    picture = draw_maze(MAZE, size=600, trail=trail)
    darkness = [int(pixel(picture, 1, column).astype(int).sum()) for column in (1.1, 2, 3, 3.9)]
    assert darkness == sorted(darkness, reverse=True) and darkness[0] - darkness[-1] > 100
    assert (draw_maze(MAZE, trail=trail[:1]) == draw_maze(MAZE)).all()


@pytest.mark.parametrize("k", [1, 4])
def test_heat_is_painted_between_the_walls(k: int) -> None:
    heat = np.full((4 * k, 6 * k), np.nan)
    heat[k : 2 * k, k : 5 * k] = np.repeat([0.0, 1.0, 2.0, 3.0], k)
    picture = draw_maze(MAZE, size=600, heat=heat)
    assert close_to(pixel(picture, 1, 1), (68, 1, 84)) and close_to(pixel(picture, 1, 4), (253, 231, 37))
    assert close_to(pixel(picture, 2, 2), WALL) and close_to(pixel(picture, 2, 4), (253, 231, 37))
    assert close_to(pixel(draw_maze(MAZE, size=600, heat=np.full((4, 6), np.nan)), 1, 1), FLOOR)
    assert len(np.unique(draw_maze(MAZE, size=600, heat=np.ones((4, 6)))[110:190, 110:490].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 31}, "size must be at least 32"),
        ({"position": [1.0, 2.0, 3.0]}, "position must be"),
        ({"trail": np.zeros((2, 2, 2))}, "trail must be"),
        ({"plans": np.zeros((3, 4))}, "plans must be"),
        ({"plans": np.zeros((3, 4, 2)), "chosen": 3}, "chosen must be one of the 3"),
        ({"heat": np.zeros((4, 5))}, r"heat must have k times \(4, 6\)"),
        ({"heat": np.zeros((0, 0))}, "heat must have"),
    ],
)
def test_bad_drawings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_maze(MAZE, **arguments)


@pytest.fixture(scope="module")
def geoms() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = mujoco.MjModel.from_xml_string(GEOMS)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.mark.parametrize("name", ["sphere", "capsule", "ellipsoid", "cylinder", "box", "mesh", "hfield"])
def test_every_kind_of_geom_is_painted_at_its_place(geoms: tuple[mujoco.MjModel, mujoco.MjData], name: str) -> None:
    model, data = geoms
    camera = {"lookat": data.geom(name).xpos.copy(), "distance": 4.0, "elevation": -20.0}
    picture = SceneRenderer(model, (200, 200), camera).render(data).astype(int)
    red = (picture[..., 0] - picture[..., 1:].max(-1)) > 60
    middle = red[60:140, 60:140]
    assert middle.sum() > 300
    rows, columns = np.nonzero(middle)
    assert abs(columns.mean() - 40) < 8 and abs(rows.mean() - 40) < 20


def test_a_sphere_has_the_size_that_optics_give_it(geoms: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = geoms
    camera = {"lookat": [-9.0, 0.0, 0.5], "distance": 4.0, "elevation": 0.0}
    picture = SceneRenderer(model, (200, 200), camera).render(data).astype(int)
    width = ((picture[100, :, 0] - picture[100, :, 2])[60:140] > 60).sum()
    expected = 2 * 0.3 / 4.0 / np.tan(np.radians(model.vis.global_.fovy / 2)) * 100
    assert width == pytest.approx(expected, abs=2)


def test_nearer_things_hide_farther_ones(geoms: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = geoms
    camera = {"lookat": [0.0, 0.0, 0.5], "distance": 6.0, "elevation": 0.0, "azimuth": 90.0}
    front = SceneRenderer(model, (200, 200), camera).render(data)[100, 100].astype(int)
    back = SceneRenderer(model, (200, 200), {**camera, "azimuth": -90.0}).render(data)[100, 100].astype(int)
    assert front[2] > front[0] + 60 and back[0] > back[2] + 60  # the blue cart is in front, then behind


def test_planes_are_not_seen_from_below(geoms: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    model, data = geoms
    below = SceneRenderer(model, (64, 64), {"lookat": [0, 0, -3], "distance": 2.0, "elevation": 30.0}).render(data)
    above = SceneRenderer(model, (64, 64), {"lookat": [0, 4, 0], "distance": 2.0, "elevation": -30.0}).render(data)
    assert len(np.unique(below[-4:].reshape(-1, 3), axis=0)) <= 4  # nothing but sky
    assert len(np.unique(above[32:].reshape(-1, 3), axis=0)) > 4


def test_locomotion_is_tracked() -> None:
    env = SceneRender(gym.make("Hopper-v5"), (160, 160))
    env.reset(seed=0)
    base = env.unwrapped
    first = env.render()
    base.set_state(base.data.qpos + np.eye(base.model.nq)[0] * 4.0, base.data.qvel)  # two squares of the floor on
    assert env.render_mode == "rgb_array" and first.shape == (160, 160, 3)
    moved = np.abs(env.render().astype(int) - first).mean()
    base.set_state(base.data.qpos + np.eye(base.model.nq)[1] * 0.5, base.data.qvel)  # a jump is seen
    assert np.abs(env.render().astype(int) - first).mean() > max(1.0, 10 * moved)


def test_the_maze_in_three_dimensions() -> None:
    env = make_point_maze(goal=(1, 1))
    env.reset(seed=0)
    picture = SceneRenderer.from_env(env, (96, 64)).render(env.unwrapped.point_env.data)  # type: ignore[attr-defined]
    assert picture.shape == (64, 96, 3) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 10


def test_bad_scenes_are_named(geoms: tuple[mujoco.MjModel, mujoco.MjData]) -> None:
    with pytest.raises(ValueError, match="size must be two even numbers"):
        SceneRenderer(geoms[0], (101, 100))
    with pytest.raises(ValueError, match=r"camera must hold only.*'zoom'"):
        SceneRenderer(geoms[0], camera={"zoom": 2})
    with pytest.raises(ValueError, match="env must be a MuJoCo environment"):
        SceneRender(gym.make("CartPole-v1"))
