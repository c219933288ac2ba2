"""ρ is paid for what was observed and executed in the environment's own units, whatever is wrapped around it."""

import resource
import tracemalloc
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize
from test_wrappers import N_STEPS, Walk, make_reward

from rrpolicy.common.environments import ORIGINAL_REWARD
from rrpolicy.common.spaces import FlatSpaces
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.rewards.transforms import BoundedReward
from rrpolicy.rewards.wrappers import CHUNK, RelativeRewardVecEnv, RelativeRewardWrapper, relabel


class Plain:
    """ρ of (state left, action) or of the state reached: numbers that are read off."""

    heads: tuple[str, ...] = ("step",)

    def __init__(self, plan_actions: bool = True, width: int = 2) -> None:
        self.layout: Any = TrajectoryLayout(observation_dim=2, action_dim=width, horizon=4, plan_actions=plan_actions)

    def predict(self, observations: Any, actions: Any = None) -> Any:
        seen = 100 * observations[:, 0]
        return (seen if actions is None else seen + np.asarray(actions)[:, 0] + 10 * actions[:, 1]).astype(np.float32)


class Reusing(Walk):
    """Fills the same arrays each step, and tells the same dictionary."""

    position = np.zeros(2, np.float32)
    info: dict[str, Any] = {}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        gym.Env.reset(self, seed=seed)
        self.n = 0
        self.position[:] = 0
        return self.position, self.info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.n += 1
        self.position += np.asarray(action, np.float32)
        return self.position, np.array([7.0]), False, self.n == N_STEPS, self.info


def paid(env: gym.Env, actions: Any) -> list[float]:
    env.reset(seed=0)
    return [float(env.step(np.asarray(action, np.float32))[1]) for action in actions]


STEPS = [[0.5, 0.0], [0.25, 0.5], [-1.0, 0.125]]


def test_the_state_left_is_not_overwritten_by_the_state_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reusing, "info", {})  # in which DummyVecEnv writes, in other tests
    fresh, reusing = (RelativeRewardWrapper(env, Plain()) for env in (Walk(), Reusing()))
    wanted = [0.5, 50.25 + 5, 75 - 1 + 1.25]
    assert paid(fresh, STEPS) == pytest.approx(wanted)
    assert paid(reusing, STEPS) == pytest.approx(wanted)
    reusing.reset()
    assert reusing.step(np.zeros(2))[-1][ORIGINAL_REWARD] == 7.0 and Reusing.info == {}


class OneBuffer(DummyVecEnv):
    """Hands out its own arrays and one dictionary for all."""

    told: dict[str, Any] = {}  # noqa: RUF012

    def reset(self) -> Any:
        self.out = np.asarray(super().reset()).copy()
        return self.out

    def step_wait(self) -> Any:
        observations, rewards, dones, _ = super().step_wait()
        self.out[:] = observations
        self.pays = rewards + np.arange(self.num_envs)
        return self.out, self.pays, dones, [self.told] * self.num_envs


def test_vectorised_environments_may_reuse_their_arrays() -> None:
    env = RelativeRewardVecEnv(OneBuffer([Walk, Walk]), Plain())
    shown = env.reset()
    shown[:] = 55.0  # what is done with it is nobody else's business
    actions, values = np.zeros((2, 2), np.float32), []
    for step in STEPS:
        actions[:] = step
        _, rewards, _, infos = env.step(actions)
        values.append(rewards[1])
        assert [info[ORIGINAL_REWARD] for info in infos] == [7.0, 8.0]
    assert values == pytest.approx([0.5, 50.25 + 5, 75 - 1 + 1.25]) and OneBuffer.told == {}


# ---------------------------------------------------------------------- actions


def halved(env: gym.Env) -> gym.Env:
    return wrappers.TransformAction(env, lambda action: action / 2, env.action_space)


ACTION_WRAPPERS: list[tuple[Callable[[gym.Env], gym.Env], list[float]]] = [
    (lambda env: env, [1.0, -0.5]),
    (lambda env: wrappers.RescaleAction(env, np.float32(-50), np.float32(50)), [0.02 * 50, -0.01]),
    (wrappers.ClipAction, [1.0, -0.5]),
    (halved, [1.0, -0.25]),
    (lambda env: halved(wrappers.RescaleAction(env, np.float32(-50), np.float32(50))), [0.5, -0.005]),
    (lambda env: FlatSpaces(wrappers.ClipAction(env)), [1.0, -0.5]),
    (lambda env: wrappers.TimeLimit(wrappers.RescaleAction(env, np.float32(-50), np.float32(50)), 9), [1.0, -0.01]),
]


@pytest.mark.parametrize(("wrap", "executed"), ACTION_WRAPPERS)
def test_rho_is_of_the_action_that_was_executed(wrap: Any, executed: list[float]) -> None:
    given = [50.0, -0.5]
    single = RelativeRewardWrapper(wrap(Walk()), Plain())
    assert paid(single, [given]) == pytest.approx([executed[0] + 10 * executed[1]], rel=1e-5)
    venv = RelativeRewardVecEnv(VecMonitor(DummyVecEnv([lambda: wrap(Walk())] * 2)), Plain())
    venv.reset()
    assert venv.step(np.array([given] * 2, np.float32))[1] == pytest.approx(paid(single, [given]) * 2)


