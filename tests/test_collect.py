"""Datasets made here are what the real environment would have recorded, at every phase that learning needs."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import shorten
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy.data.collect import MixtureComponent, collect, collect_mixture, collect_point_maze
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.envs import MazeGeometry, PDController, make_point_maze
from rrpolicy.testing import DriftEnv

MEDIUM = MazeGeometry(("########", "#..##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#..#", "########"))
UMAZE = MazeGeometry(("#####", "#...#", "###.#", "#...#", "#####"))
LAYOUT = TrajectoryLayout(observation_dim=4, action_dim=2, horizon=16, stride=8)


class Homing:
    """Pulls each ball towards the origin and remembers how many calls its episode has had."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):  # type: ignore[no-untyped-def]
        calls = np.zeros(len(observation)) if state is None else state[0]
        calls = np.where(episode_start, 0, calls) + 1
        return PDController().action(observation, np.zeros(2)) * 3.0, (calls,)


@pytest.mark.parametrize("goal", [None, (4, 4.1)])
def test_the_real_environment_repeats_the_dataset(goal: tuple[float, float] | None) -> None:
    dataset = collect_point_maze(MEDIUM, 1200, goal=goal, seed=3, episode_length=400)
    env = make_point_maze("PointMaze_Medium-v3", max_episode_steps=1000)
    episode = dataset.episode(1)
    env.reset(seed=0)
    ball = env.unwrapped.point_env  # type: ignore[attr-defined]
    ball.set_state(episode["observations"][0, :2], episode["observations"][0, 2:])
    for action, following in zip(episode["actions"][:-1], episode["observations"][1:], strict=True):
        assert env.step(action)[0] == pytest.approx(following, abs=1e-4)


@pytest.mark.parametrize("goal", [None, (1, 1)])
@pytest.mark.parametrize("n_transitions", [1, 7, 999, pytest.param(4321, marks=pytest.mark.slow)])
def test_size_is_exact_and_the_seed_decides(goal: tuple[int, int] | None, n_transitions: int) -> None:
    first, again, other = (collect_point_maze(UMAZE, n_transitions, goal=goal, seed=seed) for seed in (1, 1, 2))
    assert len(first) == n_transitions
    assert (first.observations == again.observations).all() and (first.actions == again.actions).all()
    assert (first.episode_lengths == again.episode_lengths).all()
    assert (first.observations != other.observations).any()
    assert first.metadata["maze"] == list(UMAZE.rows) and first.metadata["seed"] == 1


def test_base_data_goes_everywhere_and_dwells() -> None:
    dataset = collect_point_maze(MEDIUM, 60_000, seed=0)
    cells = MEDIUM.xy_to_cell(dataset.observations[:, :2])
    visits = np.zeros(MEDIUM.shape)
    np.add.at(visits, tuple(cells.T), 1)
    assert (visits[MEDIUM.walls] == 0).all() and visits[~MEDIUM.walls].min() > 200
    starts = dataset.window_starts(LAYOUT)
    assert len(starts) > 0.85 * len(dataset)
    moved = np.ptp(dataset.windows(LAYOUT, starts[::20]).observations[..., :2], axis=1).max(-1)
    assert (moved < 0.1).mean() > 0.01  # windows that stay where they are
    assert (moved > 2.0).mean() > 0.4
    assert np.abs(dataset.actions).max() == 1.0


