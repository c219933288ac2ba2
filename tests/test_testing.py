"""`check_agent` and `check_reward` pass what is right, and find each clause of *predict* broken once.

Every broken agent is a good one with one method spoilt, so nothing but that clause can be what the check objects to.
"""

import copy
import random
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import DATASET, KINDS, NARROW, Drift, agent_of_kind, make_agent
from helpers.forged import forge

from rrpolicy import DiffusionAgent, DiscriminatorReward, GuidedPlanner, RelativeReward, RewardExtractor
from rrpolicy.common.archive import read_archive
from rrpolicy.envs.point_maze import make_point_maze
from rrpolicy.testing import ContractError, check_agent, check_reward

ALL = ["predict", "units", "one normaliser", "archive"]


# ---------------------------------------------------------------------- what is right passes


FEW = ("plain", "history", "inverse")  # a promise of each kind; the others show nothing more


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FEW)) for kind in KINDS])
def test_good_agents_pass(kind: str) -> None:
    agent = agent_of_kind(kind)
    assert check_agent(agent, Drift()) == ALL
    reward = RelativeReward.for_model(agent, window_kwargs=NARROW, step_kwargs=NARROW)
    assert check_agent(GuidedPlanner(agent, reward, scale=2.0, n_candidates=2), Drift()) == ALL
    assert check_reward(reward) == ALL[1:]


def test_trained_agents_and_rewards_pass_in_the_real_maze() -> None:
    agent = make_agent(normalizer=None).learn(DATASET, 30)
    assert check_agent(agent, make_point_maze(), seed=3) == ALL
    expert = make_agent(normalizer=agent.normalizer, seed=1).learn(DATASET, 30)
    options: dict[str, Any] = {"window_kwargs": NARROW, "batch_size": 16, "seed": 0}
    extracted = RewardExtractor(agent, expert, buffer_size=64, step_kwargs=NARROW, **options).learn(DATASET, 5)
    classified = DiscriminatorReward(agent, expert, **options).learn([DATASET, DATASET], 5)
    for reward in (extracted.reward, classified.reward):
        assert check_reward(reward) == ALL[1:]


def test_a_reward_of_other_events_passes() -> None:
    reward = RelativeReward(make_agent().process, (1, 4, 4), heads=("window",), window_kwargs=NARROW)
    assert check_reward(reward) == ["units", "archive"]


def test_checks_leave_no_files_and_no_random_numbers_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    agent = make_agent()
    check_agent(agent, Drift())
    assert list(tmp_path.iterdir()) == []
    agent.save(tmp_path / "agent")
    archive = read_archive(tmp_path / "agent")
    forge(tmp_path / "again.zip", archive.kind, archive.config, archive.tensors)
    assert check_agent(DiffusionAgent.load(tmp_path / "again"), Drift()) == ALL


class NotCallable:
    """A predictor with no memory, no network and no archive, which imitation cannot use."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0) -> Any:
        values = np.asarray(observation, dtype=np.float32)
        if values.shape[-1:] != (4,) or not np.isfinite(values).all():
            raise ValueError(f"observation has shape {values.shape}, wanted finite (n, 4)")
        return np.zeros((*values.shape[:-1], 2), np.float32), None


class Still(NotCallable):
    """The smallest predictor that keeps the contract."""

    def __call__(self, observations: Any, states: Any = None, episode_starts: Any = None) -> Any:
        return self.predict(observations, states, episode_starts)


def test_a_plain_predictor_is_held_to_predict_alone() -> None:
    assert check_agent(Still(), Drift()) == ["predict"]


def test_an_environment_without_box_actions_is_refused() -> None:
    env = Drift()
    env.action_space = gym.spaces.Discrete(2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"action space is Discrete\(2\), wanted a Box"):
        check_agent(Still(), env)


# ---------------------------------------------------------------------- agents, each with one clause of predict broken


class Unbatched(DiffusionAgent):
    """Answers one observation with a batch of one."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return super().predict(np.atleast_2d(observation), *args, **kwargs)


