"""Policies keep the bounds of their actions: where they are made, kept and read again."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from helpers.agents import Drift, make_dataset
from stable_baselines3 import PPO, SAC, TD3
from test_finetune import TINY, Meter
from test_spaces import Shapes

from rrpolicy import TrajectoryDataset
from rrpolicy.common.archive import write_archive
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.finetune import finetune
from rrpolicy.rl.policies import load_policy, save_policy
from rrpolicy.rl.td3bc import train_offline

OFF_POLICY: dict[str, Any] = {"buffer_size": 1}
ON_POLICY: dict[str, Any] = {"n_steps": 8, "batch_size": 8}


def untrained(algorithm: Any, env: Any, policy: str = "MlpPolicy") -> Any:
    arguments = ON_POLICY if algorithm is PPO else OFF_POLICY  # SB3 writes into policy_kwargs
    return algorithm(policy, env, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **arguments)


class Lopsided(gym.Env):
    """Actions in [0, 3] and [-5, 1]."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Box(np.array([0, -5], np.float32), np.array([3, 1], np.float32))


OBSERVATIONS = np.random.default_rng(0).normal(0, 30, (64, 3)).astype(np.float32)


@pytest.mark.parametrize("env", ["Pendulum-v1", Lopsided()])
@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_a_kept_policy_reaches_as_far_as_before(algorithm: Any, env: Any, tmp_path: Path) -> None:
    model = untrained(algorithm, env)
    policy = load_policy(save_policy(model, tmp_path / "policy"))
    assert policy.action_space == model.action_space
    wanted, actions = (one.predict(OBSERVATIONS, deterministic=True)[0] for one in (model, policy))
    assert np.array_equal(wanted, actions)
    if algorithm is SAC:
        assert np.abs(actions).max() > 1


def older(policy: Any, kind: str, target: Path, **config: Any) -> Path:
    """The archive of a policy as older versions wrote it, without bounds of actions."""
    dims = [list(space.shape) for space in (policy.observation_space, policy.action_space)]
    return write_archive(target, kind, {"dims": dims, "net_arch": [8], **config}, {"policy": policy.state_dict()})


def test_archives_of_older_versions_keep_their_bounds_of_one(tmp_path: Path) -> None:
    model = untrained(SAC, Drift())
    policy = load_policy(older(model.policy, "sb3-policy", tmp_path / "old", algorithm="SAC"))
    assert (policy.action_space.high == 1).all() and (policy.action_space.low == -1).all()
    observations = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert np.array_equal(*(one.predict(observations, deterministic=True)[0] for one in (model, policy)))


def test_policies_without_flat_boxes_are_not_kept(tmp_path: Path) -> None:
    model = untrained(PPO, "CartPole-v1")
    with pytest.raises(ValueError, match="the action space is Discrete"):
        save_policy(model, tmp_path / "policy")
    dictionary = untrained(SAC, Shapes(), "MultiInputPolicy")
    with pytest.raises(ValueError, match="the observation space is Dict"):
        save_policy(dictionary, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_an_actor_of_td3_keeps_its_bounds(tmp_path: Path) -> None:
    actor = untrained(TD3, "Pendulum-v1").actor
    path = save_policy(actor, tmp_path / "actor")
    again = load_policy(path)
    actions, wanted = again.predict(OBSERVATIONS)[0], actor.predict(OBSERVATIONS)[0]
    assert np.array_equal(actions, wanted) and np.abs(actions).max() > 1
    old = load_policy(older(actor, "offline-policy", tmp_path / "old"))
    assert old.predict(OBSERVATIONS)[0] == pytest.approx(wanted / 2)  # what older versions made of it


# ---------------------------------------------------------------------- learning


def wide() -> TrajectoryDataset:
    """Actions that follow the observation, up to 2 in size."""
    data = make_dataset()
    return TrajectoryDataset.from_arrays(data.observations, 2 * np.clip(data.observations[:, :2], -1, 1))


def test_cloning_beyond_one_wants_the_action_space() -> None:
    data = wide()
    with pytest.raises(ValueError, match=r"action_space has shape \(1,\), wanted \(2,\) as the dataset's actions"):
        clone_behaviour(data, 1, action_space=gym.spaces.Box(-2.0, 2.0, (1,)))
    for space in (None, gym.spaces.Box(-1.5, 1.5, (2,))):
        with pytest.raises(ValueError, match=r"actions \(2,\) reach from -\d\S* to \d\S*, outside Box.* action_space"):
            clone_behaviour(data, 1, action_space=space)
    space = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
    policy = clone_behaviour(data, 300, net_arch=(32,), learning_rate=1e-2, action_space=space)
    actions, _ = policy.predict(data.observations, deterministic=True)
    assert np.abs(actions - data.actions).mean() < 0.2 and np.abs(actions).max() > 1.5


def test_learning_offline_beyond_one_is_refused() -> None:
    data = wide().with_rewards(np.zeros(len(wide())))
    with pytest.raises(ValueError, match="actions reach 2, wanted at most 1"):
        train_offline([data], 8)


# ---------------------------------------------------------------------- one environment


class Own(Meter):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_finetuning_in_an_environment_that_is_handed_out_is_refused() -> None:
    env = Own()
    data = TrajectoryDataset.from_arrays(np.zeros((6, 2)), np.zeros((6, 1)), np.zeros(6))
    with pytest.raises(ValueError, match="make_env gives one and the same environment several times"):
        finetune(lambda: env, data, None, 0, TINY)
    assert not env.closed
    with pytest.raises(ValueError, match=r"dataset is in .* own units, and env is .* NormalizeObservation"):
        finetune(lambda: gym.wrappers.NormalizeObservation(Own()), data, None, 0, TINY)
