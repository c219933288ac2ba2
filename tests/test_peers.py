"""The peers: what they see of demonstrations, how they are trained and measured; with `imitation` where it is."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.recipes import RECIPE

from rrpolicy import TrajectoryDataset
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.envs import make_point_maze
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.simulator import PointMazeSimulator
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv
from rrpolicy.evaluation import evaluate
from rrpolicy.experiments.maze2d import VARIANTS, MazeUnit, reproduction
from rrpolicy.experiments.maze2d import measure_peers as measured
from rrpolicy.rewards.maps import reward_map
from rrpolicy.rl import adversarial
from rrpolicy.rl.adversarial import PEERS, Decisions, Demonstrations, Peer, PeerReward, PeerSettings, train_peer
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.on_reward import SETTINGS
from rrpolicy.rl.policies import ACTION_REPEAT

MAZE, GOAL = ["#####", "#...#", "#####"], (1, 3)
ROUND = SETTINGS["PPO"].n_envs * SETTINGS["PPO"].arguments["n_steps"]


def numbered(*lengths: int) -> TrajectoryDataset:
    """Row i observes i and acts i²."""
    rows = np.arange(sum(lengths), dtype=np.float32)[:, None]
    return TrajectoryDataset.from_arrays(rows, rows**2, episode_lengths=lengths)


# ---------------------------------------------------------------------- demonstrations


def test_a_decision_lasts_some_steps_of_one_episode() -> None:
    seen = Decisions.of(numbered(4, 2, 3), n_steps=2)
    assert seen.observations.tolist() == [[0], [1], [6]]
    assert seen.next_observations.tolist() == [[2], [3], [8]]
    assert seen.actions.tolist() == [[0.5], [2.5], [42.5]]  # means of 0, 1; 1, 4; 36, 49
    with pytest.raises(ValueError, match="no episode of 6 rows, the longest has 4"):
        Decisions.of(numbered(4, 2))


def test_holding_the_mean_action_leads_where_the_demonstration_went() -> None:
    maze = MazeGeometry.parse(MAZE)
    seen = Decisions.of(collect_point_maze(maze, 2_000, goal=GOAL, seed=0))
    states = np.array(seen.observations, dtype=np.float64)
    for _ in range(ACTION_REPEAT):
        states = PointMazeSimulator(maze).step(states, seen.actions)
    moved = np.linalg.norm(seen.next_observations - seen.observations, axis=1).mean()
    assert np.linalg.norm(states - seen.next_observations, axis=1).mean() < 0.05 * moved


def test_batches_are_drawn_alike_by_every_iterator() -> None:
    demonstrations = Demonstrations(Decisions.of(numbered(9), 1), batch_size=64, seed=3)
    first, again = iter(demonstrations), iter(demonstrations)
    batches = [next(first), next(first)]
    assert not np.array_equal(*(batch["obs"] for batch in batches))
    for batch in batches:
        other = next(again)
        assert all(np.array_equal(batch[key], other[key]) for key in ("obs", "acts", "next_obs", "dones"))
        assert np.array_equal(batch["next_obs"], batch["obs"] + 1) and np.array_equal(batch["acts"], batch["obs"] ** 2)
        assert set(batch["obs"][:, 0]) == set(range(8)) and not batch["dones"].any()


# ---------------------------------------------------------------------- training


class Net:
    """A reward of transitions: everything it is asked, added up."""

    def predict(self, state: Any, action: Any, next_state: Any, done: Any) -> Any:
        assert done.dtype == bool and len(done) == len(state)
        return np.sum(state + 10 * next_state, axis=1) + 100 * action.sum(axis=1)


class FakeTrainer:
    """Counts rounds and batches, and lets the generator act as the real one does."""

    def __init__(self, model: Any, demonstrations: Any) -> None:
        self.model, self.calls, self.batch = model, [], next(iter(demonstrations))

    def train_gen(self) -> None:
        self.calls.append("round")
        self.model.num_timesteps += self.model.n_steps * self.model.n_envs

    def train_disc(self) -> None:
        self.calls.append("batch")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was built in place of `imitation`'s trainers."""
    made: list[Any] = []

    def build(name: str, settings: Any, venv: Any, model: Any, demonstrations: Any, folder: str) -> Any:
        made.append((name, venv, FakeTrainer(model, demonstrations)))
        assert Path(folder).is_dir()
        return made[-1][-1], Net()

    monkeypatch.setattr(adversarial, "_build", build)
    return made


