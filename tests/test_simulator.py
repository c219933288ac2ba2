"""The vectorised point mass against MuJoCo's, in free flight, at walls and at corners."""

import gymnasium as gym
import numpy as np
import pytest

from rrpolicy.envs import MazeGeometry, PDController, PointMazeSimulator
from rrpolicy.envs.simulator import DAMPING, GEAR, MASS, MAX_SPEED, RADIUS, TIME_STEP

MAZES = ["UMaze", "Open", "Medium", "Large"]


def real_ball(name: str) -> tuple[gym.Env, MazeGeometry]:
    env = gym.make(f"PointMaze_{name}-v3", disable_env_checker=True)
    env.reset(seed=0)
    return env.unwrapped.point_env, MazeGeometry.from_env(env)


def random_pushes(n_steps: int, seed: int) -> np.ndarray:
    """Forces held for a quarter of a second: along walls, into corners, at full and at partial strength."""
    rng = np.random.default_rng(seed)
    pushes = rng.uniform(-1, 1, size=(n_steps // 25 + 1, 2))
    hard = rng.random(len(pushes)) < 0.5
    pushes[hard] = np.sign(pushes[hard]) * rng.integers(0, 2, size=(hard.sum(), 1))
    return np.repeat(pushes, 25, axis=0)[:n_steps]


@pytest.mark.parametrize("name", MAZES)
def test_each_step_equals_mujoco(name: str) -> None:
    ball, maze = real_ball(name)
    simulator = PointMazeSimulator(maze)
    states, following, contacts = [], [], []
    for action in random_pushes(2000, seed=1):
        states.append(np.concatenate([ball.data.qpos, ball.data.qvel]))
        following.append(ball.step(action)[0])
        contacts.append(ball.data.ncon - 1)  # one is the floor, which carries no load
    ours = simulator.step(np.array(states), random_pushes(2000, seed=1))
    assert np.bincount(contacts, minlength=3)[1:].min() > 20  # walls, and walls with corners, were hit
    assert np.abs(ours - following).max() < 1e-7


FEW = ("UMaze", "Large")  # the others have corners of the same kinds


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one not in FEW)) for one in MAZES])
def test_roll_outs_equal_mujoco(name: str) -> None:
    """Thousands of steps without correction; targets may lie in walls, so that the ball is pressed against them."""
    ball, maze = real_ball(name)
    simulator, law, rng = PointMazeSimulator(maze), PDController(kp=1.0, kd=0.5), np.random.default_rng(2)
    state = np.concatenate([ball.data.qpos, ball.data.qvel])[None]
    worst = touched = 0.0
    for step in range(3000):
        if step % 40 == 0:
            target = maze.xy_to_rowcol(state[0, :2]) + rng.uniform(-1.5, 1.5, size=2)
        action = law.action(state, maze.cell_to_xy(target)[None])
        state = simulator.step(state, action)
        worst = max(worst, np.abs(ball.step(action[0])[0] - state[0]).max())
        touched += ball.data.ncon > 1
    assert touched > 300
    assert worst < 1e-4


def test_every_corner_of_a_lone_wall() -> None:
    """Balls thrown at a convex corner from all sides, each step compared with MuJoCo."""
    lone_wall = MazeGeometry(("#####", "#...#", "#.#.#", "#...#", "#####")).to_gymnasium()
    env = gym.make("PointMaze_UMaze-v3", disable_env_checker=True, maze_map=lone_wall)
    env.reset(seed=0)
    ball, simulator = env.unwrapped.point_env, PointMazeSimulator(MazeGeometry.from_env(env))
    corners_hit = 0
    for angle in np.linspace(0, 2 * np.pi, 40, endpoint=False):
        corner = 0.5 * np.sign([np.cos(angle + 0.1), np.sin(angle + 0.1)])
        start = corner + 0.3 * np.array([np.cos(angle), np.sin(angle)])
        if simulator.maze.clearance(start) < RADIUS:
            continue
        ball.set_state(start, 4 * (corner - start))
        for _ in range(30):
            state = np.concatenate([ball.data.qpos, ball.data.qvel])[None]
            action = np.clip(10 * (corner - state[0, :2]), -1, 1)
            assert np.abs(ball.step(action)[0] - simulator.step(state, action[None])[0]).max() < 1e-7
            gap = np.abs(ball.data.qpos) - 0.5
            corners_hit += ball.data.ncon > 1 and (gap > 1e-3).all()
    assert corners_hit > 50


def test_free_flight_has_its_closed_form() -> None:
    """v' = v + h (F - v) / (m + h): a geometric approach to F, cut at the greatest speed."""
    simulator = PointMazeSimulator(MazeGeometry(("#" * 40, "#" + "." * 38 + "#", "#" * 40)))
    force, n = np.array([0.02, -0.0]), 200
    state = np.array([[-18.0, 0.0, 0.0, 0.0]])
    for _ in range(n):
        state = simulator.step(state, force[None])
    rate = TIME_STEP * DAMPING / (MASS + TIME_STEP * DAMPING)
    assert state[0, 2] == pytest.approx(GEAR * force[0] * (1 - (1 - rate) ** n), rel=1e-9)
    fast = simulator.step(np.array([[0.0, 0.0, 50.0, 0.0]]), np.zeros((1, 2)))
    assert fast[0, 2] == pytest.approx(MAX_SPEED * (1 - rate))


def test_actions_are_clipped_and_inputs_left_alone() -> None:
    simulator = PointMazeSimulator(MazeGeometry(("####", "#..#", "####")))
    states, actions = np.array([[0.0, 0.0, 6.0, 0.0]]), np.array([[5.0, -5.0]])
    kept = states.copy(), actions.copy()
    assert (simulator.step(states, actions) == simulator.step(states, np.sign(actions))).all()
    assert (states == kept[0]).all() and (actions == kept[1]).all()


def test_balls_do_not_meet() -> None:
    """Each row of a batch is what it would be alone."""
    maze = MazeGeometry(("#####", "#...#", "#.#.#", "#...#", "#####"))
    simulator, rng = PointMazeSimulator(maze), np.random.default_rng(0)
    states = np.hstack([rng.uniform(-1.45, 1.45, size=(300, 2)), rng.uniform(-5, 5, size=(300, 2))])
    actions = rng.uniform(-1, 1, size=(300, 2))
    alone = np.concatenate([simulator.step(states[i : i + 1], actions[i : i + 1]) for i in range(300)])
    np.testing.assert_allclose(simulator.step(states, actions), alone, rtol=0, atol=1e-12)
    assert simulator.step(np.zeros((0, 4)), np.zeros((0, 2))).shape == (0, 4)


def test_outside_the_maze_nothing_stands() -> None:
    simulator = PointMazeSimulator(MazeGeometry(("###", "#.#", "###")))
    far = np.array([[50.05, 50.05, 1.0, 0.0], [-50.0, 3.0, 0.0, 0.0]])
    assert simulator.step(far, np.zeros((2, 2)))[:, 0] == pytest.approx([50.06, -50.0], abs=1e-4)
