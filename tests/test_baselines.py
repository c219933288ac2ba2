"""Training on rewards: what is paid, that learning learns, and behaviour cloning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rrpolicy import TrajectoryDataset
from rrpolicy.common.environments import ORIGINAL_REWARD
from rrpolicy.data.collect import collect_point_maze
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs import make_point_maze
from rrpolicy.envs.vec_point_maze import PointMazeVecEnv
from rrpolicy.evaluation import evaluate
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.transforms import AveragedReward, BoundedReward, DistanceReward
from rrpolicy.rewards.wrappers import CHUNK
from rrpolicy.rl.cloning import clone_behaviour
from rrpolicy.rl.on_reward import N_BASE_TRANSITIONS, SETTINGS, evaluate_trained, make_reward_env, train_on_reward
from rrpolicy.rl.policies import ACTION_REPEAT, ActionRepeat

MAZE, GOAL = ["####", "#..#", "####"], (1, 2)
BOUND = np.full(4, 2.0)


def make_reward(heads: tuple[Any, ...] = ("step",), plan_actions: bool = False, **step_kwargs: Any) -> RelativeReward:
    """An untrained ρ over PointMaze observations."""
    layout = TrajectoryLayout(4, 2, horizon=4, observation_columns=(0, 1), plan_actions=plan_actions)
    small = {"width": 16, "n_blocks": 1, "n_fourier_features": 4}
    normalizer = Normalizer.from_bounds((-BOUND, BOUND), (-np.ones(2), np.ones(2)))
    return RelativeReward(
        DiffusionProcess(10),
        layout.event_shape,
        layout=layout,
        normalizer=normalizer,
        heads=heads,
        window_kwargs=small,
        step_kwargs={**small, **step_kwargs},
    ).eval()


# ---------------------------------------------------------------------- what is paid


def test_the_bounded_reward_is_one_at_the_best_base_observation_and_falls_by_nats() -> None:
    bounded = BoundedReward(maximum=3.0)
    assert bounded(np.array([3.0, 9.0, 2.0, -np.inf])) == pytest.approx([1.0, 1.0, np.exp(-1.0), 0.0])
    observations = np.random.default_rng(0).uniform(-1, 1, (CHUNK + 5, 4))
    for plan_actions in (False, True):
        reward = make_reward(plan_actions=plan_actions)
        actions = np.zeros((len(observations), 2)) if plan_actions else None
        values = reward.predict(observations, actions)
        last = np.argmax(values)
        observations[[last, -1]] = observations[[-1, last]]  # the best one is in the second chunk
        assert BoundedReward.fit(reward, observations, actions).maximum == pytest.approx(float(values.max()), abs=1e-6)


def test_the_distance_reward_of_a_gaussian_is_a_cone() -> None:
    cone = DistanceReward(maximum=3.0)
    distances = np.array([0.0, 0.1, 1.0, 5.0])  # from the mode, in standard deviations
    assert cone(3.0 - distances**2 / 2) == pytest.approx(np.exp(-distances))
    assert cone(np.array([9.0, -np.inf])) == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("plan_actions", [False, True])
def test_the_averaged_reward_is_the_mean_over_every_second_clean_level(plan_actions: bool) -> None:
    reward = make_reward(plan_actions=plan_actions, n_clean_levels=6)
    averaged = AveragedReward(reward)
    rng = np.random.default_rng(0)
    observations, actions = rng.uniform(-1, 1, (7, 4)), rng.uniform(-1, 1, (7, 2)) if plan_actions else None
    single = [reward.predict(observations, actions, [level]) for level in (0, 2, 4)]
    assert averaged.predict(observations, actions) == pytest.approx(np.mean(single, axis=0), rel=1e-5, abs=1e-6)
    assert np.ptp(single, axis=0).max() > 1e-4  # the levels do differ
    assert (averaged.layout, averaged.heads) == (reward.layout, reward.heads)
    assert list(AveragedReward(make_reward(n_clean_levels=0)).levels) == [0]


def test_the_averaged_reward_is_what_agents_are_paid() -> None:
    reward = make_reward()
    env = make_reward_env(reward, PointMazeVecEnv(MAZE, GOAL, 2, 4 * ACTION_REPEAT, ACTION_REPEAT, seed=0))
    env.reset()
    observations, paid, _, _ = env.step(np.ones((2, 2)))
    data = collect_point_maze(MAZE, N_BASE_TRANSITIONS, seed=0)
    averaged = AveragedReward(reward)
    cone = DistanceReward(float(averaged.predict(data.observations).max()))
    assert paid == pytest.approx(cone(averaged.predict(np.asarray(observations))), rel=1e-3)


def test_bounded_rewards_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 4\), wanted \(n, obs_dim\)"):
        BoundedReward.fit(make_reward(), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="step head"):
        BoundedReward.fit(make_reward(heads=("window",)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="maximum must be finite, got nan"):
        BoundedReward(float("nan"))


def test_both_rewards_lie_between_zero_and_one_and_the_monitor_keeps_the_true_return() -> None:
    limit, reward = 4 * ACTION_REPEAT, make_reward()
    for paid in (None, reward):
        env = make_reward_env(paid, PointMazeVecEnv(MAZE, GOAL, 2, limit, ACTION_REPEAT, seed=0))
        env.seed(1)
        env.reset()
        steps = [env.step(np.zeros((2, 2))) for _ in range(4)]
        values = np.array([rewards for _, rewards, _, _ in steps])
        assert (values > 0).all() and (values <= 1 + 1e-6).all()
        true = (
            values.sum(axis=0) * ACTION_REPEAT
            if paid is None
            else [sum(infos[i][ORIGINAL_REWARD] for _, _, _, infos in steps) for i in range(2)]
        )
        assert [steps[-1][3][i]["episode"]["r"] for i in range(2)] == pytest.approx(true, abs=1e-4)


# ---------------------------------------------------------------------- training


def test_learning_learns_in_the_tiniest_maze_and_leaves_curves(tmp_path: Path) -> None:
    def true_env() -> Any:
        return make_point_maze(maze_map=MAZE, goal=GOAL, reward_type="dense", max_episode_steps=60)

    quick: dict[str, Any] = {"n_steps": 12, "batch_size": 128, "gamma": 0.9}
    curious = train_on_reward(None, MAZE, GOAL, "PPO", 1, max_episode_steps=60, learning_rate=0.0, n_epochs=1, **quick)
    skilled = train_on_reward(
        None, MAZE, GOAL, "PPO", 8_000, max_episode_steps=60, out=tmp_path, learning_rate=3e-3, **quick
    )
    before, after = (evaluate_trained(model, true_env, n_eval_episodes=4) for model in (curious, skilled))
    assert before.success_rate == 0.0 and after.success_rate == 1.0
    assert after.returns.mean() > 1.3 * before.returns.mean()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"time/total_timesteps", "rollout/ep_rew_mean", "rollout/success_rate"} <= set(header)
    (events,) = tmp_path.glob("events.out.tfevents.*")
    train_on_reward(None, MAZE, GOAL, "PPO", 1, max_episode_steps=60, out=tmp_path, n_epochs=1, **quick)
    assert [path != events for path in tmp_path.glob("events.out.tfevents.*")] == [True]  # only the later run's


@pytest.mark.parametrize(
    ("algorithm", "arguments"),
    [
        ("PPO", {"n_steps": 2, "n_epochs": 1, "batch_size": 256}),
        ("SAC", {"learning_starts": 16, "gradient_steps": 1}),
    ],
)
def test_agents_train_on_rho(algorithm: str, arguments: dict[str, Any]) -> None:
    seen: list[int] = []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            return True

    for callback in (Count(), [Count()], lambda local, _: local is not None):
        model = train_on_reward(
            make_reward(), MAZE, GOAL, algorithm, 48, transform=BoundedReward(0.0), callback=callback, **arguments
        )
    assert len(seen) == 2 * model.num_timesteps / model.n_envs
    assert ActionRepeat(model).predict(np.zeros(4))[0].shape == (2,)


def test_training_is_reproducible() -> None:
    reward = make_reward()
    quick: dict[str, Any] = {"n_steps": 2, "n_epochs": 1, "batch_size": 256}
    one, other = (train_on_reward(reward, MAZE, GOAL, "PPO", 256, 7, transform=np.exp, **quick) for _ in range(2))
    assert np.array_equal(*(model.predict(np.ones((1, 4)), deterministic=True)[0] for model in (one, other)))


def test_training_leaves_the_settings_as_they_are() -> None:
    before = {name: str(settings) for name, settings in SETTINGS.items()}
    train_on_reward(None, MAZE, GOAL, "SAC", 32, learning_starts=16, gradient_steps=1)
    assert {name: str(settings) for name, settings in SETTINGS.items()} == before


def test_unknown_algorithms_and_empty_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="algorithm must be one of PPO, SAC, got 'DQN'"):
        train_on_reward(None, MAZE, GOAL, "DQN")
    with pytest.raises(ValueError, match="total_timesteps is 0"):
        train_on_reward(None, MAZE, GOAL, "PPO", 0)


# ---------------------------------------------------------------------- behaviour cloning


def _push() -> TrajectoryDataset:
    """Actions that are a linear function of the observation."""
    observations = np.random.default_rng(0).uniform(-1, 1, (512, 4)).astype(np.float32)
    return TrajectoryDataset.from_arrays(observations, 0.8 * observations[:, :2][:, ::-1], episode_lengths=[512])


def test_behaviour_cloning_imitates() -> None:
    before = torch.get_rng_state()
    policy = clone_behaviour(_push(), 300, net_arch=(32,), batch_size=128, learning_rate=1e-2)
    assert torch.equal(torch.get_rng_state(), before)
    actions, _ = policy.predict(_push().observations, deterministic=True)
    assert np.abs(actions - _push().actions).mean() < 0.05


def test_a_cloned_expert_finds_the_goal() -> None:
    policy = clone_behaviour(collect_point_maze(MAZE, 5_000, goal=GOAL), 300, net_arch=(32, 32), learning_rate=3e-3)
    result = evaluate(policy, lambda: make_point_maze(maze_map=MAZE, goal=GOAL, max_episode_steps=150), 4)
    assert result.success_rate == 1.0