def test_two_actions_that_are_one_are_paid_alike() -> None:
    reward = Plain(width=1)
    reward.layout = TrajectoryLayout(observation_dim=3, action_dim=1, horizon=4)
    reward.predict = lambda o, a=None: np.asarray(a)[:, 0]  # type: ignore[method-assign]
    env = RelativeRewardWrapper(gym.make("Pendulum-v1"), reward)
    env.reset(seed=0)
    assert [env.step(np.array([a], np.float32))[1] for a in (50.0, 2.0, 1.5)] == [2.0, 2.0, 1.5]


def test_a_reward_for_wrapped_units_says_so() -> None:
    env = wrappers.RescaleAction(Walk(), np.float32(-50), np.float32(50))
    assert paid(RelativeRewardWrapper(env, Plain(), wrapped_units=True), [[50.0, -0.5]]) == [45.0]
    venv = RelativeRewardVecEnv(DummyVecEnv([lambda: env]), Plain(), wrapped_units=True)
    venv.reset()
    assert venv.step(np.array([[50.0, -0.5]]))[1].tolist() == [45.0]


class Noisy(gym.ActionWrapper):
    """Executes something else each time that it is asked."""

    def action(self, action: Any) -> Any:
        return action + np.random.normal(size=2)


@pytest.mark.parametrize("kind", [Noisy, lambda env: wrappers.StickyAction(env, 0.5)])
def test_actions_that_cannot_be_followed_are_refused(kind: Any) -> None:
    for make in (
        lambda env: RelativeRewardWrapper(env, Plain()),
        lambda env: RelativeRewardVecEnv(DummyVecEnv([lambda: env]), Plain()),
    ):
        with pytest.raises(ValueError, match=r"wrapped in (Noisy|StickyAction), which changes actions"):
            make(kind(Walk()))
    assert paid(RelativeRewardWrapper(kind(Walk()), Plain(False)), [[0.0, 0.0]])  # states alone are seen as they are
    assert kind(RelativeRewardWrapper(Walk(), Plain())).reset()


# ---------------------------------------------------------------------- observations


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (wrappers.NormalizeObservation, "NormalizeObservation"),
        (lambda env: wrappers.RescaleObservation(env, np.float32(-1), np.float32(1)), "RescaleObservation"),
        (
            lambda env: wrappers.TransformObservation(env, lambda o: 2 * o, env.observation_space),
            "TransformObservation",
        ),
        (lambda env: wrappers.DelayObservation(env, 1), "DelayObservation"),
        (lambda env: wrappers.TimeLimit(wrappers.NormalizeObservation(env), 5), "NormalizeObservation"),
    ],
)
def test_observations_in_other_units_are_refused_by_name(wrap: Any, name: str) -> None:
    for make in (
        lambda: RelativeRewardWrapper(wrap(Walk()), Plain()),
        lambda: RelativeRewardVecEnv(DummyVecEnv([lambda: wrap(Walk())]), Plain(False)),
    ):
        with pytest.raises(ValueError, match=rf"env is wrapped in {name}, which .*: wanted {name} around"):
            make()
    outside = wrap(RelativeRewardWrapper(Walk(), Plain(False)))  # the order that is wanted
    assert paid(outside, STEPS) == pytest.approx([50, 75, -25])


def test_wrappers_that_keep_the_values_are_fine() -> None:
    for wrap in (
        wrappers.FlattenObservation,
        lambda env: wrappers.DtypeObservation(env, np.float64),
        wrappers.RecordEpisodeStatistics,
        wrappers.NormalizeReward,
    ):
        assert paid(RelativeRewardWrapper(wrap(Walk()), Plain(False)), STEPS) == pytest.approx([50, 75, -25])


def test_stacks_and_normalisers_of_sb3_are_refused() -> None:
    venv = DummyVecEnv([Walk])
    for env in (VecNormalize(venv), VecMonitor(VecNormalize(venv, norm_obs=False))):
        with pytest.raises(ValueError, match=r"wrapped in VecNormalize, .*: wanted VecNormalize around"):
            RelativeRewardVecEnv(env, Plain(False))
    for stack in (
        lambda: RelativeRewardVecEnv(VecFrameStack(venv, 2), Plain()),
        lambda: RelativeRewardWrapper(wrappers.FrameStackObservation(Walk(), 2), Plain()),
    ):
        with pytest.raises(ValueError, match=r"shape \(4,\), the reward wants|must be a Box with one dimension"):
            stack()
    normalised = VecNormalize(RelativeRewardVecEnv(venv, Plain(False)))
    normalised.reset()
    normalised.step(np.array([[0.5, 0.0]], np.float32))
    assert normalised.get_original_reward().tolist() == [50.0]


