"""A SAC run keeps all that it saw; stopped and resumed it goes on counting, learning and keeping."""

import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import shorten
from helpers.forged import forge

from rrpolicy.common.archive import read_archive
from rrpolicy.common.interruption import TrainingInterrupted
from rrpolicy.rl.policies import load_policy, save_policy
from rrpolicy.rl.replay import DEFAULTS, KIND, WINDOW_EPISODES, ReplayTraining

LIMIT = 20
QUICK: dict[str, Any] = {"learning_starts": 30, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}


def pendulum() -> gym.Env:
    return gym.make("Pendulum-v1", max_episode_steps=LIMIT)


def start(**arguments: Any) -> ReplayTraining:
    return ReplayTraining(pendulum(), seed=3, **{**QUICK, **arguments})


def idle() -> ReplayTraining:
    """Sees, but does not learn."""
    return start(learning_starts=10**6)


def test_all_that_was_seen_becomes_data() -> None:
    run = start()
    run.train(50)
    data = run.dataset()
    assert data.episode_lengths.tolist() == [20, 20, 10] and run.num_timesteps == 50
    env = pendulum()
    for index in range(3):  # each episode is one that the environment repeats
        episode = data.episode(index)
        env.reset()
        cos, sin, speed = episode["observations"][0].astype(float)
        env.unwrapped.state = np.array([np.arctan2(sin, cos), speed])  # type: ignore[attr-defined]
        for row, action in enumerate(episode["actions"]):
            observation, reward, *_ = env.step(action)
            assert episode["rewards"][row] == pytest.approx(reward, abs=1e-4)
            if row + 1 < len(episode["actions"]):
                assert episode["observations"][row + 1] == pytest.approx(observation, abs=1e-4)
    assert np.abs(data.actions).max() > 1.0  # environment units, not SAC's
    returns, ends = run.returns()
    assert ends.tolist() == [20, 40] and data.metadata["returns"] == returns.tolist()
    assert returns[1] == pytest.approx(data.episode(1)["rewards"].sum(), rel=1e-5)
    assert data.metadata["last_return"] == returns.mean() and not data.metadata["reached"]
    assert data.metadata["algorithm"] == "SAC" and data.metadata["arguments"] == {**DEFAULTS, **QUICK}


def test_environments_may_pay_an_array_and_fill_one_again() -> None:
    class Refilled(gym.Wrapper[Any, Any, Any, Any]):
        buffer = np.zeros(3, np.float32)

        def reset(self, **kwargs: Any) -> Any:
            self.buffer[:], info = self.env.reset(**kwargs)
            return self.buffer, info

        def step(self, action: Any) -> Any:
            self.buffer[:], reward, *rest = self.env.step(action)
            return self.buffer, np.array([reward]), *rest

    runs = []
    for env in (pendulum(), Refilled(pendulum())):
        runs.append(ReplayTraining(env, seed=3, **QUICK))  # which seeds the global generators
        runs[-1].train(50)
    plain, other = (run.model.replay_buffer for run in runs)
    assert plain is not None and other is not None
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        assert np.array_equal(getattr(plain, name), getattr(other, name))
    with pytest.raises(ValueError, match="wrapped in NormalizeReward"):
        ReplayTraining(gym.wrappers.NormalizeReward(pendulum()))


def test_steps_between_two_gradient_steps() -> None:
    """They are never cut, so the run may see a few steps more, and has room for them."""
    run = start(train_freq=3)
    for total, seen in ((50, 51), (52, 54), (55, 57)):
        run.train(total)
        assert run.num_timesteps == seen and run.dataset().n_transitions == seen
    assert run.model._n_updates == (57 - QUICK["learning_starts"]) // 3


def test_the_medium_return_ends_data_and_training() -> None:
    run = idle()
    run.train(12 * LIMIT)
    assert run.medium_end(-1e9) == WINDOW_EPISODES * LIMIT
    run.model.replay_buffer.rewards[: 12 * LIMIT, 0] = np.repeat(np.arange(12), LIMIT) / LIMIT  # episode k returns k
    assert run.medium_end(4.5) == 10 * LIMIT and run.medium_end(5.4) == 11 * LIMIT and run.medium_end(6.6) is None
    data = run.dataset(5.4)
    assert len(data) == 11 * LIMIT and data.metadata["reached"] and data.metadata["last_return"] == pytest.approx(5.5)
    assert len(run.dataset(6.6)) == 12 * LIMIT and len(run.dataset()) == 12 * LIMIT
    run.train(10**6, stop_return=5.4)  # was reached already
    assert run.num_timesteps == 12 * LIMIT
    other = idle()
    other.train(10**6, stop_return=-1e9)
    assert other.num_timesteps == WINDOW_EPISODES * LIMIT


def test_before_an_episode_has_ended_there_is_no_level() -> None:
    run = idle()
    with pytest.raises(ValueError, match="0 rows"):
        run.dataset()
    run.train(5)
    assert "last_return" not in run.dataset().metadata and run.medium_end(-1e9) is None


def test_normalised_scores_where_there_are_references(monkeypatch: pytest.MonkeyPatch) -> None:
    short = ReplayTraining(gym.make("Hopper-v5", max_episode_steps=5), **QUICK)
    short.train(10)
    assert "last_return" in short.facts() and "normalized_score" not in short.facts()  # another task
    shorten(monkeypatch, "Hopper-v5", 5)
    run = ReplayTraining(gym.make("Hopper-v5"), **QUICK)
    run.train(10)
    assert run.facts()["environment"] == "Hopper-v5" and run.facts()["normalized_score"] < 5


