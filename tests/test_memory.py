"""What a planner remembers: the noise of an episode, which no rounding decides, and a history of observations."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from helpers.agents import (
    DATASET,
    EXPERT_DATASET,
    KINDS,
    NARROW,
    NORMALIZER,
    SMALL,
    Drift,
    agent_of_kind,
    make_agent,
    same_tensors,
)
from stable_baselines3.common.vec_env import DummyVecEnv

from rrpolicy import (
    DiffusionAgent,
    GuidedPlanner,
    Normalizer,
    RewardExtractor,
    TrajectoryDataset,
    evaluate,
)
from rrpolicy.agents.options import PlanningOptions
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.windows import WindowSampler
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.testing import check_agent

OBSERVATIONS = DATASET.observations[::17][:6]
NOBODY = np.zeros(6, dtype=bool)

# ---------------------------------------------------------------------- deterministic noise


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_bit_of_an_observation_does_not_decide(kind: str) -> None:
    """Neither of an episode's first observation nor of a later one; another start has noise of its own."""
    agent = agent_of_kind(kind)
    state: Any = None
    for _ in range(2 * agent.planning.n_action_steps + 1):
        action, after = agent.predict(OBSERVATIONS, state, deterministic=True)
        for direction in (-np.inf, np.inf):
            beside = np.nextafter(OBSERVATIONS, np.float32(direction))
            near, _ = agent.predict(beside, state, deterministic=True)
            np.testing.assert_allclose(near, action, atol=1e-4)
        state = after
    assert len({int(key) for key in state.noise[:, 0]}) == 6


def test_every_plan_of_an_episode_has_its_own_noise() -> None:
    agent = make_agent(n_action_steps=2)
    plans, state = [], None
    for _ in range(6):
        _, state = agent.predict(OBSERVATIONS, state, NOBODY, deterministic=True)
        plans.append(state[0])
    assert np.array_equal(plans[0], plans[1]) and np.array_equal(plans[2], plans[3])
    assert np.abs(plans[2] - plans[0]).max() > 0.02 and np.abs(plans[4] - plans[2]).max() > 0.02
    again = agent.predict(OBSERVATIONS, state, np.arange(6) < 3, deterministic=True)[1]
    np.testing.assert_allclose(again[0][:3], plans[0][:3], atol=1e-5)  # the same start: the same episode
    assert state.noise[:, 1].tolist() == [3] * 6 and again.noise[:, 1].tolist() == [1] * 3 + [4] * 3


def test_observations_that_only_look_alike_in_large_units_differ() -> None:
    """A robot's starts differ by thousandths of what its data reach."""
    agent = make_agent()
    starts = np.repeat(OBSERVATIONS[:1], 50, axis=0)
    starts[:, :2] += np.random.default_rng(0).uniform(-5e-3, 5e-3, (50, 2))
    state: Any = agent.predict(starts, deterministic=True)[1]
    assert len({int(key) for key in state.noise[:, 0]}) > 40


@pytest.mark.parametrize("kind", ["plain", "warm", "history"])
def test_episodes_are_the_same_for_any_number_of_environments(kind: str) -> None:
    agent = agent_of_kind(kind)
    wanted = evaluate(agent, Drift, 5, seed=3, n_envs=1)
    assert len(set(wanted.returns)) == 5
    for n_envs in (2, 5):
        found = evaluate(agent, Drift, 5, seed=3, n_envs=n_envs)
        np.testing.assert_allclose(found.returns, wanted.returns, atol=1e-4)
    for several in (DummyVecEnv([Drift] * 3), SyncVectorEnv([Drift] * 3)):
        found = evaluate(agent, several, 5, seed=3)
        np.testing.assert_allclose(found.returns, wanted.returns, atol=1e-4)


def test_seeds_move_only_stochastic_plans() -> None:
    agent = make_agent()
    planned = agent.predict(OBSERVATIONS, deterministic=True)[0], agent.plan(OBSERVATIONS)
    agent.set_random_seed(7)
    assert np.array_equal(planned[0], agent.predict(OBSERVATIONS, deterministic=True)[0])
    assert np.array_equal(planned[1], agent.plan(OBSERVATIONS))
    assert not np.array_equal(*(agent.predict(OBSERVATIONS)[0] for _ in range(2)))


# ---------------------------------------------------------------------- windows with a history


def counting(lengths: tuple[int, ...] = (9, 5)) -> TrajectoryDataset:
    """Observations that are their own row number, actions ten times as much."""
    rows = np.arange(float(sum(lengths)))[:, None]
    return TrajectoryDataset.from_arrays(rows, 10 * rows, episode_lengths=lengths)


