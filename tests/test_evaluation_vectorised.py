"""Vectorised environments run the very episodes that single ones run, each counted once, in every mode of
starting anew."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector
from helpers.agents import Drift, make_agent
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecMonitor,
)

from rrpolicy.evaluation import evaluate

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
}
PROCESSES: dict[str, Callable[[Any, int], Any]] = {
    "sb3": lambda make, n: SubprocVecEnv([make] * n, start_method="fork"),
    "gymnasium": gymnasium(AutoresetMode.SAME_STEP, AsyncVectorEnv),
}


def same(one: Any, other: Any) -> None:
    assert one.seeds.tolist() == other.seeds.tolist() and one.lengths.tolist() == other.lengths.tolist()
    assert one.returns == pytest.approx(other.returns, rel=1e-7)  # rewards of SB3 are single precision
    assert np.array_equal(one.successes, other.successes)
    for a, b in zip(one.observations, other.observations, strict=True):
        assert np.array_equal(a, b)


def compare(make: Any, vectorised: Any, agent: Any, seed: int = 3) -> Any:
    alone = evaluate(agent, [make() for _ in range(2)], N_EPISODES, seed=seed, record_observations=True)
    result = evaluate(agent, vectorised, N_EPISODES, seed=seed, record_observations=True)
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
    alone = evaluate(agent, Drift, 4, record_observations=True)
    result = evaluate(agent, VECTORISED[kind](Drift, 4), 4, record_observations=True)
    assert result.returns == pytest.approx(alone.returns, abs=1e-5)


@pytest.mark.parametrize("kind", PROCESSES)
def test_environments_in_other_processes(kind: str) -> None:
    compare(Fading, PROCESSES[kind](Fading, 2), Memory())


def test_short_episodes_are_counted_no_more_often() -> None:
    n = 300
    result = evaluate(Memory(), DummyVecEnv([Fading] * 30), n)
    assert result.lengths.mean() == pytest.approx(6.5, abs=4 * 3.45 / np.sqrt(n))  # the first to end would give 4.6


@pytest.mark.parametrize("kind", VECTORISED)
def test_episodes_are_cut_off_alike(kind: str) -> None:
    env = VECTORISED[kind](Fading, 3)
    result = evaluate(Memory(), env, N_EPISODES, seed=3, max_episode_steps=5)
    alone = evaluate(Memory(), Fading, N_EPISODES, seed=3, max_episode_steps=5)
    assert result.lengths.tolist() == alone.lengths.tolist() and max(result.lengths) == 5
    assert result.returns == pytest.approx(alone.returns)


def test_gymnasiums_own_vector_environments_take_their_seed() -> None:
    class Right:
        def predict(self, observation: np.ndarray, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return np.ones(len(observation), dtype=int), None

    env = gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    one, other = (evaluate(Right(), env, 5, seed=2) for _ in range(2))
    assert one.lengths.tolist() == other.lengths.tolist() and (one.returns == one.lengths).all()
    assert max(one.lengths) < 20
    made = evaluate(Right(), gym.make_vec("CartPole-v1", 3, vectorization_mode="sync"), 5, seed=2)
    assert made.lengths.tolist() == evaluate(Right(), "CartPole-v1", 5, seed=2).lengths.tolist()
    assert made.env_id == "CartPole-v1" and made.registered


# ---------------------------------------------------------------------- arrays that are filled again


class Refilled(Fading):
    """Fills one array again, which all environments of a process share, and one ``info``; rewards and ends are arrays,
    too."""

    buffer = np.zeros(2)
    told: dict[str, Any] = {}  # noqa: RUF012

    def step(self, action: Any) -> Any:
        observation, reward, *ends, info = super().step(action)
        self.told.clear()
        self.told.update(info)
        return observation, np.array([reward]), *(np.array([end]) for end in ends), self.told

    def _shown(self) -> np.ndarray:
        self.buffer[:] = super()._shown()
        return self.buffer


@pytest.mark.parametrize("kind", VECTORISED)
def test_every_observation_is_the_episodes_own_where_arrays_are_filled_again(kind: str) -> None:
    vectorised = VECTORISED[kind](Refilled, 3)
    inside = list(vectorised.unwrapped.envs)
    alone = evaluate(Memory(), Fading, N_EPISODES, seed=3, record_observations=True)
    same(evaluate(Memory(), vectorised, N_EPISODES, seed=3, record_observations=True), alone)
    assert list(vectorised.unwrapped.envs) == inside  # they are only copied from meanwhile


@pytest.mark.parametrize("kind", PROCESSES)
def test_in_other_processes_lost_observations_are_an_error_if_they_are_wanted(kind: str) -> None:
    vectorised = PROCESSES[kind](Refilled, 2)
    result = evaluate(Memory(), vectorised, N_EPISODES, seed=3)
    alone = evaluate(Memory(), Fading, N_EPISODES, seed=3)
    assert result.returns == pytest.approx(alone.returns) and result.lengths.tolist() == alone.lengths.tolist()
    with pytest.raises(ValueError, match="the last observation of every episode is the first one of the next"):
        evaluate(Memory(), vectorised, N_EPISODES, seed=3, record_observations=True)
    vectorised.close()


class Elsewhere(VecEnvWrapper):
    """Gives the first observation of the next episode as the last one."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones):
            infos[i]["terminal_observation"] = observations[i]
        return observations, rewards, dones, infos


