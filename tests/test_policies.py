"""Policies of other learners: they act as the algorithm did after their archive, wherever they are loaded from."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import Drift, make_agent, make_dataset
from helpers.forged import forge
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from rrpolicy import zoo
from rrpolicy.common.archive import read_archive
from rrpolicy.evaluation import evaluate
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.policies import POLICY_KIND, ActionRepeat, Sb3Agent, load_policy, save_policy
from rrpolicy.rl.sb3_files import load_sb3_agent

OBSERVATIONS = np.random.default_rng(0).normal(0, 3, (5, 4)).astype(np.float32)
ALGORITHMS = [PPO, A2C, SAC, TD3, DDPG]


def algorithm_of(kind: Any, env: Any = None, **policy_kwargs: Any) -> Any:
    """An untrained algorithm with small networks."""
    more = {} if kind in (PPO, A2C) else {"buffer_size": 1}
    chosen = {"net_arch": [8, 4], **policy_kwargs}
    return kind("MlpPolicy", Drift() if env is None else env, policy_kwargs=chosen, seed=0, device="cpu", **more)


def policy_of(kind: Any) -> BasePolicy:
    return algorithm_of(kind).policy


def actions_of(agent: Any, deterministic: bool = True) -> np.ndarray:
    torch.manual_seed(1)
    return agent.predict(OBSERVATIONS, deterministic=deterministic)[0]


# ---------------------------------------------------------------------- archives


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_kept_policy_acts_as_the_algorithm_did(tmp_path: Path, kind: Any) -> None:
    model = algorithm_of(kind)
    path = save_policy(model, tmp_path / "new" / "policy", {"decisions": 32})
    again = load_policy(path, Drift())
    for deterministic in (True, False):
        assert np.array_equal(actions_of(again, deterministic), actions_of(model, deterministic))
    assert path.name == "policy.zip" and isinstance(again, Sb3Agent) and again.algorithm == kind.__name__
    assert (again.observation_space, again.action_space) == (model.observation_space, model.action_space)
    archive = read_archive(path, POLICY_KIND)
    assert archive.card == {"decisions": 32}
    assert not any("critic" in name for name in archive.tensors["policy"])


def test_activations_and_clones_are_kept(tmp_path: Path) -> None:
    model = algorithm_of(PPO, net_arch={"pi": [8], "vf": []}, activation_fn=nn.ELU)
    clone = clone_behaviour(make_dataset(), 3, net_arch=(8,))
    for policy in (model, clone, model.policy, Sb3Agent(clone, "cloning")):
        assert np.array_equal(actions_of(load_policy(save_policy(policy, tmp_path / "a"))), actions_of(policy))
    again = load_policy(save_policy(clone, tmp_path / "b", algorithm="cloning"), Drift())
    assert isinstance(again, Sb3Agent) and again.algorithm == "cloning"


def test_the_number_of_steps_that_an_action_is_held_is_kept(tmp_path: Path) -> None:
    held = ActionRepeat(algorithm_of(PPO), 3)
    again = load_policy(save_policy(held, tmp_path / "policy"))
    assert isinstance(again, ActionRepeat) and again.n_steps == 3
    assert again.observation_space == held.observation_space == Drift().observation_space
    wanted, found = (evaluate(agent, Drift, 3, record_observations=True) for agent in (held, again))
    assert all(np.array_equal(*both) for both in zip(wanted.observations or (), found.observations or (), strict=True))


def test_statistics_of_normalised_observations_are_kept(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([Drift]), clip_obs=2.0)
    env.obs_rms.mean, env.obs_rms.var = np.arange(4.0), np.full(4, 9.0)
    model = algorithm_of(SAC, env)
    again = load_policy(save_policy(model, tmp_path / "policy"))
    wanted, _ = model.predict(env.normalize_obs(OBSERVATIONS), deterministic=True)
    np.testing.assert_allclose(actions_of(again), wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(actions_of(model), wanted)


def test_policies_that_could_not_be_rebuilt_are_refused(tmp_path: Path) -> None:
    for model, words in (
        (algorithm_of(PPO, activation_fn=nn.GELU), "activation_fn is GELU, wanted one of ReLU, Tanh"),
        (SAC("MlpPolicy", Drift(), use_sde=True, buffer_size=1), "state-dependent exploration"),
        (make_agent(), "policy is a DiffusionAgent, wanted an algorithm or a policy of Stable-Baselines3"),
        (algorithm_of(PPO, "CartPole-v1"), "the action space is Discrete"),
    ):
        with pytest.raises(ValueError, match=words):
            save_policy(model, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "nothing")


def changed(path: Path, target: Path, **config: Any) -> Path:
    """The archive with other entries of its configuration."""
    archive = read_archive(path)
    return forge(target, archive.kind, {**archive.config, **config}, archive.tensors)


def test_archives_whose_parts_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = save_policy(algorithm_of(SAC), tmp_path / "policy")
    huge = {"low": [None] * 2**16, "high": [None] * 2**16, "dtype": "float32"}
    for config, words in (
        ({"network": "convolution"}, "network"),
        ({"network": "deterministic"}, "has no (layer|tensor)|unknown tensor"),
        ({"activation": "Softmax"}, "activation"),
        ({"observation_space": huge}, "no layer of shape"),
        ({"action_space": {"low": [None, -1], "high": [1, 1], "dtype": "float32"}}, "scaled to their bounds"),
        ({"action_repeat": 0}, "action_repeat"),
        ({"statistics": {"clip": 10, "epsilon": 1e-8}}, "statistics"),
    ):
        with pytest.raises(ValueError, match=words):
            load_policy(changed(path, tmp_path / "other.zip", **config))
    with pytest.raises(ValueError, match=r"algorithm: .* 'PPO' or 'SAC', got DQN"):
        load_policy(forge(tmp_path / "old.zip", "sb3-policy", {"algorithm": "DQN"}, {}))


# ---------------------------------------------------------------------- environments and the zoo


def test_a_policy_is_compared_with_the_environment_it_is_loaded_for(tmp_path: Path) -> None:
    path = save_policy(algorithm_of(SAC, "Pendulum-v1"), tmp_path / "pendulum")
    assert load_policy(path, "Pendulum-v1", "cpu").action_space.high.tolist() == [2.0]
    for env in (Drift(), DummyVecEnv([Drift])):
        with pytest.raises(ValueError, match="made for the observation space"):
            load_policy(path, env)
    with pytest.raises(ValueError, match="env is wrapped in NormalizeObservation"):
        load_policy(path, gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1")))


def test_the_zoo_loads_policies(tmp_path: Path) -> None:
    path = save_policy(algorithm_of(TD3, "Pendulum-v1"), tmp_path / "policy", {"environment": "Pendulum-v1"})
    for name in (path, tmp_path / "policy", tmp_path):
        assert isinstance(zoo.load(name, "Pendulum-v1"), Sb3Agent)
    assert zoo.card(path) == {"environment": "Pendulum-v1"}
    with pytest.raises(ValueError, match="the name of an archive has 5000 characters"):
        zoo.load("x" * 5000)
    with pytest.raises(ValueError, match="made for the observation space"):
        zoo.load(path, env=Drift())
    with pytest.raises(ValueError, match="holds a 'policy', wanted 'agent'"):
        zoo.load_agent(path)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_an_agent_of_a_file_of_stable_baselines3_can_be_kept(tmp_path: Path, kind: Any) -> None:
    model = algorithm_of(kind)
    file = tmp_path / f"{kind.__name__.lower()}-model.zip"
    model.save(file)
    env = Drift()
    read = load_sb3_agent(file, "Drift", env.observation_space, env.action_space)
    assert np.array_equal(actions_of(zoo.load(file, env)), actions_of(model))
    with pytest.raises(ValueError, match="to take its weights for an environment give env"):
        zoo.load(file)
    assert np.array_equal(actions_of(load_policy(save_policy(read, tmp_path / "kept"))), actions_of(model))


# ---------------------------------------------------------------------- acting


class Counter:
    """The action is the observation and the number of decisions since the episode began; that number is the memory."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = None) -> Any:
        self.batches.append(len(observation))
        (count,) = (np.zeros(len(observation)),) if state is None else state
        count = np.where(episode_start, 0, count) + 1
        return np.stack([observation[:, 0], count], axis=1), (count,)