class NoPair(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return super().predict(*args, **kwargs)[0]


class ListState(DiffusionAgent):
    """A state that is no arrays with one row for each environment."""

    def predict(self, observation: Any, state: Any = None, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(observation, None if state is None else state[0], *args, **kwargs)
        return actions, [state]


class Unclipped(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(*args, **kwargs)
        return actions + np.float32(2.0), state


class WrongDtype(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(*args, **kwargs)
        return actions.astype(np.int64), state


class Restless(DiffusionAgent):
    """Draws fresh noise although asked to be deterministic."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return super().predict(*args, **{**kwargs, "deterministic": False})


class HiddenMemory(DiffusionAgent):
    """Leans where the last call went."""

    last = 0.0

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0) -> Any:
        actions, new = super().predict(observation, state, episode_start, deterministic)
        if state is None or np.any(episode_start):
            self.last = 0.0
        leaned = np.clip(actions + np.float32(0.1 * self.last), -1, 1)
        self.last = float(np.asarray(observation).flat[0])
        return leaned, new


class NeverForgets(DiffusionAgent):
    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0) -> Any:
        return super().predict(observation, state, None, deterministic)


class ForgetsAll(DiffusionAgent):
    """One environment's new episode makes all of them forget."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0) -> Any:
        begins = None if episode_start is None else np.full_like(episode_start, np.any(episode_start))
        return super().predict(observation, state, begins, deterministic)


class Herd(DiffusionAgent):
    """Every environment is moved by the others' observations."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().predict(observation, *args, **kwargs)
        return np.clip(actions + np.float32(0.1 * np.mean(observation)), -1, 1).astype(np.float32), state


class ChangesInput(DiffusionAgent):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super().predict(observation, *args, **kwargs)
        if isinstance(observation, np.ndarray):
            observation *= 1.001
        return answer


class ChangesState(DiffusionAgent):
    def predict(self, observation: Any, state: Any = None, *args: Any, **kwargs: Any) -> Any:
        answer = super().predict(observation, copy.deepcopy(state), *args, **kwargs)
        if state is not None:
            state[1][:] += 1
        return answer


class GlobalNoise(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return super().predict(*args, **kwargs)


class NumpyNoise(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        np.random.rand()
        return super().predict(*args, **kwargs)


class PythonNoise(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        random.random()
        return super().predict(*args, **kwargs)


class LeavesEvalMode(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        self.module.eval()
        return super().predict(*args, **kwargs)


class Unfreezes(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        self.averaged.requires_grad_(True)
        return super().predict(*args, **kwargs)


class OneByOne(DiffusionAgent):
    """Plans for one environment after another."""

    def _plan(self, known: Any, previous: Any, seeds: Any) -> Any:
        def one_of(arrays: Any, i: int) -> Any:
            return None if arrays is None else arrays[i : i + 1]

        plan = super()._plan
        parts = [plan(*(one_of(arrays, i) for arrays in (known, previous, seeds))) for i in range(len(known))]
        return np.concatenate(parts)


class TakesNan(DiffusionAgent):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        finite = np.nan_to_num(np.asarray(observation, np.float32), posinf=0, neginf=0)
        return super().predict(finite, *args, **kwargs)


class TakesAnyShape(DiffusionAgent):
    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return super().predict(np.asarray(observation, np.float32)[..., :4], *args, **kwargs)


class VagueRefusal(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().predict(*args, **kwargs)
        except ValueError:
            raise ValueError("bad observation") from None


class WrongError(DiffusionAgent):
    def predict(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().predict(*args, **kwargs)
        except ValueError:
            raise RuntimeError("bad observation") from None


class WrongCall(DiffusionAgent):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        actions, state = super().__call__(*args, **kwargs)
        return actions[0], state


@pytest.mark.parametrize(
    ("cls", "seen"),
    [
        (Unbatched, r"have shape \(1, 2\), wanted \(2,\)"),
        (NoPair, r"returned a ndarray, wanted \(actions, state\)"),
        (ListState, "state is a list"),
        (Unclipped, "leave Box"),
        (WrongDtype, "int64.* leave Box"),
        (Restless, "deterministic=True gave two answers"),
        (HiddenMemory, "memory must live in state alone"),
        (NeverForgets, "did not forget the last episode"),
        (ForgetsAll, "reached another environment's memory"),
        (Herd, "in a batch and .* alone, at step"),
        (ChangesInput, "predict changed its arguments"),
        (ChangesState, "predict changed its arguments"),
        (GlobalNoise, "torch's global random state changed"),
        (NumpyNoise, "numpy's global random state changed"),
        (PythonNoise, "python's global random state changed"),
        (LeavesEvalMode, "a module's mode .* changed"),
        (Unfreezes, "a weight's requires_grad changed"),
        (OneByOne, "times for 4: use one batch"),
        (TakesNan, "nan was not refused"),
        (TakesAnyShape, r"shape \(5,\) was not refused"),
        (VagueRefusal, "which does not name"),
        (WrongError, "raised RuntimeError, wanted a ValueError"),
        (WrongCall, r"__call__ gave shape \(2,\), wanted \(4, 2\)"),
    ],
)
def test_each_broken_clause_of_predict_is_found(cls: type[DiffusionAgent], seen: str) -> None:
    with pytest.raises(ContractError, match=rf"contract 'predict' is broken: .*({seen})") as caught:
        check_agent(make_agent(cls, n_action_steps=3), Drift())
    assert caught.value.contract == "predict" and isinstance(caught.value, AssertionError)


def test_an_agent_that_is_no_callable_is_found() -> None:
    with pytest.raises(ContractError, match=r"imitation wants agent\(observations"):
        check_agent(NotCallable(), Drift())


def test_warm_starts_that_depend_on_the_others_are_found() -> None:
    class AllOrNobody(DiffusionAgent):
        """Warm starts only when every environment that plans has an earlier plan."""

        def predict(self, observation: Any, state: Any = None, episode_start: Any = None, **kwargs: Any) -> Any:
            planning = self.planning
            if np.any(episode_start):
                self.planning = type(planning)(**{**vars(planning), "warm_start": None})
            try:
                return super().predict(observation, state, episode_start, **kwargs)
            finally:
                self.planning = planning

    with pytest.raises(ContractError, match=r"in a batch and .* alone"):
        check_agent(make_agent(AllOrNobody, warm_start=5, n_action_steps=3, n_sampling_steps=3), Drift())