def test_a_layout_pins_the_rows_up_to_the_present() -> None:
    layout = TrajectoryLayout(4, 2, 5, stride=3, observation_columns=(0, 1, 3), n_observation_rows=2)
    assert layout.pinned[:2].tolist() == [[False, False, True, True, True]] * 2 and not layout.pinned[2:].any()
    assert (layout.present, layout.past, layout.span, layout.longest_execution) == (1, 3, 13, 12)
    assert TrajectoryLayout.from_dict(layout.to_dict()) == layout
    assert "n_observation_rows" not in TrajectoryLayout(4, 2, 5).to_dict()  # as in the archives that there are


@pytest.mark.parametrize(
    ("n_rows", "horizon", "plan_actions", "fault"),
    [
        (0, 4, True, "wanted an integer of at least 1"),
        (True, 4, True, "wanted an integer"),
        (1.5, 4, True, "wanted an integer"),
        (5, 4, True, "leaves no row to plan of 4"),
        (4, 4, False, "leaves no row to plan of 4"),
    ],
)
def test_histories_that_leave_nothing_to_plan_are_refused(
    n_rows: Any, horizon: int, plan_actions: bool, fault: str
) -> None:
    with pytest.raises(ValueError, match=f"n_observation_rows={n_rows}.*{fault}"):
        TrajectoryLayout(4, 2, horizon, n_observation_rows=n_rows, plan_actions=plan_actions)
    TrajectoryLayout(4, 2, 4, n_observation_rows=4)


def test_windows_begin_with_the_history_of_their_episode() -> None:
    layout = TrajectoryLayout(1, 1, horizon=4, stride=2, n_observation_rows=2)
    dataset = counting()
    assert dataset.window_starts(layout).tolist() == [0, 1, 2, 3, 4, 9]  # two rows ahead: four steps
    windows = dataset.windows(layout, np.array([0, 1, 4, 9, 10, 13]))
    assert windows.observations[..., 0].tolist() == [
        [0, 0, 2, 4],
        [0, 1, 3, 5],
        [2, 4, 6, 8],
        [9, 9, 11, 13],
        [9, 10, 12, 13],
        [11, 13, 13, 13],
    ]
    assert windows.mask.tolist() == [[True] * 4] * 4 + [[True, True, True, False], [True, True, False, False]]
    np.testing.assert_array_equal(windows.actions, 10 * windows.observations)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_sampler_draws_the_windows_of_the_dataset(padding: bool, stride: int) -> None:
    layout, dataset = TrajectoryLayout(1, 1, 4, stride, n_observation_rows=3), counting()
    normalizer = Normalizer.fit(dataset)
    drawn, mask = WindowSampler([dataset], layout, normalizer, padding).draw(400, torch.Generator().manual_seed(0))
    windows = dataset.windows(layout, dataset.window_starts(layout, padding))
    wanted = {
        (tuple(rows), tuple(whole))
        for rows, whole in zip(windows.observations[..., 0].tolist(), windows.mask.tolist(), strict=True)
    }
    seen = np.rint(normalizer.observations.denormalize(layout.observations_of(drawn.numpy()))[..., 0])
    assert {(tuple(rows), tuple(whole)) for rows, whole in zip(seen.tolist(), mask.tolist(), strict=True)} == wanted


def test_episodes_as_long_as_the_plan_are_long_enough() -> None:
    layout = TrajectoryLayout(1, 1, horizon=6, n_observation_rows=2)
    assert counting((5,)).window_starts(layout).tolist() == [0]
    with pytest.raises(ValueError, match="layout spans 5 environment steps"):
        counting((4,)).window_starts(layout)
    with pytest.raises(ValueError, match="layout spans 5 environment steps"):
        WindowSampler([counting((4,))], layout, Normalizer.fit(counting()))


# ---------------------------------------------------------------------- acting with a history