def test_weights_that_run_away_are_one_line() -> None:
    run = start()
    run.train(50)
    with torch.no_grad():
        run.model.critic.qf0[0].bias.fill_(1e20)
    with pytest.raises(ValueError, match="the run cannot go on: ") as told:
        run.train(150)
    assert str(told.value).isprintable()


def test_stopped_and_resumed_nothing_is_lost(tmp_path: Path) -> None:
    run = start()
    run.train(50, checkpoint=tmp_path / "run")
    again = ReplayTraining.load(tmp_path / "run.zip", pendulum(), seed=3, **QUICK)
    assert again.num_timesteps == 50 and again.model._n_updates == run.model._n_updates == 20
    weights = [one.model.policy.state_dict() for one in (run, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(run.model.log_ent_coef, again.model.log_ent_coef)
    models = run.model, again.model
    optimizers = ((one.actor.optimizer, one.critic.optimizer, one.ent_coef_optimizer) for one in models)
    for pair in zip(*optimizers, strict=True):
        states = [one.state_dict()["state"] for one in pair]
        assert states[0] and states[0].keys() == states[1].keys()
        assert all(
            torch.equal(value, states[1][key][part])
            for key, state in states[0].items()
            for part, value in state.items()
        )
    before = run.dataset()
    again.train(100)
    data = again.dataset()
    assert data.episode_lengths.tolist() == [20, 20, 10, 20, 20, 10]  # the episode under way was cut off
    assert np.array_equal(data.observations[:50], before.observations)
    assert np.array_equal(data.rewards[:50], before.rewards)
    assert not np.array_equal(data.observations[50], data.observations[0])  # new starts
    buffer = again.model.replay_buffer
    assert np.flatnonzero(buffer.dones[:100]).tolist() == np.flatnonzero(buffer.timeouts[:100]).tolist()
    assert np.flatnonzero(buffer.dones[:100]).tolist() == [19, 39, 49, 69, 89]
    assert again.model._n_updates == 70


def test_random_numbers_go_on(tmp_path: Path) -> None:
    run = start()
    run.train(40, checkpoint=tmp_path / "run")
    drawn = torch.rand(3), np.random.rand(3)
    ReplayTraining.load(tmp_path / "run", pendulum(), seed=3, **QUICK)
    assert torch.equal(torch.rand(3), drawn[0]) and np.array_equal(np.random.rand(3), drawn[1])


def test_checkpoints_come_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = idle()
    save = run.save
    monkeypatch.setattr(run, "save", lambda path: (seen.append(run.num_timesteps), save(path)))
    run.train(900, checkpoint=tmp_path / "run", checkpoint_freq=400)
    assert seen == [400, 800, 900]


def test_a_signal_saves_before_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = idle()
    learn = run.model.learn

    def interrupted(*arguments: Any, **more: Any) -> Any:
        if run.num_timesteps == 200:
            signal.raise_signal(signal.SIGTERM)
        return learn(*arguments, **more)

    monkeypatch.setattr(run.model, "learn", interrupted)
    with pytest.raises(TrainingInterrupted) as stopped:
        run.train(1000, checkpoint=tmp_path / "run")
    assert stopped.value.signal_number == signal.SIGTERM
    assert len(read_archive(tmp_path / "run", KIND).tensors["replay"]["rewards"]) == 400 == run.num_timesteps


def test_the_last_policy_is_kept(tmp_path: Path) -> None:
    run = ReplayTraining(gym.make("Hopper-v5", max_episode_steps=5), **{**QUICK, "learning_starts": 5})
    run.train(20)
    path = save_policy(run.model, tmp_path / "policy", run.facts())
    observations = np.random.default_rng(0).uniform(-1, 1, (4, 11))
    wanted, _ = run.model.predict(observations, deterministic=True)
    assert np.array_equal(load_policy(path).predict(observations, deterministic=True)[0], wanted)


def test_runs_that_cannot_go_on_are_refused(tmp_path: Path) -> None:
    run = idle()
    run.train(5)
    path = run.save(tmp_path / "run")
    slow = {**QUICK, "learning_starts": 10**6}
    for env, seed, arguments, words in (
        (gym.make("Pendulum-v1"), 4, slow, "run began with seed 3, now it is 4"),
        (gym.make("MountainCarContinuous-v0"), 3, slow, "run began with env_id Pendulum-v1, now it is Mountain"),
        (gym.make("Pendulum-v1"), 3, QUICK, "run began with arguments"),
    ):
        with pytest.raises(ValueError, match=words):
            ReplayTraining.load(path, env, seed=seed, **arguments)
    archive = read_archive(path)
    forge(path, KIND, {**archive.config, "num_timesteps": 10**12}, archive.tensors)
    with pytest.raises(ValueError, match="does not have the 1000000000000 rows of num_timesteps"):
        ReplayTraining.load(path, pendulum(), seed=3, **slow)
    tensors = {name: part for name, part in archive.tensors.items() if name != "replay"}
    forge(path, KIND, archive.config, tensors)
    with pytest.raises(ValueError, match=r"run\.zip: is not a valid replay-training archive: 'replay'"):
        ReplayTraining.load(path, pendulum(), seed=3, **slow)
    with pytest.raises(FileNotFoundError):
        ReplayTraining.load(tmp_path / "gone", pendulum())
    with pytest.raises(ValueError, match="goes on in its environment, wanted env"):
        ReplayTraining.load(path)
    with pytest.raises(ValueError, match="must be a Box"):
        ReplayTraining(gym.make("CartPole-v1"))
