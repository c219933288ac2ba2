"""Environments as users bring them: one given several times, reused buffers, rewards as arrays, success told late or
only when it happens, no time limit, normalised units."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import Drift, make_agent
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from rrpolicy.common.spaces import unnormalised
from rrpolicy.evaluation import MAX_EPISODE_STEPS, evaluate
from rrpolicy.evaluation import episodes as episodes_module

LENGTH = 6


class Counting(gym.Env):
    """Shows and pays the number of the step, for ``LENGTH`` steps."""

    observation_space = gym.spaces.Box(-100.0, 100.0, (1,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    shared = np.zeros(1)

    def __init__(self, reward: Any = float, endless: bool = False, tells: Any = None) -> None:
        self.reward, self.endless, self.tells = reward, endless, tells
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seed, self.n = seed, 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict]:
        self.n += 1
        info = {} if self.tells is None else self.tells(self.seed, self.n)
        return self._shown(), self.reward(self.n), not self.endless and self.n >= LENGTH, False, info

    def _shown(self) -> np.ndarray:
        self.shared[0] = self.n  # the same array, in every environment
        return self.shared

    def close(self) -> None:
        self.closed = True


class Zero:
    """Does nothing, and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        self.seen.append(np.asarray(observation))
        return np.zeros((len(observation), 1), np.float32), None


# ---------------------------------------------------------------------- one environment, several times


@pytest.mark.parametrize("n", [1, 4])
def test_a_function_that_hands_out_one_environment_is_refused_and_it_stays_open(n: int) -> None:
    env = Counting()
    with pytest.raises(ValueError, match="env gives one and the same environment several times"):
        evaluate(Zero(), lambda: env, n)
    with pytest.raises(ValueError, match="one and the same environment"):
        evaluate(Zero(), lambda: gym.wrappers.TimeLimit(env, 3), n)
    assert not env.closed


def test_lists_and_vectors_of_one_environment_are_refused() -> None:
    env = Counting()
    for several in ([env] * 4, [env, gym.wrappers.TimeLimit(env, 3)], gym.vector.SyncVectorEnv([lambda: env] * 2)):
        with pytest.raises(ValueError, match="one and the same environment"):
            evaluate(Zero(), several, 4)
    assert not env.closed
    assert evaluate(Zero(), env, 4).lengths.tolist() == [LENGTH] * 4 and not env.closed


def test_what_was_made_is_closed_when_making_fails() -> None:
    made: list[Counting] = []

    def make() -> gym.Env:
        if len(made) == 2:
            raise RuntimeError("no licence")
        made.append(Counting())
        return made[-1]

    with pytest.raises(RuntimeError, match="no licence"):
        evaluate(Zero(), make, 3)
    assert [env.closed for env in made] == [True, True]
    with pytest.raises(ValueError, match="makes a DummyVecEnv, wanted one that makes"):
        evaluate(Zero(), lambda: DummyVecEnv([Counting]), 2)  # type: ignore[arg-type, return-value]


# ---------------------------------------------------------------------- buffers, rewards, ends


def test_observations_are_copied_from_a_buffer_that_all_environments_share() -> None:
    agent = Zero()
    result = evaluate(agent, Counting, 3, n_envs=2, record_observations=True)
    assert result.observations is not None
    assert all(seen[:, 0].tolist() == list(range(LENGTH + 1)) for seen in result.observations)
    assert [row.ravel().tolist() for row in agent.seen[:LENGTH]] == [[k, k] for k in range(LENGTH)]