def test_plans_begin_with_the_observations_that_were_seen() -> None:
    agent = make_agent(n_observation_rows=3, stride=2, n_action_steps=3)
    seen: list[np.ndarray] = []
    state: Any = None
    for step in range(10):
        observations = (OBSERVATIONS + 0.01 * step).astype(np.float32)
        seen.append(observations)
        actions, state = agent.predict(observations, state, np.full(6, step == 0), deterministic=True)
        begun = step - int(state.age[0]) + 1
        known = np.stack([seen[max(begun - back, 0)] for back in (4, 2, 0)], axis=1)
        rows = agent.planned_observations(state.plans)[:, :3]
        np.testing.assert_allclose(rows[..., :3], known[..., :3], atol=1e-5)
        # the first action is that of the present row, and those of two steps later that of the next row
        plan = agent.normalizer.actions.denormalize(agent.layout.actions_of(state.plans))
        if step in (begun, begun + 2):
            np.testing.assert_allclose(actions, np.clip(plan[:, 2 + (step - begun) // 2], -1, 1), atol=1e-5)
    fresh = agent.predict(OBSERVATIONS, state, np.ones(6, dtype=bool), deterministic=True)[1]
    rows = agent.planned_observations(fresh[0])[:, :3, :3]
    np.testing.assert_allclose(rows, np.repeat(OBSERVATIONS[:, None, :3], 3, axis=1), atol=1e-5)


class Hidden(gym.Env[np.ndarray, np.ndarray]):
    """A point on a line that moves by its action; the observation does not tell from where it came."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}


def two_ways(n_episodes: int = 200, length: int = 4) -> TrajectoryDataset:
    """Half of the episodes go on by +0.5 in every step, the others by -0.5, from anywhere."""
    rng = np.random.default_rng(0)
    direction = rng.choice([-0.5, 0.5], n_episodes)
    rows = rng.uniform(-1, 1, n_episodes)[:, None] + direction[:, None] * np.arange(length)
    actions = np.repeat(direction, length)
    return TrajectoryDataset.from_arrays(rows.reshape(-1, 1), actions[:, None], episode_lengths=[length] * n_episodes)


@pytest.mark.slow  # fits; what a plan with a history begins with is above
def test_a_history_tells_what_one_observation_hides() -> None:
    """Which way the point came is known from two observations and not from one."""
    errors = {}
    for n_rows in (1, 2):
        agent = DiffusionAgent(
            "MlpPolicy",
            Hidden(),
            horizon=3,
            batch_size=128,
            process=DiffusionProcess(10),
            planning=PlanningOptions(n_action_steps=1),
            policy_kwargs=NARROW,
            seed=0,
            n_observation_rows=n_rows,
            ema_decay=0.99,
        )
        agent.learn(two_ways(), 600, log_interval=0)
        before = np.linspace(-0.5, 0.5, 32, dtype=np.float32)[:, None]
        errors[n_rows] = 0.0
        for direction in (-0.5, 0.5):
            _, state = agent.predict(before, None, np.ones(32, dtype=bool))
            actions, _ = agent.predict(before + np.float32(direction), state, np.zeros(32, dtype=bool))
            errors[n_rows] += float(np.abs(actions - direction).mean()) / 2
    assert errors[2] < 0.05 and errors[1] > 0.2, errors


# ---------------------------------------------------------------------- pairs, archives, contracts


def test_an_agent_with_a_history_keeps_every_promise() -> None:
    for kind in ("history", "history-controller"):
        agent = agent_of_kind(kind).learn(DATASET, 2)
        assert check_agent(agent, Drift())


def test_archives_keep_the_history(tmp_path: Any) -> None:
    agent = make_agent(n_observation_rows=3).learn(DATASET, 3)
    agent.save(tmp_path / "agent.zip")
    loaded = DiffusionAgent.load(tmp_path / "agent.zip")
    assert loaded.layout == agent.layout
    one, other = (each.sample_pinned(50, torch.Generator().manual_seed(0)) for each in (agent, loaded))
    assert torch.equal(one, other)
    # what is sampled begins with rows that follow each other in the data
    rows = agent.normalizer.observations.denormalize(agent.layout.observations_of(one.numpy()))[:, :3]
    known = DATASET.windows(agent.layout, np.arange(len(DATASET))).observations[:, :3]
    distance = np.abs(rows[:, None] - known[None]).max(axis=(2, 3)).min(axis=1)
    assert distance.max() < 1e-5
    again = DiffusionAgent.load(tmp_path / "agent.zip").learn(DATASET, 2, reset_num_timesteps=False)
    on = agent.learn(DATASET, 2, reset_num_timesteps=False)
    assert same_tensors(again.module.state_dict(), on.module.state_dict())


def test_a_pair_with_histories_gives_a_reward_that_steers(tmp_path: Any) -> None:
    made = {"n_observation_rows": 2, "normalizer": NORMALIZER}
    base, expert = make_agent(**made).learn(DATASET, 5), make_agent(**made).learn(EXPERT_DATASET, 5)
    extractor = RewardExtractor(base, expert, window_kwargs=SMALL["policy_kwargs"], buffer_size=64, batch_size=32)
    reward = extractor.learn([DATASET, EXPERT_DATASET], 3).reward
    planner = GuidedPlanner(base, reward)
    windows = DATASET.windows(base.layout, np.arange(4))
    assert np.isfinite(reward.predict(windows.observations, windows.actions)).all()
    assert check_agent(planner, Drift())
    planner.save(tmp_path / "planner.zip")
    actions = [
        each.predict(OBSERVATIONS, deterministic=True)[0]
        for each in (planner, GuidedPlanner.load(tmp_path / "planner.zip"))
    ]
    np.testing.assert_array_equal(*actions)
    with pytest.raises(ValueError, match="n_observation_rows"):
        GuidedPlanner(make_agent().learn(DATASET, 1), reward)