@pytest.mark.parametrize(("maze", "goal"), [(UMAZE, (2, 3)), (UMAZE, (3.1, 1)), (MEDIUM, (4, 4)), (MEDIUM, (6, 6))])
def test_expert_data_arrives_and_stays(maze: MazeGeometry, goal: tuple[float, float]) -> None:
    dataset = collect_point_maze(maze, 40_000, goal=goal, seed=0)
    distance = np.linalg.norm(dataset.observations[:, :2] - maze.cell_to_xy(goal), axis=1)
    stops = np.cumsum(dataset.episode_lengths)[:-1]
    assert distance[stops - 1].max() < 0.1
    begins = np.append(0, stops[:-1])
    cells = maze.xy_to_cell(dataset.observations[begins, :2])
    assert len(np.unique(cells, axis=0)) == len(maze.free_cells)
    # Windows of the usual length start on the way as often as at the goal, and as far from it as one can be.
    starts = dataset.window_starts(LAYOUT)
    assert 0.3 < (distance[starts] > 0.45).mean() < 0.6
    lengths = maze.path_distances(goal)[tuple(maze.xy_to_cell(dataset.observations[starts, :2]).T)]
    assert lengths.max() == np.max(maze.path_distances(goal)[~maze.walls])


def test_rooms_without_a_door() -> None:
    rooms = MazeGeometry(("#######", "#..#..#", "#######"))
    base = collect_point_maze(rooms, 5000, seed=0)
    sides = [np.unique(np.sign(base.episode(i)["observations"][:, 0])).size for i in range(base.n_episodes)]
    assert set(sides) == {1}
    assert (collect_point_maze(rooms, 2000, goal=(1, 5), seed=0).observations[:, 0] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_transitions": 0}, "n_transitions is 0, it must be a whole number of at least 1"),
        ({"n_transitions": 10.5}, "n_transitions is 10.5, it must be a whole number of at least 1"),
        ({"seed": 1.5}, "seed is 1.5, it must be a whole number of at least 0"),
        ({"goal": (2, 2)}, "goal .* lies in a wall"),
        ({"action_noise": -1.0}, "action_noise"),
        ({"dwell": (5, 2)}, "dwell"),
        ({"goal_offset": 0.5}, "goal_offset"),
        ({"jitter": 0.7}, "jitter"),
        ({"episode_length": 0}, "episode_length"),
        ({"episode_length": 9.5}, "episode_length is 9.5, it must be a whole number"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collect_point_maze(UMAZE, **{"n_transitions": 10, **arguments})


def test_roll_outs_of_an_agent() -> None:
    maker = lambda: make_point_maze(goal=(1, 1), max_episode_steps=30)  # noqa: E731
    dataset = collect(Homing(), DummyVecEnv([maker] * 2), 101, seed=7)
    assert dataset.episode_lengths.tolist() == [30, 30, 21, 20]
    assert np.abs(dataset.actions).max() == 1.0  # what was executed, not what was asked for
    # Each recorded transition is one of the environment's, rewards included.
    env = maker()
    for index, seed in ((0, 7), (1, 8)):
        observation, _ = env.reset(seed=seed)
        episode = dataset.episode(index)
        for row, action in enumerate(episode["actions"]):
            assert episode["observations"][row] == pytest.approx(observation, abs=1e-6)
            observation, reward, *_ = env.step(action)
            assert episode["rewards"][row] == reward


def test_roll_outs_in_a_single_environment() -> None:
    dataset = collect(Homing(), make_point_maze(goal=(1, 1), max_episode_steps=30), 45)
    assert dataset.episode_lengths.tolist() == [30, 15]


def test_roll_outs_need_flat_spaces() -> None:
    with pytest.raises(ValueError, match="action_space"):
        collect(Homing(), gym.make("CartPole-v1"), 5)
    with pytest.raises(ValueError, match="n_transitions"):
        collect(Homing(), make_point_maze(), 0)


# ---------------------------------------------------------------------- noise and mixtures


class Constant:
    """Always the same action."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def predict(self, observation, state=None, episode_start=None, deterministic=False):  # type: ignore[no-untyped-def]
        return np.full((len(observation), 2), self.value), None


def line() -> gym.Env:
    """Where only actions are looked at, the environment whose steps cost least."""
    return DriftEnv(n_steps=30)


def short_maze() -> gym.Env:
    return make_point_maze(goal=(1, 1), max_episode_steps=30)


def test_noise_is_gaussian_and_clipped() -> None:
    actions = collect(Constant(0.1), line(), 3000, seed=1, action_noise=0.2).actions
    assert actions.mean() == pytest.approx(0.1, abs=0.01) and actions.std() == pytest.approx(0.2, abs=0.01)
    wild = collect(Constant(), line(), 600, action_noise=5.0).actions
    assert np.abs(wild).max() == 1.0 and (np.abs(wild) == 1.0).mean() > 0.6
    again = collect(Constant(0.1), line(), 3000, seed=1, action_noise=0.2).actions
    assert np.array_equal(actions, again)


def test_some_actions_are_uniformly_random() -> None:
    dataset = collect(Constant(0.5), line(), 3000, epsilon=0.3)
    random = dataset.actions[(dataset.actions != 0.5).any(axis=1)]
    assert len(random) / 3000 == pytest.approx(0.3, abs=0.03)
    assert np.histogram(random, bins=4, range=(-1, 1))[0] == pytest.approx(len(random) / 2, rel=0.15)
    assert dataset.metadata["epsilon"] == 0.3 and dataset.metadata["action_noise"] == 0.0
    assert len(dataset.metadata["returns"]) == dataset.n_episodes == 100


def test_policies_that_draw_from_the_global_generator_are_seeded() -> None:
    class Torch(Constant):
        def predict(self, observation, *args, **kwargs):  # type: ignore[no-untyped-def]
            return torch.rand(len(observation), 2).numpy(), None

    before = torch.get_rng_state()
    one, same, other = (collect(Torch(), short_maze(), 40, seed).actions for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_agents_get_their_shares() -> None:
    drivers = [
        MixtureComponent("up", Constant(0.25), 2, {"algorithm": "none"}),
        MixtureComponent("down", Constant(-0.25), 1),
    ]
    dataset = collect_mixture(drivers, DummyVecEnv([short_maze] * 2), 301, seed=5, deterministic=True)
    assert (dataset.actions[:201] == 0.25).all() and (dataset.actions[201:] == -0.25).all() and len(dataset) == 301
    up, down = dataset.metadata["agents"]
    assert up["name"] == "up" and up["algorithm"] == "none" and up["share"] == 2 / 3 and down["n_transitions"] == 100
    assert up["n_episodes"] + down["n_episodes"] == dataset.n_episodes and len(up["returns"]) == 6
    assert dataset.metadata["deterministic"] and dataset.metadata["seed"] == 5 and dataset.metadata["n_envs"] == 2
    assert "normalized_score" not in up and "returns" not in dataset.metadata
    assert (dataset.observations[0] != dataset.observations[201]).any()  # no two start alike


def test_mixtures_know_the_normalised_score(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, "Hopper-v5", 4)
    env = gym.make("Hopper-v5")
    still = type("Still", (), {"predict": lambda self, o, *a, **k: (np.zeros((len(o), 3)), None)})()
    (agent,) = collect_mixture([MixtureComponent("still", still)], env, 10, env_id="Hopper-v5").metadata["agents"]
    assert len(agent["returns"]) == 2
    wanted = 100 * (np.mean(agent["returns"]) + 20.272305) / (3234.3 + 20.272305)
    assert agent["normalized_score"] == pytest.approx(wanted)


def test_noise_and_shares_out_of_range_are_refused() -> None:
    env, endless = short_maze(), gym.make("Pendulum-v1")
    endless.action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    for arguments, words in (
        ({"action_noise": -1.0}, "action_noise is -1.0, it must be a finite number of at least 0"),
        ({"action_noise": np.nan}, "action_noise"),
        ({"epsilon": 1.5}, r"epsilon must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            collect(Constant(), env, 5, **arguments)
    with pytest.raises(ValueError, match="needs a bounded action space"):
        collect(Constant(), endless, 5, epsilon=0.1)
    for shares, words in (([], "wanted at least one"), ([1, 0], "all above 0"), ([1, 1000], "no transition")):
        with pytest.raises(ValueError, match=words):
            collect_mixture([MixtureComponent("a", Constant(), share) for share in shares], env, 10)
