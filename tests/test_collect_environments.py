"""What is recorded is in the environment's own units, whatever is wrapped around it and however it hands things out."""

import json
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from helpers.agents import Drift, make_agent
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize
from test_evaluation_rewards import Stake
from test_spaces import Shapes
from test_wrappers import Walk
from test_wrappers_units import OneBuffer, Refilled, Reusing

from rrpolicy.common.spaces import FlatSpaces
from rrpolicy.data.collect import MixtureComponent, collect, collect_mixture


class Steady:
    """Always the same action."""

    def __init__(self, *action: float) -> None:
        self.action = np.array(action, np.float32)

    def predict(self, observation: Any, *_: Any, **__: Any) -> Any:
        return np.tile(self.action, (len(observation), 1)), None


PATH = [[0.5 * k, 0.0] for k in range(5)]


@pytest.mark.parametrize("env", [Walk(), Reusing(), OneBuffer([Walk]), DummyVecEnv([Reusing])])
def test_arrays_that_are_filled_again_are_copied(env: Any) -> None:
    data = collect(Steady(0.5, 0.0), env, 10)
    assert data.observations.tolist() == PATH * 2 and data.rewards is not None and data.rewards.tolist() == [7.0] * 10


def far(venv: Any, **options: Any) -> VecNormalize:
    env = VecNormalize(venv, **options)
    if env.norm_obs:
        env.obs_rms.mean, env.obs_rms.var = np.full(2, 5.0), np.full(2, 4.0)  # type: ignore[union-attr]
    env.ret_rms.var = np.array(100.0)
    return env


def test_the_originals_of_a_normalised_environment_are_recorded() -> None:
    env = far(DummyVecEnv([Walk] * 2))
    model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", buffer_size=1)
    for around in (env, VecMonitor(env)):
        data = collect(model, around, 20, deterministic=True)
        assert data.rewards is not None and data.rewards.tolist() == [7.0] * 20
        for index in range(data.n_episodes):
            episode = data.episode(index)
            assert episode["observations"][0].tolist() == [0.0, 0.0]
            moved = np.cumsum(episode["actions"], axis=0)[:-1]
            assert episode["observations"][1:] == pytest.approx(moved, abs=1e-6)
            wanted, _ = model.predict(env.normalize_obs(episode["observations"]), deterministic=True)
            assert episode["actions"] == pytest.approx(wanted, abs=1e-5)  # it acted on what it was trained on
    assert env.training and env.ret_rms.var == 100.0 and (env.obs_rms.mean == 5.0).all()  # type: ignore[union-attr]


def test_normalised_rewards_alone_suit_every_agent() -> None:
    data = collect(Steady(0.5, 0.0), far(DummyVecEnv([Walk]), norm_obs=False), 5)
    assert data.rewards is not None and data.rewards.tolist() == [7.0] * 5 and data.metadata["returns"] == [35.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: far(DummyVecEnv([Walk])),
            "Steady takes observations in .* own units, and env is wrapped in VecNormalize",
        ),
        (lambda: wrappers.NormalizeObservation(Walk()), "Steady takes .* wrapped in NormalizeObservation"),
        (lambda: wrappers.NormalizeReward(Walk()), "wrapped in NormalizeReward, whose originals cannot be recorded"),
        (lambda: DummyVecEnv([lambda: wrappers.NormalizeReward(Walk())]), "NormalizeReward, whose originals"),
        (
            lambda: VecFrameStack(far(DummyVecEnv([Walk]), norm_obs=False), 2),
            "env has VecFrameStack around VecNormalize",
        ),
        (lambda: gym.vector.SyncVectorEnv([Walk]), "env is a SyncVectorEnv, wanted a gymnasium.Env or a VecEnv"),
        (lambda: gym.make("CartPole-v1"), "flat Box as action_space: .* Discrete actions are not supported"),
    ],
)
def test_what_cannot_be_undone_is_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        collect(Steady(0.5, 0.0), make(), 5)


def test_an_algorithm_in_an_environment_of_gymnasiums_normaliser_is_refused() -> None:
    env = wrappers.NormalizeObservation(Walk())
    model = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu", buffer_size=1)
    with pytest.raises(ValueError, match="NormalizeObservation, whose originals cannot be recorded"):
        collect(model, env, 5)


def test_arrays_as_rewards_and_the_environments_own_reward() -> None:
    class Paying(gym.Wrapper):
        def step(self, action: Any) -> Any:
            observation, _, *ends, info = self.env.step(action)
            return observation, np.array([-1.0]), *ends, {**info, "original_reward": np.array([3.0])}

    data = collect(Steady(0.5, 0.0), wrappers.TransformReward(Walk(), lambda reward: np.array([reward])), 5)
    assert data.rewards is not None and data.rewards.tolist() == [7.0] * 5
    told = collect(Steady(0.5, 0.0), Paying(Walk()), 5)
    assert told.rewards is not None and told.rewards.tolist() == [3.0] * 5
    with pytest.raises(ValueError, match="the environment's reward is a ndarray of shape"):
        collect(Steady(0.5, 0.0), wrappers.TransformReward(Walk(), lambda _: np.ones(3)), 5)  # type: ignore[arg-type]