def test_actions_are_held_and_each_environment_keeps_its_own_time() -> None:
    inner = Counter()
    agent, state, chosen = ActionRepeat(inner, 3), None, []
    starts = np.zeros((8, 2), dtype=bool)
    starts[0] = starts[4, 1] = True
    for step in range(8):
        before = None if state is None else [array.copy() for array in state]
        old = state
        actions, state = agent.predict(np.full((2, 1), float(step)), state, starts[step])
        if old is not None and before is not None:
            assert all(np.array_equal(a, b) for a, b in zip(old, before, strict=True))  # inputs are left alone
        chosen.append(actions)
    assert np.array(chosen)[:, 0].tolist() == [[0, 1]] * 3 + [[3, 2]] * 3 + [[6, 3]] * 2
    assert np.array(chosen)[:, 1].tolist() == [[0, 1]] * 3 + [[3, 2]] + [[4, 1]] * 3 + [[7, 2]]
    assert inner.batches == [2, 2, 1, 1, 1]


def test_one_observation_is_a_batch_of_one_and_agents_without_memory_are_fine() -> None:
    agent = ActionRepeat(make_agent(), 2)
    action, state = agent.predict(np.zeros(4), deterministic=True)
    assert action.shape == (2,)
    again, state = agent.predict(np.ones(4), state, np.array([False]), deterministic=True)
    assert np.array_equal(action, again)
    fresh, _ = agent.predict(np.ones(4), state, np.array([True]), deterministic=True)
    assert not np.array_equal(action, fresh)
    memoryless = ActionRepeat(policy_of(PPO), 3)
    assert evaluate(memoryless, Drift, 3, n_envs=2).lengths.tolist() == [10] * 3
    with pytest.raises(ValueError, match="n_steps is 0"):
        ActionRepeat(make_agent(), 0)