def test_rewards_may_be_arrays_of_one_number_in_a_reused_buffer() -> None:
    buffer = np.zeros(1)

    def pay(n: int) -> np.ndarray:
        buffer[0] = n
        return buffer

    assert evaluate(Zero(), lambda: Counting(pay), 2).returns.tolist() == [LENGTH * (LENGTH + 1) / 2] * 2
    for kind in (DummyVecEnv, gym.vector.SyncVectorEnv):
        vectorised = kind([lambda: Counting(pay)] * 2)
        assert evaluate(Zero(), vectorised, 2).returns.tolist() == [LENGTH * (LENGTH + 1) / 2] * 2
    assert evaluate(Zero(), lambda: Counting(np.float32), 1).returns.tolist() == [21.0]
    assert evaluate(Zero(), lambda: Counting(torch.tensor), 1).returns.tolist() == [21.0]


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (lambda n: np.ones(2), r"reward is a ndarray of shape \(2,\)"),
        (lambda n: None, "reward is a NoneType"),
        (lambda n: "1", "reward is a str"),
        (lambda n: [[1.0], 2.0], "reward is a list"),
        (lambda n: {"sum": 1.0}, "reward is a dict"),
    ],
)
def test_other_rewards_are_refused_by_name(reward: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"the environment's {words}.*wanted one number"):
        evaluate(Zero(), lambda: Counting(reward), 1)
    for kind in (DummyVecEnv, gym.vector.SyncVectorEnv):
        with pytest.raises(ValueError, match=f"the environment's {words}.*wanted one number"):
            evaluate(Zero(), kind([lambda: Counting(reward)]), 1)


def test_episodes_without_a_time_limit_end_when_told_or_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(Zero(), lambda: Counting(endless=True), 3, n_envs=2, max_episode_steps=9)
    assert result.lengths.tolist() == [9, 9, 9] and result.returns.tolist() == [45.0] * 3
    assert evaluate(Zero(), Counting, 1, max_episode_steps=2).lengths.tolist() == [2]
    assert MAX_EPISODE_STEPS == 100_000
    monkeypatch.setattr(episodes_module, "MAX_EPISODE_STEPS", 50)
    with pytest.raises(ValueError, match="after 50 steps and no time limit is known: wanted max_episode_steps"):
        evaluate(Zero(), lambda: Counting(endless=True), 2)
    with pytest.raises(ValueError, match="has not ended after 50 steps"):
        evaluate(Zero(), DummyVecEnv([lambda: Counting(endless=True)]), 2)
    limited = gym.wrappers.TimeLimit(Counting(endless=True), 80)  # no id, but an end
    assert evaluate(Zero(), limited, 1).lengths.tolist() == [80]
    with pytest.raises(ValueError, match="max_episode_steps is 0"):
        evaluate(Zero(), Counting, 1, max_episode_steps=0)


def test_the_environments_own_reward_is_summed_where_a_wrapper_tells_it() -> None:
    class Paying(gym.Wrapper):
        def step(self, action: Any) -> Any:
            observation, reward, *ends, info = self.env.step(action)
            return observation, -1.0, *ends, {**info, "original_reward": reward}

    for env in (Paying(Counting()), DummyVecEnv([lambda: Paying(Counting())])):
        assert evaluate(Zero(), env, 2).returns.tolist() == [21.0, 21.0]


# ---------------------------------------------------------------------- success


def only_success(seed: int, n: int) -> dict[str, Any]:
    """Told in episodes of even seeds alone, at the end."""
    return {"success": True} if seed % 2 == 0 and n == LENGTH else {}


def passing(seed: int, n: int) -> dict[str, Any]:
    """In the middle of each episode, and never said to be over."""
    return {"is_success": True} if n == 3 else {}


def test_a_missing_key_is_a_failure_once_any_episode_had_it() -> None:
    result = evaluate(Zero(), lambda: Counting(tells=only_success), 5)
    assert result.successes is not None and result.successes.tolist() == [True, False, True, False, True]
    assert result.success_rate == result.success_once_rate == pytest.approx(0.6)
    silent = evaluate(Zero(), lambda: Counting(tells=only_success), 1, seed=1)
    assert silent.success_rate is None and silent.success_once_rate is None  # nothing was ever told


def test_success_may_be_a_number_or_an_array_of_one() -> None:
    for value in (np.array([True]), 1.0, np.bool_(True)):
        assert evaluate(Zero(), lambda v=value: Counting(tells=lambda *_: {"success": v}), 1).success_rate == 1
    with pytest.raises(ValueError, match=r"info\['is_success'\] is a ndarray of shape \(2,\).*wanted one number"):
        evaluate(Zero(), lambda: Counting(tells=lambda *_: {"is_success": np.ones(2)}), 1)