def test_vectorised_environments_of_the_users_may_pay_arrays() -> None:
    data = collect(Steady(0.5, 0.0), DummyVecEnv([Refilled] * 2), 20)
    assert data.rewards is not None and data.rewards.tolist() == [7.0] * 20
    assert data.observations.tolist() == PATH * 4 and data.metadata["returns"] == [35.0] * 4
    with pytest.raises(ValueError, match=r"reward is a ndarray of shape \(3,\)"):
        collect(Steady(0.5, 0.0), DummyVecEnv([lambda: wrappers.TransformReward(Walk(), lambda _: np.ones(3))]), 5)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_plain_in_what_is_kept() -> None:
    one, other = (
        collect(make_agent(seed=1), Drift(), kind(20), seed=kind(3), deterministic=flag, action_noise=noise)
        for kind, flag, noise in ((int, True, 0.25), (np.int64, np.bool_(True), np.float32(0.25)))
    )
    assert np.array_equal(one.actions, other.actions) and one.metadata == other.metadata
    assert json.loads(json.dumps(other.metadata))["deterministic"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_transitions": 10.5}, "n_transitions is 10.5, it must be a whole number of at least 1"),
        ({"n_transitions": np.nan}, "n_transitions is nan, it must be a whole number"),
        ({"seed": 1.5}, "seed is 1.5, it must be a whole number of at least 0"),
        ({"seed": True}, "seed is True, it must be a whole number"),
        ({"seed": -1}, "seed is -1, it must be a whole number of at least 0"),
        ({"deterministic": "False"}, "deterministic is 'False', it must be True or False"),
        ({"action_noise": True}, "action_noise is True, it must be a number"),
        ({"epsilon": "0.1"}, "epsilon is '0.1', it must be a number"),
    ],
)
def test_what_is_no_such_number_is_refused_before_work(arguments: dict[str, Any], words: str) -> None:
    env = Walk()
    for run in (
        lambda **given: collect(Steady(0.5, 0.0), env, **given),
        lambda **given: collect_mixture([MixtureComponent("a", Steady(0.5, 0.0))], env, **given),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            run(**{"n_transitions": 10, **arguments})
    assert not hasattr(env, "n")  # it was not reset


def test_agents_of_vectors_are_recorded_in_dictionaries_and_grids() -> None:
    agent = make_agent()
    one, other = (collect(agent, env, 10, deterministic=True) for env in (Shapes(), FlatSpaces(Shapes())))
    assert np.array_equal(one.observations, other.observations) and one.observations.shape == (10, 4)
    assert np.array_equal(one.actions, other.actions) and one.actions.shape == (10, 2)


def test_agents_and_environments_with_global_generators_are_repeatable() -> None:
    class Draws(Steady):
        def predict(self, observation: Any, *_: Any, **__: Any) -> Any:
            return np.array([[random.uniform(-1, 1), np.random.uniform(-1, 1)]] * len(observation), np.float32), None

    before = random.getstate()
    one, same, other = (collect(Draws(), Drift(), 8, seed).actions for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other) and random.getstate() == before


class Still:
    def predict(self, observation: Any, *_: Any, **__: Any) -> Any:
        return np.zeros((len(observation), 3)), None


@pytest.mark.parametrize(
    ("make", "scored"),
    [
        (lambda: gym.make("Hopper-v5", max_episode_steps=4), False),
        (lambda: DummyVecEnv([lambda: gym.make("Hopper-v5", healthy_reward=5.0)]), False),
        (lambda: gym.make("Hopper-v4"), False),  # another one than is said
        (lambda: DummyVecEnv([lambda: gym.make("Hopper-v5")]), True),
        (lambda: VecMonitor(DummyVecEnv([lambda: gym.make("Hopper-v5")])), True),
        (lambda: Stake(DummyVecEnv([lambda: gym.make("Hopper-v5")])), False),
    ],
)
def test_mixtures_are_scored_where_the_environment_is_the_registered_one(make: Any, scored: bool) -> None:
    env = make()
    (agent,) = collect_mixture([MixtureComponent("still", Still())], env, 400, env_id="Hopper-v5").metadata["agents"]
    assert agent["returns"] and ("normalized_score" in agent) == scored
    env.close()


def test_environments_in_other_processes_are_recorded_without_a_score() -> None:
    env = SubprocVecEnv([lambda: gym.make("Hopper-v5")], start_method="fork")
    try:
        (agent,) = collect_mixture([MixtureComponent("still", Still())], env, 200, env_id="Hopper-v5").metadata[
            "agents"
        ]
    finally:
        env.close()
    assert agent["returns"] and "normalized_score" not in agent  # what they are cannot be seen from here
