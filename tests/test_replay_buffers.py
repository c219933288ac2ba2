"""Replay buffers of Stable-Baselines3 become datasets of environment units, whatever was scaled or interleaved."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rrpolicy import TrajectoryDataset
from rrpolicy.data import from_replay_buffer, load_dataset

LIMIT = 7


class Counter(gym.Env[Any, Any]):
    """Observes (number of the episode, step); each third episode ends for good after four steps; pays the action."""

    observation_space: gym.Space = spaces.Box(-1e4, 1e4, (2,), np.float32)
    action_space = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))

    def __init__(self, first: int = 0) -> None:
        self.episode = first - 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.at = self.episode + 1, 0
        return self.seen(), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        return self.seen(), float(action.sum()), self.episode % 3 == 2 and self.at == 4, False, {}

    def seen(self) -> Any:
        return np.array([self.episode, self.at], np.float32)


def counters(n: int) -> DummyVecEnv:
    return DummyVecEnv([lambda i=i: gym.wrappers.TimeLimit(Counter(99 * i), LIMIT) for i in range(n)])  # type: ignore[misc]


def trained(n_envs: int = 1, n: int = 60, kind: Any = SAC, **arguments: Any) -> Any:
    model = kind("MlpPolicy", counters(n_envs), buffer_size=1000, learning_starts=10**6, seed=0, **arguments)
    return model.learn(n)


def check(data: TrajectoryDataset, ends_are_known: bool = True) -> list[int]:
    """All rows are what the environment did; gives the numbers of the episodes."""
    names = []
    assert data.rewards is not None
    np.testing.assert_allclose(data.rewards, data.actions.sum(axis=1), atol=1e-4)
    assert data.actions[:, 1].min() >= 0 and data.actions[:, 1].max() > 5 and data.actions[:, 0].min() < -1
    for i in range(data.n_episodes):
        (number,) = np.unique(data.episode(i)["observations"][:, 0]).tolist()
        steps = data.episode(i)["observations"][:, 1]
        assert np.array_equal(np.diff(steps), np.ones(len(steps) - 1))
        names.append(int(number))
        if ends_are_known:
            assert data.terminated is not None and data.truncated is not None
            assert data.terminated[i] == (number % 3 == 2 and steps[-1] == 3)
            assert data.truncated[i] == (number % 3 != 2 and steps[-1] == LIMIT - 1)
    return names


@pytest.mark.parametrize("kind", [SAC, TD3])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_algorithms_give_environment_units_and_whole_episodes(kind: Any, n_envs: int) -> None:
    model = trained(n_envs, kind=kind)
    data = load_dataset(model)
    assert len(data) == 60 and check(data) == sorted(check(data))
    assert len({number // 99 for number in check(data)}) == n_envs
    assert data.metadata == {"source": f"replay buffer of {kind.__name__}"}
    again = from_replay_buffer(model.replay_buffer, scaled=True)
    assert np.array_equal(again.actions, data.actions)


def test_what_is_scaled_must_be_told() -> None:
    buffer = trained().replay_buffer
    for read in (load_dataset, from_replay_buffer):
        with pytest.raises(ValueError, match=r"does not tell whether its actions are scaled.*scaled=True or False"):
            read(buffer)
    assert np.abs(from_replay_buffer(buffer, scaled=False).actions).max() <= 1
    own = ReplayBuffer(4, Counter.observation_space, Counter.action_space, "cpu")
    own.add(np.zeros(2), np.zeros(2), np.array([1.5, 7.0]), np.zeros(1), np.zeros(1), [{}])
    with pytest.raises(ValueError, match="scaled=True, and actions reach 7, wanted at most 1"):
        from_replay_buffer(own, scaled=True)
    assert from_replay_buffer(own, scaled=False).actions.tolist() == [[1.5, 7.0]]
    unit = ReplayBuffer(4, Counter.observation_space, spaces.Box(-1, 1, (2,)), "cpu")
    unit.add(np.zeros(2), np.zeros(2), np.array([0.5, -1.0]), np.zeros(1), np.zeros(1), [{}])
    assert load_dataset(unit).actions.tolist() == [[0.5, -1.0]]


def test_a_full_buffer_begins_with_its_oldest_row() -> None:
    model = SAC("MlpPolicy", counters(1), buffer_size=50, learning_starts=10**6)
    data = load_dataset(model.learn(120))
    assert len(data) == 50
    assert check(data) == sorted(check(data)) and check(data)[0] > 5


def test_buffers_that_save_memory() -> None:
    saving = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    for size, n in ((50, 120), (200, 120)):
        model = SAC("MlpPolicy", counters(1), buffer_size=size, learning_starts=10**6, **saving)
        data = load_dataset(model.learn(n))
        assert len(data) == min(n, size - 1) and data.terminated is None  # time limits are not told apart
        check(data, ends_are_known=False)


def test_learning_again_breaks_an_episode_off() -> None:
    model = trained(n=10)
    data = load_dataset(model.learn(10))  # resets the environment after three steps of its second episode
    assert data.episode_lengths.tolist()[:2] == [7, 3] and check(data)[:3] == [0, 1, 2]
    assert data.truncated is not None and data.truncated.tolist()[:2] == [True, False]


def test_normalised_environments_keep_their_own_units() -> None:
    model = SAC("MlpPolicy", VecNormalize(counters(1)), buffer_size=100, learning_starts=10**6)
    assert check(load_dataset(model.learn(40)))[0] == 0


class Named(Counter):
    observation_space = spaces.Dict({"number": spaces.Box(0, 999, ()), "at": spaces.Box(0, 9, (1,))})

    def seen(self) -> Any:
        return {"number": np.float32(self.episode), "at": np.float32([self.at])}


def test_dictionaries_are_flattened_as_in_environments() -> None:
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Named(), LIMIT)])
    model = SAC("MultiInputPolicy", env, buffer_size=100, learning_starts=10**6).learn(30)
    assert isinstance(model.replay_buffer, DictReplayBuffer)
    data = load_dataset(model)
    assert data.observations[:8].tolist() == [[at, 0] for at in range(7)] + [[0, 1]]  # at, number


def test_other_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        load_dataset(trained(n=0))
    box = spaces.Box(-1, 1, (2,))
    with pytest.raises(ValueError, match="source is a RolloutBuffer, wanted a"):
        from_replay_buffer(RolloutBuffer(3, box, box))  # type: ignore[arg-type]
    discrete = DQN("MlpPolicy", "CartPole-v1", buffer_size=10, learning_starts=100).learn(5)
    with pytest.raises(ValueError, match="Discrete actions are not supported"):
        load_dataset(discrete)
    lost = trained(n=0)
    lost.replay_buffer = None
    with pytest.raises(ValueError, match="the SAC has no replay buffer"):
        load_dataset(lost)
    with pytest.raises(ValueError, match="source is a int, wanted a path"):
        load_dataset(3)  # type: ignore[arg-type]