def test_what_never_changes_is_not_lost() -> None:
    class Constant(Fading):
        def _shown(self) -> np.ndarray:
            return np.ones(2)

    result = evaluate(Memory(), Elsewhere(DummyVecEnv([Constant] * 2)), 4, record_observations=True)
    assert result.observations is not None and all((seen == 1).all() for seen in result.observations)
    with pytest.raises(ValueError, match="the last observation of every episode"):
        evaluate(Memory(), Elsewhere(DummyVecEnv([Fading] * 2)), 4, record_observations=True)


# ---------------------------------------------------------------------- actions in parts


class Parts(gym.Env):
    """Actions in parts; pays a number in which each of their entries has a digit."""

    def __init__(self, pairs: bool = False) -> None:
        one, grid = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Box(-9, 9, (2, 1), np.float32)
        self.pairs = pairs
        self.observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
        self.action_space = (
            gym.spaces.Tuple([one, gym.spaces.Dict(b=grid)]) if pairs else gym.spaces.Dict({"z": one, "a": grid})
        )

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.n = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.n += 1
        one, grid = (action[0], action[1]["b"]) if self.pairs else (action["z"], action["a"])
        return np.zeros(1, np.float32), float(100 * one[0] + 10 * grid[0, 0] + grid[1, 0]), self.n == 2, False, {}


class Digits:
    """Acts in vectors: environment i gets i, i + 1 and i + 2."""

    observation_space = gym.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gym.spaces.Box(-9, 9, (3,), np.float32)

    def predict(self, observation: Any, *_: Any) -> Any:
        return np.arange(len(observation), dtype=np.float32)[:, None] + np.arange(3, dtype=np.float32), None


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("kind", VECTORISED)
def test_vectors_of_actions_are_taken_apart_as_in_single_environments(kind: str, pairs: bool) -> None:
    wanted = [12.0, 123.0, 234.0] if pairs else [201.0, 312.0, 423.0]  # a Dict's keys are in order, a before z
    single = evaluate(Digits(), lambda: Parts(pairs), 3)
    result = evaluate(Digits(), VECTORISED[kind](lambda: Parts(pairs), 3), 3)
    assert single.returns.tolist() == result.returns.tolist() == [2 * value for value in wanted]


def test_actions_that_cannot_be_taken_apart_are_refused() -> None:
    class Wide(Digits):
        def predict(self, observation: Any, *_: Any) -> Any:
            return np.zeros((len(observation), 4), np.float32), None

    class Button(Parts):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Dict(z=gym.spaces.Discrete(3))

    with pytest.raises(ValueError, match=r"actions have shape \(2, 4\), wanted \(2, 3\) for the action space Dict"):
        evaluate(Wide(), SyncVectorEnv([Parts] * 2), 2)
    with pytest.raises(ValueError, match="Discrete actions are not supported"):
        evaluate(Digits(), SyncVectorEnv([Button] * 2), 2)


def test_infos_may_come_as_a_list() -> None:
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        compare(Fading, vector.DictInfoToList(SyncVectorEnv([Fading] * 3, autoreset_mode=mode)), Memory())


# ---------------------------------------------------------------------- numbers of numpy


@pytest.mark.parametrize(
    "make", [Drift, lambda: Drift, lambda: DummyVecEnv([Drift] * 2), lambda: SyncVectorEnv([Drift] * 2)]
)
@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_seeds_and_flags_may_be_numpys(make: Any, kind: Any) -> None:
    def run(seed: Any, flag: Any) -> Any:
        agent = make_agent(seed=1)
        return evaluate(agent, make(), kind(3), seed=seed, deterministic=flag, record_observations=flag)

    one, other = run(3, True), run(kind(3), np.bool_(True))
    assert one.returns.tolist() == other.returns.tolist() and other.seeds.tolist() == [3, 4, 5]
    assert one.observations is not None and np.array_equal(one.observations[0], other.observations[0])
