"""Normalised scores: the two ends of the scale, names of one robot in many spellings, and D4RL's own table."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from helpers.agents import shorten
from stable_baselines3.common.monitor import Monitor

from rrpolicy.data.reference_scores import REFERENCE_SCORES, is_registered, normalized_score, reference_score
from rrpolicy.evaluation import evaluate


class Still:
    """Does nothing, with three joints."""

    def predict(self, observation: Any, *_: Any, **__: Any) -> tuple[np.ndarray, None]:
        return np.zeros((len(observation), 3)), None


@pytest.mark.parametrize(
    ("robot", "low", "high"),
    [("HalfCheetah", -280.18, 12135.0), ("Hopper", -20.27, 3234.3), ("Walker2d", 1.63, 4592.3)],
)
def test_random_is_zero_and_the_expert_a_hundred(robot: str, low: float, high: float) -> None:
    scores = normalized_score(f"{robot}-v5", [[low, high], [(low + high) / 2, 2 * high - low]])
    assert scores == pytest.approx(np.array([[0, 100], [50, 200]]), abs=1e-3)


def test_a_robot_is_known_under_every_name() -> None:
    names = ["Hopper-v5", "Hopper-v3", "hopper-medium-replay-v2", "mujoco/hopper/medium-v0", "sb3/tqc-Hopper-v3"]
    assert {reference_score(name) for name in names} == {REFERENCE_SCORES["hopper"]}
    for unknown in (None, "", "PointMaze_UMaze-v3", "Grasshopper-v1"):
        assert reference_score(unknown) is None


def test_robots_without_references_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name is 'Ant-v5', wanted an environment of halfcheetah, hopper, walker2d"):
        normalized_score("Ant-v5", 1.0)


def test_evaluations_show_the_score_beside_the_return(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch, "Hopper-v5", 4)
    result = evaluate(Still(), partial(gym.make, "Hopper-v5"), 3)
    assert result.env_id == "Hopper-v5"
    rows = {row["metric"]: row for row in result.rows("still")}
    assert list(rows) == ["return", "normalized_score"] and rows["normalized_score"]["n"] == 3
    assert rows["normalized_score"]["mean"] == pytest.approx(normalized_score("Hopper-v5", rows["return"]["mean"]))
    assert replace(result, env_id="Pendulum-v1").normalized_scores is None
    with pytest.raises(ValueError, match="metric must be one of"):
        replace(result, env_id=None).values("normalized_score")


def hopper(**arguments: Any) -> gym.Env:
    return gym.make("Hopper-v5", **arguments)


@pytest.mark.parametrize(
    "make",
    [
        hopper,
        lambda: hopper(render_mode="rgb_array", width=64),
        lambda: hopper(forward_reward_weight=1.0),  # the default, spelled out
        lambda: Monitor(gym.wrappers.RescaleAction(hopper(), -3.0, 3.0)),
        lambda: gym.wrappers.TimeLimit(hopper(), 4000),  # the inner limit comes first
    ],
)
def test_the_registered_environment_has_a_score(make: Callable[[], gym.Env]) -> None:
    env = make()
    assert is_registered(env)
    env.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: hopper(max_episode_steps=20),
        lambda: hopper(max_episode_steps=-1),
        lambda: hopper(forward_reward_weight=2.0),
        lambda: hopper(healthy_reward=0.0),
        lambda: hopper(frame_skip=8),
        lambda: gym.wrappers.TimeLimit(hopper(), 20),
        lambda: gym.wrappers.TransformReward(hopper(), lambda reward: 10 * reward),
        lambda: gym.wrappers.ClipReward(hopper(), -1.0, 1.0),
        lambda: gym.wrappers.RepeatAction(hopper(), 2),
        lambda: gym.wrappers.TransformAction(hopper(), lambda action: action / 2, None),
        HopperEnv,  # without an id
    ],
)
def test_other_tasks_have_none(make: Callable[[], gym.Env]) -> None:
    env = make()
    assert not is_registered(env)
    result = evaluate(Still(), env, 1, max_episode_steps=3)
    assert result.normalized_scores is None and [row["metric"] for row in result.rows("still")] == ["return"]
    env.close()


def test_normalised_rewards_are_no_returns_and_have_no_score() -> None:
    env = gym.wrappers.NormalizeReward(hopper())
    assert not is_registered(env)
    with pytest.raises(ValueError, match="wrapped in NormalizeReward, whose originals cannot be recorded"):
        evaluate(Still(), env, 1, max_episode_steps=3)
    env.close()


def test_episodes_cut_short_have_no_score() -> None:
    env = hopper()
    assert evaluate(Still(), env, 1, max_episode_steps=3).normalized_scores is None
    assert evaluate(Still(), env, 1, max_episode_steps=1000).normalized_scores is not None
    assert evaluate(Still(), [env, hopper(max_episode_steps=20)], 2).normalized_scores is None


def test_d4rl_has_the_same_table() -> None:
    hidden = sys.modules.get("mujoco_py")
    sys.modules["mujoco_py"] = None  # type: ignore[assignment]  # D4RL does without; it may be there and raise
    try:
        infos = pytest.importorskip("d4rl.infos", reason="the extra d4rl is not installed")
    finally:
        sys.modules.pop("mujoco_py")
        if hidden is not None:
            sys.modules["mujoco_py"] = hidden
    for robot, reference in REFERENCE_SCORES.items():
        for kind in ("medium-replay", "medium", "expert"):
            name = f"{robot}-{kind}-v2"
            assert (infos.REF_MIN_SCORE[name], infos.REF_MAX_SCORE[name]) == pytest.approx(reference, abs=1e-6)