def test_rounds_and_batches_alternate_and_steps_are_counted(built: list[Any]) -> None:
    settings = PeerSettings(2 * ROUND + 1, {"gamma": 0.5}, batch_size=8, n_updates=2)
    data = collect_point_maze(MAZE, 500, goal=GOAL, episode_length=203)
    peer = train_peer("gail", data, MAZE, GOAL, settings=settings)
    ((name, venv, trainer),) = built
    assert name == "gail" and trainer.calls == ["round", "batch", "batch"] * 2
    assert venv.max_episode_steps == 200 and venv.action_repeat == ACTION_REPEAT
    assert peer.agent.agent.gamma == 0.5 and peer.agent.agent.n_epochs == SETTINGS["PPO"].arguments["n_epochs"]
    assert trainer.batch["obs"].shape == (8, 4)
    assert peer.environment_steps == 2 * ROUND * ACTION_REPEAT
    assert peer.agent.predict(np.zeros(4))[0].shape == (2,)


def test_a_reward_of_transitions_is_asked_about_resting() -> None:
    reward = PeerReward(Net())
    states = np.arange(8.0).reshape(2, 4)
    assert reward.predict(states).tolist() == [11 * 6, 11 * 22]
    assert reward.predict(states, np.ones((2, 2))).tolist() == [11 * 6 + 200, 11 * 22 + 200]
    assert reward_map(reward, MAZE).same_cell(GOAL)  # the highest x there is


def test_what_cannot_be_trained_is_refused(built: list[Any]) -> None:
    data = collect_point_maze(MAZE, 100, goal=GOAL)
    with pytest.raises(ValueError, match="name must be one of airl, gail, difo, got 'bc'"):
        train_peer("bc", data, MAZE, GOAL)
    with pytest.raises(ValueError, match=f"total_timesteps is {ROUND - 1}, it must be at least {ROUND}, one round"):
        train_peer("airl", data, MAZE, GOAL, settings=PeerSettings(ROUND - 1))


def test_without_imitation_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imitation.algorithms.adversarial.airl", None)
    with pytest.raises(ValueError, match=r"pip install --no-deps imitation==1\.0\.1") as raised:
        train_peer("airl", collect_point_maze(MAZE, 100, goal=GOAL), MAZE, GOAL)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- the experiment


def test_peers_are_measured_like_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = MazeUnit("umaze", 0, (3.0, 1.0))
    goal_xy = unit.task.maze.cell_to_xy(unit.goal)

    class TrueReward:
        def predict(self, state: Any, action: Any, next_state: Any, done: Any) -> Any:
            return np.exp(-np.linalg.norm(next_state[:, :2] - goal_xy, axis=1))

    def train(name: str, data: Any, maze: Any, goal: Any, seed: int) -> Peer:
        assert goal == unit.goal and seed == 0 and len(data) == RECIPE["data"]["expert_transitions"]
        agent = clone_behaviour(data, 300, net_arch=(32, 32), learning_rate=3e-3)
        return Peer(PeerReward(TrueReward()), agent, {"airl": 10, "gail": 20}[name])

    def clone(data: Any, seed: int) -> Any:
        return SimpleNamespace(predict=lambda observation, *_, **__: (np.zeros((len(observation), 2)), None))

    monkeypatch.setattr(measured, "train_peer", train)
    monkeypatch.setattr(measured, "clone_behaviour", clone)
    results = reproduction([unit], RECIPE, tmp_path / "r.csv", tmp_path / "work", VARIANTS["peers"]).run()
    values = {(one.agent, one.metric): one.value for one in results}
    for name, steps in (("airl", 10), ("gail", 20)):
        assert values[name, "environment_steps"] == steps and values[name, "cpu_seconds"] > 0
        assert values[name, "goal_own_cell"] == values[name, "goal_within_one_cell"] == 1.0
        assert values[name, "goal_error_cells"] < 0.2 and values[name, "epic_distance"] < 1e-6
        assert values[name, "dard_distance"] < 1e-5
        # the true reward knows no walls
        assert 0.5 < values[name, "spearman_path"] < 1.0 and values[name, "detour_pairs_rate"] == 0.0
        assert values[name, "return"] > values["cloning", "return"] > 0
    assert values["cloning", "environment_steps"] == values["cloning", "success_rate"] == 0.0
    assert {one.variant for one in results} == {"peers"}


