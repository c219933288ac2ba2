"""Other methods on the same expert data and environment: AIRL, GAIL and DIFO by `imitation`, IQ-Learn, and cloning.

Their rewards are measured as ours are and their policies run in the real environment; what they took to learn, in
CPU-seconds and environment steps, stands beside.
"""

from __future__ import annotations

import time

import numpy as np

from rrpolicy.common.typing import Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import evaluate
from rrpolicy.experiments.maze2d.artifacts import MazeStore
from rrpolicy.experiments.maze2d.measure_reward import distance_rows, order_rows, recovery_rows
from rrpolicy.experiments.maze2d.measure_training import MAX_ENVS
from rrpolicy.experiments.maze2d.spec import MazeUnit
from rrpolicy.experiments.recipes import section
from rrpolicy.experiments.results import Log, Recorder, plain_row
from rrpolicy.experiments.scoring import Scoring, environments, n_episodes
from rrpolicy.rewards.epic import Coverage
from rrpolicy.rewards.maps import reward_map
from rrpolicy.rewards.maze_metrics import cell_rewards
from rrpolicy.rl.adversarial import Peer, train_peer
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.iq_learn import train_inverse_q

CLONING, INVERSE_Q = "cloning", "iq-learn"


def measure_peers(store: MazeStore, unit: MazeUnit, log: Log = lambda text: None) -> Recorder:
    """
    Train the variant's methods on the expert's data of a pair, score their rewards and run their policies.

    :param store: collects the data
    :param unit: a pair
    :param log: called with a line of text at each step
    :raises ValueError: when `imitation` is not installed
    """
    recorder = Recorder(log)
    recorder.start("data")
    base_data, data = store.data(MazeUnit(unit.maze, unit.seed))[0], store.data(unit)[0]
    agents: dict[str, Predictor] = {}
    for name in store.variant.agents:
        recorder.start(f"training {name}")
        started = time.process_time()
        if name == CLONING:
            agents[name] = clone_behaviour(data, seed=unit.seed)
            _add_cost(recorder, name, time.process_time() - started, 0)
            continue
        peer = _trained(name, data, unit)
        _add_cost(recorder, name, time.process_time() - started, peer.environment_steps)
        recorder.start(f"scoring the reward of {name}")
        coverage = Coverage.from_dataset(base_data, Scoring.of(store.recipe).n_coverage, unit.seed)
        _add_reward(recorder, store, name, peer, unit, coverage)
        agents[name] = peer.agent
    _run(recorder, store, agents, unit)
    recorder.done()
    return recorder


def _trained(name: str, data: TrajectoryDataset, unit: MazeUnit) -> Peer:
    where = (data, unit.task.maze, unit.goal)
    return train_inverse_q(*where, seed=unit.seed) if name == INVERSE_Q else train_peer(name, *where, seed=unit.seed)


def _add_cost(recorder: Recorder, name: str, seconds: float, environment_steps: int) -> None:
    recorder.times(**{name: seconds})
    recorder.rows([plain_row(name, "environment_steps", environment_steps)], 0.0)


def _add_reward(
    recorder: Recorder, store: MazeStore, name: str, peer: Peer, unit: MazeUnit, coverage: Coverage
) -> None:
    """Scores of a reward, the same as for ours: the map's maximum, the order of cells, the distance to the true one."""
    maze = unit.task.maze
    drawn = reward_map(peer.reward, maze, **section(store.recipe, "map"))
    recorder.rows(recovery_rows(name, drawn, unit.goal))
    recorder.rows(order_rows(name, cell_rewards(drawn), maze, unit.goal))
    rewards = {"": lambda states: np.asarray(peer.reward.predict(states), dtype=np.float64)}
    recorder.rows(distance_rows(name, rewards, unit, coverage, Scoring.of(store.recipe)))


def _run(recorder: Recorder, store: MazeStore, agents: dict[str, Predictor], unit: MazeUnit) -> None:
    """Success and return in the real environment under the true dense reward, all in the same episodes."""
    with environments(unit.task, min(n_episodes(store.recipe), MAX_ENVS), reward_type="dense") as envs:
        for name, agent in agents.items():
            recorder.start(f"episodes of {name}")
            result = evaluate(agent, envs, n_episodes(store.recipe), seed=unit.seed * 1000, deterministic=True)
            recorder.rows(result.rows(name))
