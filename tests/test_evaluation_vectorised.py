"""Vectorised environments run the very episodes that single ones run, each counted once, in every mode of
starting anew."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from small import Drift, make_agent
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from rrpolicy.evaluation import evaluate_policy

N_EPISODES = 7


class Fading(gym.Env):
    """Ends early where it begins low: 1 to 12 steps; pays what it shows. Tells success at the end of long episodes."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.length, self.n = int(self.np_random.integers(1, 13)), 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.n += 1
        over = self.n >= self.length
        info = {"success": True, "way": {"length": self.length}} if over and self.length > 6 else {}
        even = self.length % 2 == 0
        return self._shown(), self.n + float(action[0]), over and even, over and not even, info

    def _shown(self) -> np.ndarray:
        return np.array([self.length, self.n], dtype=np.float64)


class Memory:
    """Acts by what it remembers of the episode."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, *_: Any) -> Any:
        count = np.zeros(len(observation)) if state is None else state[0]
        count = np.where(episode_start, 0.0, count)
        return 0.1 * count[:, None], (count + 1,)


def gymnasium(mode: AutoresetMode, kind: Any = SyncVectorEnv) -> Callable[[Any, int], Any]:
    return lambda make, n: kind([make] * n, autoreset_mode=mode)


VECTORISED: dict[str, Callable[[Any, int], Any]] = {
    "sb3": lambda make, n: DummyVecEnv([make] * n),
    "sb3 monitored": lambda make, n: VecMonitor(DummyVecEnv([make] * n)),
    "next step": gymnasium(AutoresetMode.NEXT_STEP),
    "same step": gymnasium(AutoresetMode.SAME_STEP),
    "disabled": gymnasium(AutoresetMode.DISABLED),
    "one buffer": lambda make, n: SyncVectorEnv([make] * n, copy=False, autoreset_mode=AutoresetMode.SAME_STEP),
}  # fmt: skip
PROCESSES: dict[str, Callable[[Any, int], Any]] = {
    "sb3": lambda make, n: SubprocVecEnv([make] * n),
    "gymnasium": gymnasium(AutoresetMode.SAME_STEP, AsyncVectorEnv),
}


def same(one: Any, other: Any) -> None:
    assert one.seeds.tolist() == other.seeds.tolist() and one.lengths.tolist() == other.lengths.tolist()
    assert one.returns == pytest.approx(other.returns, rel=1e-7)  # rewards of SB3 are single precision
    assert np.array_equal(one.successes, other.successes)
    for a, b in zip(one.observations, other.observations, strict=True):
        assert np.array_equal(a, b)


def compare(make: Any, vectorised: Any, agent: Any, seed: int = 3) -> Any:
    alone = evaluate_policy(agent, [make() for _ in range(2)], N_EPISODES, seed, record_observations=True)
    result = evaluate_policy(agent, vectorised, N_EPISODES, seed, record_observations=True)
    same(result, alone)
    vectorised.close()  # it was still open
    return result


@pytest.mark.parametrize("n_envs", [1, 3, 8])
@pytest.mark.parametrize("kind", VECTORISED)
def test_the_episodes_are_those_of_single_environments(kind: str, n_envs: int) -> None:
    result = compare(Fading, VECTORISED[kind](Fading, n_envs), Memory())
    assert len(set(result.lengths.tolist())) > 3 and result.successes.tolist() == (result.lengths > 6).tolist()


@pytest.mark.parametrize("kind", ["sb3", "next step", "disabled"])
def test_a_planner_acts_alike(kind: str) -> None:
    agent = make_agent()
    alone = evaluate_policy(agent, Drift, 4, record_observations=True)
    result = evaluate_policy(agent, VECTORISED[kind](Drift, 4), 4, record_observations=True)
    assert result.returns == pytest.approx(alone.returns, abs=1e-5)


@pytest.mark.parametrize("kind", PROCESSES)
def test_environments_in_other_processes(kind: str) -> None:
    compare(Fading, PROCESSES[kind](Fading, 2), Memory())


def test_short_episodes_are_counted_no_more_often() -> None:
    n = 300
    result = evaluate_policy(Memory(), DummyVecEnv([Fading] * 30), n)
    assert result.lengths.mean() == pytest.approx(6.5, abs=4 * 3.45 / np.sqrt(n))  # the first to end would give 4.6


@pytest.mark.parametrize("kind", VECTORISED)
def test_episodes_are_cut_off_alike(kind: str) -> None:
    env = VECTORISED[kind](Fading, 3)
    result = evaluate_policy(Memory(), env, N_EPISODES, 3, max_episode_steps=5)
    alone = evaluate_policy(Memory(), Fading, N_EPISODES, 3, max_episode_steps=5)
    assert result.lengths.tolist() == alone.lengths.tolist() and max(result.lengths) == 5
    assert result.returns == pytest.approx(alone.returns)


def test_gymnasiums_own_vector_environments_take_their_seed() -> None:
    class Right:
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return np.ones(len(observation), dtype=int), None

    env = gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    one, other = (evaluate_policy(Right(), env, 5, seed=2) for _ in range(2))
    assert one.lengths.tolist() == other.lengths.tolist() and (one.returns == one.lengths).all()
    assert max(one.lengths) < 20
    made = evaluate_policy(Right(), gym.make_vec("CartPole-v1", 3, vectorization_mode="sync"), 5, seed=2)
    assert made.lengths.tolist() == evaluate_policy(Right(), "CartPole-v1", 5, seed=2).lengths.tolist()
    assert made.env_id == "CartPole-v1" and made.registered