def test_score_based_peers_are_a_variant_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = MazeUnit("umaze", 0, (3.0, 1.0))
    agent = SimpleNamespace(predict=lambda observation, *_, **__: (np.zeros((len(observation), 2)), None))
    monkeypatch.setattr(measured, "train_peer", lambda name, *_, seed: Peer(PeerReward(Net()), agent, 1))
    monkeypatch.setattr(measured, "train_inverse_q", lambda *_, seed: Peer(PeerReward(Net()), agent, 2))
    results = reproduction([unit], RECIPE, tmp_path / "r.csv", tmp_path / "work", VARIANTS["score-peers"]).run()
    steps = {one.agent: one.value for one in results if one.metric == "environment_steps"}
    assert steps == {"difo": 1, "iq-learn": 2} and {one.variant for one in results} == {"score-peers"}


# ---------------------------------------------------------------------- with imitation


@pytest.fixture(scope="module")
def data() -> TrajectoryDataset:
    return collect_point_maze(MAZE, 20_000, goal=GOAL, episode_length=200)


@pytest.mark.peers
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_learns_to_stay_at_the_goal_and_to_like_it(name: str, data: TrajectoryDataset) -> None:
    peer = train_peer(name, data, MAZE, GOAL, settings=PeerSettings(25 * ROUND))
    assert peer.environment_steps == 25 * ROUND * ACTION_REPEAT
    env = [make_point_maze(maze_map=MAZE, goal=GOAL, max_episode_steps=200) for _ in range(8)]
    assert evaluate(peer.agent, env, 8).success_rate == 1.0
    if name == "airl":  # GAIL's discriminator has nothing left to say once the policy is right
        assert reward_map(peer.reward, MAZE).same_cell(GOAL)


@pytest.mark.peers
@pytest.mark.parametrize("name", PEERS)
def test_training_is_reproducible(name: str, data: TrajectoryDataset) -> None:
    one, other, third = (train_peer(name, data, MAZE, GOAL, seed, PeerSettings(2 * ROUND)) for seed in (3, 3, 4))
    states = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    assert np.array_equal(one.reward.predict(states), other.reward.predict(states))
    assert not np.array_equal(one.reward.predict(states), third.reward.predict(states))
    assert np.array_equal(*(peer.agent.predict(states, deterministic=True)[0] for peer in (one, other)))


@pytest.mark.peers
@pytest.mark.parametrize("name", ["airl", "gail"])
def test_rewards_are_of_positions_and_running_out_of_time_is_no_end(name: str) -> None:
    reward, net = adversarial._networks(name, [8], PointMazeVecEnv(MAZE, GOAL, 2), discount=0.5)
    rng = np.random.default_rng(0)
    states, others = rng.uniform(-1, 1, (2, 6, 4)).astype(np.float32)
    actions, no, yes = np.zeros((6, 2), np.float32), np.zeros(6, bool), np.ones(6, bool)
    faster = states + np.float32([0, 0, 1, 1])
    alone = reward.predict(states, actions, others, no)
    assert np.array_equal(alone, reward.predict(faster, actions + 1, states, no)) and np.ptp(alone) > 0
    assert np.array_equal(net.predict(states, actions, others, no), net.predict(states, actions, others, yes))
    if name == "airl":  # what is added is shaping, γ h(s') - h(s): there and back is as good as staying at both
        there, back, here, away = (
            net.predict(one, actions, other, no)
            for one, other in ((states, others), (others, states), (states, states), (others, others))
        )
        assert there + back == pytest.approx(here + away, abs=1e-5)
        assert np.abs(there - alone).max() > 1e-3
