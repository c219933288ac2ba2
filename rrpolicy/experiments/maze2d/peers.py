"""Other methods on the same expert data and environment: AIRL and GAIL of `imitation`, and behaviour cloning.

Their rewards are measured as ours are and their policies run in the real environment; what they took to learn, in
CPU-seconds and environment steps, stands beside.
"""

from __future__ import annotations

import time

import numpy as np

from rrpolicy.common.typing import Predictor
from rrpolicy.evaluation import evaluate_policy
from rrpolicy.experiments import plain_row, section
from rrpolicy.experiments.maze2d.episodes import NETWORKS_AT_ONCE, environments, n_episodes
from rrpolicy.experiments.maze2d.pairs import N_COVERAGE, epic_rows, order_rows, recovery_rows
from rrpolicy.experiments.maze2d.units import Unit
from rrpolicy.experiments.maze2d.workshop import Workshop
from rrpolicy.experiments.recorder import Ledger, Say
from rrpolicy.rewards.epic import Coverage
from rrpolicy.rewards.maps import reward_map
from rrpolicy.rewards.maze_metrics import cell_rewards
from rrpolicy.rl.adversarial import PEERS, Peer, train_peer
from rrpolicy.rl.on_reward import clone_behaviour

CLONING = "cloning"


def measure_peers(shop: Workshop, unit: Unit, say: Say = lambda text: None) -> Ledger:
    """
    Train every peer on the expert's data of a pair, score its reward and run its policy, deterministic.

    :param shop: collects the data
    :param unit: a pair
    :param say: told what is being done
    :raises ValueError: when `imitation` is not installed
    """
    ledger = Ledger(say)
    ledger.begin("data")
    base_data, data = shop.data(Unit(unit.maze, unit.seed))[0], shop.data(unit)[0]
    agents: dict[str, Predictor] = {}
    for name in PEERS:
        ledger.begin(f"training {name}")
        started = time.process_time()
        peer = train_peer(name, data, unit.task.maze, unit.goal, seed=unit.seed)
        _add_cost(ledger, name, time.process_time() - started, peer.environment_steps)
        ledger.begin(f"scoring the reward of {name}")
        coverage = Coverage.from_dataset(base_data, N_COVERAGE, unit.seed)
        _add_reward(ledger, shop, name, peer, unit, coverage)
        agents[name] = peer.agent
    ledger.begin(f"training {CLONING}")
    started = time.process_time()
    agents[CLONING] = clone_behaviour(data, seed=unit.seed)
    _add_cost(ledger, CLONING, time.process_time() - started, 0)
    _run(ledger, shop, agents, unit)
    ledger.close()
    return ledger


def _add_cost(ledger: Ledger, name: str, seconds: float, environment_steps: int) -> None:
    ledger.add_times(**{name: seconds})
    ledger.add([plain_row(name, "environment_steps", environment_steps)], 0.0)


def _add_reward(ledger: Ledger, shop: Workshop, name: str, peer: Peer, unit: Unit, coverage: Coverage) -> None:
    """The same as of our reward: where its map is highest, the order of its cells, its distance to the true one."""
    maze = unit.task.maze
    drawn = reward_map(peer.reward, maze, **section(shop.recipe, "map"))
    ledger.add(recovery_rows(name, drawn, unit.goal))
    ledger.add(order_rows(name, cell_rewards(drawn), maze, unit.goal))
    rewards = {"epic_distance": lambda states: np.asarray(peer.reward.predict(states), dtype=np.float64)}
    ledger.add(epic_rows(name, rewards, unit, coverage))


def _run(ledger: Ledger, shop: Workshop, agents: dict[str, Predictor], unit: Unit) -> None:
    """Success and return in the real environment under the true dense reward, everybody in the same episodes."""
    with environments(unit, shop.recipe, NETWORKS_AT_ONCE) as envs:
        for name, agent in agents.items():
            ledger.begin(f"episodes of {name}")
            result = evaluate_policy(agent, envs, n_episodes(shop.recipe), unit.seed * 1000, deterministic=True)
            ledger.add(result.rows(name))