def test_success_at_the_end_and_on_the_way_are_two_numbers() -> None:
    result = evaluate(Zero(), lambda: Counting(tells=passing), 3)
    assert (result.success_rate, result.success_once_rate) == (0.0, 1.0)
    assert result.values("success_once_rate").tolist() == [True] * 3
    vectorised = evaluate(Zero(), gym.vector.SyncVectorEnv([lambda: Counting(tells=passing)] * 2), 3)
    assert (vectorised.success_rate, vectorised.success_once_rate) == (0.0, 1.0)


# ---------------------------------------------------------------------- seeds


class Drawing(Zero):
    """Draws from one of the generators there are."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return np.full((len(observation), 2), self.draw(), np.float32), None


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_every_global_generator_is_seeded_and_put_back(draw: Any) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    first, again, other = (
        evaluate(Drawing(draw), Drift, 3, seed=seed, deterministic=False).returns for seed in (3, 3, 4)
    )
    assert first.tolist() == again.tolist() != other.tolist()
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]


def test_an_agent_with_a_generator_of_its_own_is_seeded_if_it_can_be() -> None:
    class Own(Zero):
        rng = np.random.default_rng()

        def set_random_seed(self, seed: int) -> None:
            self.rng = np.random.default_rng(seed)

        def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
            return self.rng.uniform(-1, 1, (len(observation), 2)), None

    agent = Own()
    first, again = (evaluate(agent, Drift, 3, seed=3).returns.tolist() for _ in range(2))
    assert first == again


# ---------------------------------------------------------------------- normalised environments


def shifted(normalised: VecNormalize) -> VecNormalize:
    """With statistics far from what they would be anew."""
    assert not isinstance(normalised.obs_rms, dict)
    normalised.obs_rms.mean, normalised.obs_rms.var = np.full(4, 2.0), np.full(4, 9.0)
    normalised.ret_rms.var = np.array(100.0)
    return normalised


def test_a_planner_does_not_act_on_normalised_observations() -> None:
    agent = make_agent()
    venv = DummyVecEnv([Drift])
    for env in (
        VecNormalize(venv),
        gym.wrappers.NormalizeObservation(Drift()),
        DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(Drift())]),
        gym.wrappers.vector.NormalizeObservation(gym.vector.SyncVectorEnv([Drift])),
    ):
        with pytest.raises(ValueError, match=r"DiffusionAgent takes .* own units, and env is .* (Vec)?Norm"):
            evaluate(agent, env, 1)
    fixed = gym.wrappers.RescaleObservation(Bounded(), np.float32(-1), np.float32(1))  # units that do not move
    assert evaluate(agent, fixed, 1).lengths.tolist() == [10]
    assert evaluate(agent, unnormalised(VecNormalize(venv)), 1).lengths.tolist() == [10]
    with pytest.raises(ValueError, match="wrapped in VecNormalize"):
        unnormalised(VecFrameStack(VecNormalize(venv), 2))


class Bounded(Drift):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-9.0, 9.0, (4,), np.float32)


def test_rewards_that_are_normalised_are_counted_as_they_were() -> None:
    plain = evaluate(make_agent(), DummyVecEnv([Drift] * 2), 4)
    scaled = VecNormalize(DummyVecEnv([Drift] * 2), norm_obs=False)
    assert evaluate(make_agent(), scaled, 4).returns == pytest.approx(plain.returns, rel=1e-6)


def test_an_algorithm_acts_on_what_it_was_trained_on_and_moves_no_statistics() -> None:
    env = shifted(VecNormalize(DummyVecEnv([Drift] * 2)))
    model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", buffer_size=1)
    result = evaluate(model, env, 3, record_observations=True)
    assert env.training and env.ret_rms.var == 100.0 and (env.obs_rms.mean == 2.0).all()  # type: ignore[union-attr]
    assert result.observations is not None
    single = Drift()
    for index, seen in enumerate(result.observations):  # in the environment's own units
        observation, _ = single.reset(seed=index)
        total = 0.0
        for step in range(10):
            assert seen[step] == pytest.approx(observation, abs=1e-6)
            action, _ = model.predict(env.normalize_obs(observation[None]), deterministic=True)
            observation, reward, *_ = single.step(action[0])
            total += reward
        assert result.returns[index] == pytest.approx(total, abs=1e-6)
    with pytest.raises(ValueError, match="env has VecFrameStack around VecNormalize"):
        evaluate(model, VecFrameStack(env, 1), 1)
