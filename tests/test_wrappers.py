"""An environment that pays ρ: the values are predict's, the true reward is kept, SB3 takes it unchanged."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy.common.environments import ORIGINAL_REWARD
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.wrappers import RelativeRewardVecEnv, RelativeRewardWrapper, relabel

N_STEPS = 5


class Walk(gym.Env[Any, Any]):
    """The position moves by the action; the true reward is 7."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.n = np.zeros(2, np.float32), 0
        return self.position.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position, self.n = self.position + np.asarray(action, np.float32), self.n + 1
        return self.position.copy(), 7.0, False, self.n == N_STEPS, {}


def make_reward(plan_actions: bool, heads: tuple[Any, ...] = ("window", "step")) -> RelativeReward:
    bounds = (np.full(2, -10.0), np.full(2, 10.0))
    layout = TrajectoryLayout(observation_dim=2, action_dim=2, horizon=4, plan_actions=plan_actions)
    small = {"width": 16, "n_blocks": 1, "n_fourier_features": 4}
    normalizer = Normalizer.from_bounds(bounds, (-np.ones(2), np.ones(2)))
    return RelativeReward(
        DiffusionProcess(10),
        layout.event_shape,
        layout=layout,
        normalizer=normalizer,
        heads=heads,
        window_kwargs=small,
        step_kwargs=small,
    ).eval()


@pytest.mark.parametrize("plan_actions", [False, True])
def test_a_step_pays_rho_and_keeps_the_true_reward(plan_actions: bool) -> None:
    reward = make_reward(plan_actions)
    env = RelativeRewardWrapper(Walk(), reward)
    left, _ = env.reset(seed=0)
    for action in np.array([[0.5, -1.0], [1.0, 1.0]], np.float32):
        reached, value, _, _, info = env.step(action)
        wanted = reward.predict(left[None], action[None]) if plan_actions else reward.predict(reached[None])
        assert value == pytest.approx(float(wanted[0]), rel=1e-5)
        assert info[ORIGINAL_REWARD] == 7.0
        left = reached


@pytest.mark.parametrize("plan_actions", [False, True])
def test_vectorised_environments_agree_with_single_ones_through_episode_ends(plan_actions: bool) -> None:
    reward = make_reward(plan_actions)
    single = RelativeRewardWrapper(Walk(), reward)
    vectorised = RelativeRewardVecEnv(DummyVecEnv([Walk, Walk]), reward)
    vectorised.reset()
    single.reset()
    for k in range(2 * N_STEPS):
        action = np.array([0.3, 0.1 * k], np.float32)
        _, values, dones, infos = vectorised.step(np.stack([action, action]))
        _, value, _, truncated, _ = single.step(action)
        assert values == pytest.approx(np.full(2, value), rel=1e-4, abs=1e-6)  # single precision
        assert infos[1][ORIGINAL_REWARD] == 7.0
        assert bool(dones[0]) == truncated
        if truncated:
            single.reset()


def test_a_transform_is_applied() -> None:
    env = RelativeRewardWrapper(Walk(), make_reward(False), transform=lambda values: 0 * values + 3)
    env.reset()
    assert env.step(np.zeros(2))[1] == 3.0


def test_sb3_trains_on_it() -> None:
    env = RelativeRewardVecEnv(DummyVecEnv([Walk]), make_reward(False))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    assert model.num_timesteps == 32


def test_relabelling_writes_rho_into_the_dataset() -> None:
    rng = np.random.default_rng(0)
    dataset = TrajectoryDataset.from_arrays(rng.uniform(-5, 5, (8, 2)), rng.uniform(-1, 1, (8, 2)), episode_lengths=[8])
    reward = make_reward(True)
    relabelled = relabel(dataset, reward)
    assert relabelled.rewards == pytest.approx(reward.predict(dataset.observations, dataset.actions))
    assert dataset.rewards is None


def test_rewards_that_cannot_score_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="step head"):
        RelativeRewardWrapper(Walk(), make_reward(False, heads=("window",)))


def test_environments_of_other_observations_are_refused() -> None:
    env = gym.make("Pendulum-v1")
    with pytest.raises(ValueError, match=r"shape \(3,\).*wants \(2,\)"):
        RelativeRewardWrapper(env, make_reward(False))
