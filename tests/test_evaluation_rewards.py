"""Returns and scores are of the environment's own rewards, whatever is wrapped around it; what cannot be undone is
refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import vector
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)
from test_evaluation_vectorised import Fading, Memory

from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.evaluation import evaluate
from rrpolicy.rewards.wrappers import RelativeRewardVecEnv


class Still:
    def predict(self, observation: Any, *_: Any) -> Any:
        return np.zeros((len(observation), 3), np.float32), None


class Stake(VecEnvWrapper):
    """Pays a hundred times as much."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 100 * rewards, dones, infos


class Own(DummyVecEnv):
    def step_wait(self) -> Any:
        observations, rewards, dones, infos = super().step_wait()
        return observations, 100 * rewards, dones, infos


class OwnVector(gym.vector.VectorWrapper):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = self.env.step(actions)
        return observations, 0 * rewards, *rest


class Elevation:
    """A reward of states."""

    heads: tuple[str, ...] = ("step",)
    layout: Any = TrajectoryLayout(observation_dim=11, action_dim=3, horizon=4, plan_actions=False)

    def predict(self, observations: Any, actions: Any = None) -> Any:
        return observations[:, 0].astype(np.float32)


def hopper() -> gym.Env:
    return gym.make("Hopper-v5", disable_env_checker=True)


def hoppers(kind: Any = DummyVecEnv) -> Any:
    return kind([hopper] * 2)


@pytest.mark.parametrize(
    ("make", "scored"),
    [
        (hoppers, True),
        (lambda: VecMonitor(VecCheckNan(hoppers())), True),
        (lambda: VecNormalize(hoppers(), norm_obs=False), True),
        (lambda: RelativeRewardVecEnv(hoppers(), Elevation()), True),
        (lambda: vector.RecordEpisodeStatistics(hoppers(SyncVectorEnv)), True),
        (lambda: vector.DictInfoToList(hoppers(SyncVectorEnv)), True),
        (lambda: vector.RescaleAction(hoppers(SyncVectorEnv), np.float32(-2), np.float32(2)), True),
        (lambda: vector.TransformReward(hoppers(SyncVectorEnv), lambda reward: 100 * reward), False),
        (lambda: vector.RecordEpisodeStatistics(vector.ClipReward(hoppers(SyncVectorEnv), -1, 1)), False),
        (lambda: OwnVector(hoppers(SyncVectorEnv)), False),
        (lambda: Stake(hoppers()), False),
        (lambda: VecMonitor(Stake(hoppers())), False),
        (lambda: RelativeRewardVecEnv(Stake(hoppers()), Elevation()), False),
        (lambda: hoppers(Own), False),
    ],
)
def test_there_is_a_score_only_where_rewards_are_the_environments_own(make: Any, scored: bool) -> None:
    env = make()
    result = evaluate(Still(), env, 2)
    env.close()
    metrics = [row["metric"] for row in result.rows("still")]
    assert result.env_id == "Hopper-v5" and metrics == ["return", "normalized_score"][: 1 + scored]
    if scored:
        alone = evaluate(Still(), hopper, 2)
        assert result.returns == pytest.approx(alone.returns, rel=1e-5)


# ---------------------------------------------------------------------- normalised rewards


@pytest.mark.parametrize(
    "make",
    [
        lambda: gym.wrappers.NormalizeReward(Fading()),
        lambda: lambda: gym.wrappers.TimeLimit(gym.wrappers.NormalizeReward(Fading()), 5),
        lambda: [Fading(), gym.wrappers.NormalizeReward(Fading())],
        lambda: DummyVecEnv([lambda: gym.wrappers.NormalizeReward(Fading())]),
        lambda: SyncVectorEnv([lambda: gym.wrappers.NormalizeReward(Fading())]),
        lambda: vector.RecordEpisodeStatistics(vector.NormalizeReward(SyncVectorEnv([Fading]))),
        lambda: SubprocVecEnv([lambda: gym.wrappers.NormalizeReward(Fading())], start_method="fork"),
        lambda: AsyncVectorEnv([lambda: gym.wrappers.NormalizeReward(Fading())]),
    ],
)
def test_rewards_that_are_normalised_for_good_are_refused(make: Any) -> None:
    env = make()
    with pytest.raises(ValueError, match=r"wrapped in NormalizeReward, .* without it, or in VecNormalize of Stable"):
        evaluate(Memory(), env, 2)
    if isinstance(env, SubprocVecEnv | AsyncVectorEnv):
        env.close()


def test_a_wrapper_inside_may_tell_what_is_normalised() -> None:
    class Telling(gym.Wrapper):
        keeps_original_reward = True

        def step(self, action: Any) -> Any:
            observation, reward, *ends, info = self.env.step(action)
            return observation, -1.0, *ends, {**info, "original_reward": reward}

    alone = evaluate(Memory(), Fading, 3)
    for make in (
        lambda: gym.wrappers.NormalizeReward(Telling(Fading())),
        lambda: DummyVecEnv([lambda: gym.wrappers.NormalizeReward(Telling(Fading()))]),
        lambda: vector.NormalizeReward(SyncVectorEnv([lambda: Telling(Fading())])),
    ):
        assert evaluate(Memory(), make(), 3).returns == pytest.approx(alone.returns)
    with pytest.raises(ValueError, match="wrapped in NormalizeReward"):
        evaluate(Memory(), Telling(gym.wrappers.NormalizeReward(Fading())), 3)


def test_one_normaliser_is_undone_and_two_are_refused() -> None:
    with pytest.raises(ValueError, match="VecNormalize around VecNormalize"):
        evaluate(Memory(), VecNormalize(VecNormalize(DummyVecEnv([Fading]), norm_obs=False), norm_obs=False), 2)
