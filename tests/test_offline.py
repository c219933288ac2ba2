"""TD3+BC as a reference: what d3rlpy is given, what is kept of it, and with d3rlpy itself that it learns from data."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stand_in_d3rlpy import layers, stand_in

from rrpolicy import TrajectoryDataset
from rrpolicy.rl.policies import load_policy, save_policy
from rrpolicy.rl.td3bc import OfflineSettings, train_offline

LENGTHS = (8, 3, 5)  # at a limit of 8 one is cut off, one ends for good, one was still under way
MEAN, STD = np.array([3.0, -1.0]), np.array([2.0, 0.1])


def dataset(n_copies: int = 1, seed: int = 0) -> TrajectoryDataset:
    """Random actions far from the origin of states; what pays is an action of (0.5, minus the first state's sign)."""
    rng = np.random.default_rng(seed)
    n = sum(LENGTHS) * n_copies
    states, actions = rng.normal(size=(n, 2)), rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    rewards = -((actions - best(states)) ** 2).sum(axis=1)
    whole = TrajectoryDataset.from_arrays(MEAN + STD * states, actions, rewards, episode_lengths=LENGTHS * n_copies)
    returns = [float(whole.episode(i)["rewards"].sum()) for i in range(whole.n_episodes) if i % 3 < 2]
    return TrajectoryDataset(
        whole.observations, whole.actions, whole.episode_lengths, whole.rewards, {"returns": returns}
    )


def best(states: Any) -> Any:
    return np.stack([np.full(len(states), 0.5), -0.5 * np.sign(states[:, 0])], axis=1)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been given to d3rlpy, which is not asked."""
    return stand_in(monkeypatch, 16, 8)


def test_data_are_given_in_units_of_their_spread_with_their_ends(given: list[Any]) -> None:
    data = [dataset(), dataset(2, seed=1)]
    train_offline(data, time_limit=8)
    ((observations, actions, rewards, over, cut),) = given
    assert np.abs(observations.mean(axis=0)).max() < 1e-4 and observations.std(axis=0) == pytest.approx(1, abs=0.02)
    assert np.array_equal(actions, np.concatenate([one.actions for one in data])) and len(rewards) == 48
    assert np.flatnonzero(over).tolist() == [10, 26, 42]
    assert np.flatnonzero(cut).tolist() == [7, 15, 23, 31, 39, 47]


def test_the_policy_takes_plain_observations_and_survives_its_archive(given: list[Any], tmp_path: Path) -> None:
    data = dataset()
    actor = train_offline([data], time_limit=8)
    first, second, last = layers(2, 16, 8, 2)
    with torch.no_grad():
        standard = torch.tensor(given[0][0], dtype=torch.float32)
        wanted = torch.tanh(last(torch.relu(second(torch.relu(first(standard))))))
    assert actor.predict(data.observations)[0] == pytest.approx(wanted.numpy(), abs=1e-4)
    path = save_policy(actor, tmp_path / "policy.zip", {"cpu_seconds": 1.0})
    assert np.array_equal(load_policy(path).predict(data.observations)[0], actor.predict(data.observations)[0])
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "none.zip")


def test_what_cannot_be_learned_from_is_refused(given: list[Any]) -> None:
    data = dataset()
    with pytest.raises(ValueError, match="dataset has no rewards"):
        train_offline([data.with_rewards(None)], 8)
    strong = TrajectoryDataset(data.observations, 3 * data.actions, data.episode_lengths, data.rewards)
    with pytest.raises(ValueError, match=r"actions reach 2\.\d+, wanted at most 1"):
        train_offline([strong], 8)
    with pytest.raises(ValueError, match="total_timesteps is 0, it must be at least 1"):
        OfflineSettings(total_timesteps=0)
    assert not given


def test_without_d3rlpy_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "d3rlpy", None)
    with pytest.raises(ValueError, match=r"pip install --no-deps d3rlpy==2\.8\.1"):
        train_offline([dataset()], 8)


@pytest.mark.peers
def test_td3_bc_learns_from_random_data(capfd: pytest.CaptureFixture[str]) -> None:
    rates = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
    arguments = {"alpha": 50.0, "gamma": 0.0, "batch_size": 64, **rates}
    data = dataset(60)
    capfd.readouterr()
    actor, again = (train_offline([data], 8, 1, OfflineSettings(steps, arguments)) for steps in (400, 1))
    states = np.random.default_rng(5).normal(size=(256, 2))
    states = states[np.abs(states[:, 0]) > 0.5]
    error, untrained = (
        np.abs(one.predict((MEAN + STD * states).astype(np.float32))[0] - best(states)).mean() for one in (actor, again)
    )
    assert error < 0.15 < 0.5 * untrained
    assert "dataset info" not in capfd.readouterr().out


@pytest.mark.peers
def test_td3_bc_is_reproducible() -> None:
    settings = OfflineSettings(2, {"batch_size": 8})
    one, other, third = (train_offline([dataset(8)], 8, seed, settings) for seed in (1, 1, 2))
    observations = dataset().observations
    assert np.array_equal(one.predict(observations)[0], other.predict(observations)[0])
    assert not np.array_equal(one.predict(observations)[0], third.predict(observations)[0])
