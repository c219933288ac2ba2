"""How episodes ended is part of a dataset: it is read, kept, written back, and inferred, with a warning, only where
nobody told. The rows of each episode count up, so that every value says where it came from."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from helpers.stand_in_d3rlpy import stand_in
from minari.data_collector.episode_buffer import EpisodeBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from rrpolicy import TrajectoryDataset
from rrpolicy.data import from_d4rl, load_dataset, save_minari
from rrpolicy.data.collect import collect, collect_point_maze
from rrpolicy.data.transitions import finished, terminals, transitions
from rrpolicy.experiments.runs import fingerprint
from rrpolicy.rl.finetune import FinetuneSettings, finetune
from rrpolicy.rl.replay import ReplayTraining
from rrpolicy.rl.td3bc import train_offline

N, CUT, OVER = 600, 39, 239  # of the issue: cut off at one row, over at another, the rest unfinished


def flags(row: int, count: int = N) -> Any:
    return np.arange(count) == row


def told(**changes: Any) -> TrajectoryDataset:
    arrays = {"terminals": flags(OVER), "timeouts": flags(CUT), **changes}
    rows = np.arange(N, dtype=np.float32)
    return TrajectoryDataset.from_arrays(rows[:, None], rows[:, None] / N, np.zeros(N), **arrays)


def untold(data: TrajectoryDataset) -> TrajectoryDataset:
    return TrajectoryDataset(data.observations, data.actions, data.episode_lengths, data.rewards)


def ends(data: TrajectoryDataset) -> Any:
    """(terminated, truncated) of each episode."""
    assert data.terminated is not None and data.truncated is not None
    return list(zip(data.terminated.tolist(), data.truncated.tolist(), strict=True))


ENDS = [(False, True), (True, False), (False, False)]


# ---------------------------------------------------------------------- kept


def test_only_what_was_terminated_is_terminal() -> None:
    data = told()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for limit in (1000, 200, None):  # of no matter where the data tell
            assert np.flatnonzero(terminals(data, limit)).tolist() == [OVER]
        assert finished(data).tolist() == [True, True, False]  # though all returns are equal
        assert finished(data.with_rewards(None)).tolist() == [True, True, False]
    known = transitions(data, terminals(data, 1000))
    assert len(known.rewards) == N - 2 and known.terminals.sum() == 1
    assert not {CUT, N - 1} & set(known.observations[:, 0].astype(int))


def test_what_nobody_told_is_inferred_and_said() -> None:
    data = untold(told())
    assert data.terminated is None and data.truncated is None and data.describe()["ends"] is None
    with pytest.warns(UserWarning, match="does not tell how its episodes ended.* 3 of 3, .*limit of 1000, are taken"):
        assert np.flatnonzero(terminals(data, 1000)).tolist() == [CUT, OVER, N - 1]
    assert TrajectoryDataset.from_arrays(data.observations, data.actions).terminated is None


def test_flags_of_one_kind_tell_the_other() -> None:
    assert ends(told(timeouts=None)) == [(True, False), (False, False)]
    assert ends(told(terminals=None)) == [(False, True), (False, False)]
    assert ends(told(timeouts=flags(OVER))) == [(True, True), (False, False)]  # over just when it would be cut off
    assert ends(told(timeouts=flags(-1))) == [(True, False), (False, False)]
    assert ends(told(timeouts=flags(N - 1))) == [(True, False), (False, True)]


def test_ends_are_kept_whatever_is_done() -> None:
    data = told()
    assert ends(data.subset([2, 0])) == [ENDS[2], ENDS[0]] and ends(data.subset([-2])) == [ENDS[1]]
    assert ends(data.with_rewards(np.ones(N))) == ENDS
    train, held_out = data.split(0.4)
    assert sorted(ends(train) + ends(held_out)) == sorted(ENDS)
    for part in (train, held_out):
        for index, (over, cut) in enumerate(ends(part)):
            last = part.episode(index)["observations"][-1, 0]
            assert (over, cut) == {CUT: ENDS[0], OVER: ENDS[1], N - 1: ENDS[2]}[int(last)]
    joined = TrajectoryDataset.concatenate([data, data.subset([1])])
    assert ends(joined) == [*ENDS, ENDS[1]]
    assert joined.describe()["ends"] == {"terminated": 2, "truncated": 1, "unfinished": 1}
    assert json.loads(json.dumps(joined.describe()))["ends"]["terminated"] == 2
    assert TrajectoryDataset.concatenate([data, untold(data)]).terminated is None
    assert fingerprint(data) == fingerprint(untold(data))  # resumed with data of before


def test_flags_are_checked_and_cannot_be_changed() -> None:
    data, mine = told(), np.array([True, False, False])
    own = TrajectoryDataset(data.observations, data.actions, data.episode_lengths, terminated=mine)
    mine[:] = True
    assert ends(own) == [(True, False), (False, False), (False, False)]
    for array in (own.terminated, own.truncated):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = True  # type: ignore[index]
    for changes, words in (
        ({"terminated": [True]}, r"terminated has shape \(1,\), wanted \(3,\)"),
        ({"truncated": [0, 2, 0]}, "truncated holds 2 at row 1"),
        ({"truncated": ["False"] * 3}, "truncated holds .*False"),
    ):
        with pytest.raises(ValueError, match=words):
            TrajectoryDataset(data.observations, data.actions, data.episode_lengths, **changes)


# ---------------------------------------------------------------------- files


def test_they_survive_minari_folders(tmp_path: Path) -> None:
    folder = save_minari(told(), tmp_path / "set")
    assert ends(load_dataset(folder)) == ENDS
    stored = [minari.MinariDataset(folder)[i] for i in range(3)]
    assert [(bool(one.terminations[-1]), bool(one.truncations[-1])) for one in stored] == ENDS
    assert not any(one.terminations[:-1].any() or one.truncations[:-1].any() for one in stored)
    again = load_dataset(save_minari(untold(told()), tmp_path / "untold"))
    assert again.terminated is None
    assert minari.MinariDataset(tmp_path / "untold")[2].truncations[-1]


def test_folders_of_before_do_not_tell(tmp_path: Path) -> None:
    """They have every episode end as truncated, and no entry that says how much that is worth."""
    path = save_minari(untold(told()), tmp_path / "set") / "metadata.json"
    values = json.loads(path.read_text())
    del values["rrpolicy"]["has_ends"]
    path.write_text(json.dumps(values))
    assert load_dataset(path.parent).terminated is None
    values["rrpolicy"]["has_ends"] = "yes"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="has_ends is 'yes', wanted true or false"):
        load_dataset(path.parent)


def minari_of(flags_of_last: list[tuple[bool, bool]]) -> Any:
    buffers = [
        EpisodeBuffer(
            observations=np.zeros((4, 1)),
            actions=np.zeros((3, 1)),
            rewards=np.zeros(3),
            terminations=[False, False, over],
            truncations=[False, False, cut],
        )
        for over, cut in flags_of_last
    ]
    box = spaces.Box(-1, 1, (1,), np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for authors and permalinks
        return minari.create_dataset_from_buffers("ends/made-v0", buffers, observation_space=box, action_space=box)


def test_minari_folders_of_others_tell_by_their_last_rows() -> None:
    made = minari_of([*ENDS, (True, True)])
    assert ends(load_dataset("ends/made-v0")) == [*ENDS, (True, True)]
    path = made.storage.data_path / "main_data.hdf5"
    with h5py.File(path, "r+") as file:
        del file["episode_1/terminations"]
        file["episode_1/terminations"] = np.zeros(2, bool)
    with pytest.raises(ValueError, match=r"episode 1 has terminations of shape \(2,\) and dtype bool, wanted booleans"):
        load_dataset("ends/made-v0")
    with h5py.File(path, "r+") as file:
        del file["episode_1/terminations"]
    assert load_dataset("ends/made-v0").terminated is None


def test_d4rl_files_tell(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["observations"], file["actions"] = told().observations, told().actions
        file["terminals"], file["timeouts"] = flags(OVER), flags(CUT)[:, None]
    assert ends(from_d4rl(tmp_path / "d.hdf5")) == ENDS


# ---------------------------------------------------------------------- recorded


class Countdown(gym.Env[Any, Any]):
    """Shows whether it will fall after five steps; otherwise it goes on for ever."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.falls = 0, bool(self.np_random.random() < 0.5)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._seen(), 0.0, self.falls and self.steps == 5, False, {}

    def _seen(self) -> Any:
        return np.array([self.falls], np.float32)