def test_wrappers_in_other_processes_are_refused_too() -> None:
    venv = SubprocVecEnv([lambda: wrappers.ClipAction(Walk())], start_method="fork")
    try:
        with pytest.raises(ValueError, match="wrapped in ActionWrapper, which cannot be followed into another process"):
            RelativeRewardVecEnv(venv, Plain())
        RelativeRewardVecEnv(venv, Plain(False))
    finally:
        venv.close()
    doubled = SubprocVecEnv(
        [lambda: wrappers.TransformObservation(Walk(), lambda x: 2 * x, Walk().observation_space)], start_method="fork"
    )
    flat = SubprocVecEnv([lambda: wrappers.FlattenObservation(Walk())], start_method="fork")
    try:
        with pytest.raises(ValueError, match="wrapped in an ObservationWrapper, which cannot be followed"):
            RelativeRewardVecEnv(doubled, Plain(False))
        RelativeRewardVecEnv(flat, Plain(False))
    finally:
        doubled.close()
        flat.close()


def test_the_environments_own_reward_outlives_two_wrappers() -> None:
    env = RelativeRewardWrapper(RelativeRewardWrapper(Walk(), Plain()), Plain(False))
    env.reset()
    assert env.step(np.ones(2))[-1][ORIGINAL_REWARD] == 7.0
    venv = RelativeRewardVecEnv(DummyVecEnv([lambda: RelativeRewardWrapper(Walk(), Plain())]), Plain(False))
    venv.reset()
    assert venv.step(np.ones((1, 2)))[3][0][ORIGINAL_REWARD] == 7.0


# ---------------------------------------------------------------------- recorded transitions


def test_relabelling_takes_no_more_memory_than_its_result() -> None:
    n = 30 * CHUNK
    data = TrajectoryDataset.from_arrays(np.zeros((n, 2)), np.zeros((n, 2)), episode_lengths=[n])
    reward = make_reward(True)
    relabel(data, reward)  # whatever is made once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    relabelled = relabel(data, reward)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert relabelled.rewards is not None and relabelled.rewards.shape == (n,)
    assert peak < 60 * n and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # bytes, KiB


def test_chunks_change_nothing() -> None:
    rng = np.random.default_rng(0)
    n = CHUNK + 5
    data = TrajectoryDataset.from_arrays(rng.uniform(-5, 5, (n, 2)), rng.uniform(-1, 1, (n, 2)), episode_lengths=[n])
    reward = make_reward(True)
    assert relabel(data, reward).rewards == pytest.approx(reward.predict(data.observations, data.actions), abs=1e-5)


def test_bounds_are_fitted_on_datasets() -> None:
    rng = np.random.default_rng(0)
    data = TrajectoryDataset.from_arrays(rng.uniform(-5, 5, (40, 2)), rng.uniform(-1, 1, (40, 2)))
    reward = make_reward(True)
    assert BoundedReward.fit(reward, data) == BoundedReward.fit(reward, data.observations, data.actions)
    with pytest.raises(ValueError, match="actions was given with a dataset"):
        BoundedReward.fit(reward, data, data.actions)


class Refilled(Walk):
    """Fills one array in resets and in steps, and pays an array."""

    def __init__(self, n_steps: int = N_STEPS) -> None:
        self.buffer, self.n_steps = np.zeros(2, np.float32), n_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.buffer[:] = super().reset(seed=seed)[0]
        return self.buffer, {}

    def step(self, action: Any) -> Any:
        observation, reward, *_ = super().step(action)
        self.buffer[:] = observation
        return self.buffer, np.array([reward]), False, self.n == self.n_steps, {}


@pytest.mark.parametrize("first", [0.0, 0.5])  # where the next episode begins with no move, nothing changes at first
def test_the_last_observation_is_the_episodes_own_where_arrays_are_filled_again(first: float) -> None:
    path = np.cumsum([first, 0.5, 0.5, 0.5, 0.5])
    for kind in (Walk, Refilled):
        base = DummyVecEnv([kind] * 2)
        inside = list(base.envs)
        env = RelativeRewardVecEnv(VecMonitor(base), Plain(False))
        env.reset()
        values, ends = [], []
        for k in range(3 * N_STEPS):
            action = first if k % N_STEPS == 0 else 0.5
            _, rewards, dones, infos = env.step(np.full((2, 2), action, np.float32))
            values.append(float(rewards[1]))
            ends += [info["terminal_observation"].tolist() for info, done in zip(infos, dones, strict=True) if done]
            assert infos[0][ORIGINAL_REWARD] == 7.0
        assert values == pytest.approx(100 * np.tile(path, 3)) and ends == [[path[-1]] * 2] * 6
        assert base.envs == inside


def test_episodes_of_one_step_in_an_array_that_is_filled_again() -> None:
    env = RelativeRewardVecEnv(DummyVecEnv([lambda: Refilled(1)]), Plain(False))
    env.reset()
    for move in (0.0, 0.25, -0.5):
        assert env.step(np.full((1, 2), move, np.float32))[1].tolist() == [100 * move]