def countdown() -> gym.Env:
    return gym.wrappers.TimeLimit(Countdown(), 8)


class Still:
    def predict(self, observation: Any, state: Any = None, **_: Any) -> Any:
        return np.zeros((len(observation), 1), np.float32), state


def right_ends(data: TrajectoryDataset) -> Any:
    """What the environment does to episodes of these lengths; all rewards are 0, so returns tell nothing."""
    falls = [bool(data.episode(i)["observations"][0, 0]) for i in range(data.n_episodes)]
    return [
        (fell and length == 5, not fell and length == 8)
        for fell, length in zip(falls, data.episode_lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_what_is_collected_tells(n_envs: int) -> None:
    data = collect(Still(), DummyVecEnv([countdown] * n_envs), 100)
    assert ends(data) == right_ends(data)
    assert {(True, False), (False, True), (False, False)} <= set(ends(data))
    single = collect(Still(), countdown(), 5 * 8 + 3)
    assert ends(single) == right_ends(single)


class Silent(VecEnvWrapper):
    """Tells only that an episode has ended."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards, dones, [{} for _ in infos]


def test_an_environment_that_does_not_say_gives_data_that_do_not_tell() -> None:
    assert collect(Still(), Silent(DummyVecEnv([countdown])), 30).terminated is None
    assert ends(collect(Still(), Silent(DummyVecEnv([countdown])), 3)) == [(False, False)]


def test_demonstrations_in_mazes_are_cut_off() -> None:
    data = collect_point_maze(["#####", "#...#", "#####"], 40, goal=(1, 1), episode_length=15)
    assert ends(data) == [(False, True)] * 3


def test_replay_buffers_tell() -> None:
    gym.register("Countdown-v0", entry_point=Countdown, max_episode_steps=8)
    run = ReplayTraining(gym.make("Countdown-v0"), seed=1, learning_starts=10**6)
    run.train(60)
    data = run.dataset()
    assert ends(data) == right_ends(data) and {(True, False), (False, True)} <= set(ends(data))


# ---------------------------------------------------------------------- learners of values


def test_pendulum_has_no_ends_to_learn() -> None:
    """Its episodes are only ever cut off, whatever limit the one has that learns."""
    env = gym.make("Pendulum-v1", max_episode_steps=20)
    data = collect(Still(), env, 110)
    settings = FinetuneSettings(total_timesteps=0, n_cloning_steps=0, n_critic_steps=0, n_eval_episodes=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the dataset does not tell")
        buffer = finetune(lambda: gym.make("Pendulum-v1"), data, None, 0, settings).model.replay_buffer
    assert buffer.dones.sum() == 0 and buffer.pos == 110 - 6
    with pytest.warns(UserWarning, match="6 of 6, recorded to their end and shorter than the time limit of 200"):
        buffer = finetune(lambda: gym.make("Pendulum-v1"), untold(data), None, 0, settings).model.replay_buffer
    assert buffer.dones.sum() == 6


def test_td3_bc_is_given_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    given = stand_in(monkeypatch, 4)
    train_offline([told(), told()], 1000)
    *_, over, cut = given[0]
    assert np.flatnonzero(over).tolist() == [OVER, N + OVER]
    assert np.flatnonzero(cut).tolist() == [CUT, N - 1, N + CUT, 2 * N - 1]
