"""The diffusion agent as a policy: SB3's contract in every clause, and in the loops of SB3 and gymnasium.

What can be shown without training is shown on an untrained agent: its plans are noise, but noise obeys the contract.
"""

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordVideo
from helpers.agents import DATASET, EXPERT_DATASET, KINDS, NORMALIZER, Drift, agent_of_kind, make_agent, make_dataset
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder

from rrpolicy import DiffusionAgent, Normalizer, TrajectoryDataset
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible
from rrpolicy.envs.point_maze import make_point_maze

OBSERVATIONS = DATASET.observations[::17][:6]
CLOSE: dict[str, float] = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(params=KINDS)
def agent(request: pytest.FixtureRequest) -> DiffusionAgent:
    return agent_of_kind(request.param)


# ---------------------------------------------------------------------- contract 1: predict


def test_one_observation_and_a_batch(agent: DiffusionAgent) -> None:
    actions, state = agent.predict(OBSERVATIONS)
    assert actions.shape == (6, 2) and actions.dtype == np.float32
    assert all(isinstance(array, np.ndarray) and len(array) == 6 for array in state)
    action, state = agent.predict(OBSERVATIONS[0])
    assert action.shape == (2,) and all(len(array) == 1 for array in state)


def test_actions_lie_in_the_action_space(agent: DiffusionAgent) -> None:
    for scale in (1.0, 100.0):
        assert all(agent.action_space.contains(action) for action in agent.predict(scale * OBSERVATIONS)[0])


def test_deterministic_is_a_function_of_observation_and_state(agent: DiffusionAgent) -> None:
    action, state = agent.predict(OBSERVATIONS, deterministic=True)
    agent.predict(EXPERT_DATASET.observations[:3])  # other calls leave nothing behind
    agent.plan(OBSERVATIONS[0], deterministic=False)
    again, state_again = agent.predict(OBSERVATIONS, deterministic=True)
    np.testing.assert_array_equal(action, again)
    following = agent.predict(OBSERVATIONS + 0.01, state, np.zeros(6, bool), deterministic=True)[0]
    agent.predict(OBSERVATIONS)
    np.testing.assert_array_equal(
        following, agent.predict(OBSERVATIONS + 0.01, state_again, np.zeros(6, bool), deterministic=True)[0]
    )


def test_stochastic_plans_differ_but_follow_the_seed() -> None:
    one, other = make_agent(), make_agent()
    plans = [one.predict(OBSERVATIONS)[1][0] for _ in range(2)]
    assert abs(plans[0] - plans[1]).max() > 0.01
    np.testing.assert_array_equal(plans[0], other.predict(OBSERVATIONS)[1][0])
    repeated = one.predict(OBSERVATIONS[[0, 0]])[1][0]
    assert abs(repeated[0] - repeated[1]).max() > 0.01


def test_environments_do_not_meet(agent: DiffusionAgent) -> None:
    """Episodes that begin at different times, together and alone, over several plans."""
    starts = np.zeros((12, 6), bool)
    starts[0] = True
    starts[[2, 5, 7], [0, 3, 4]] = True
    state, alone = None, [None] * 6
    for step, begins in enumerate(starts):
        observations = OBSERVATIONS + 0.05 * step
        actions, state = agent.predict(observations, state, begins, deterministic=True)
        for i in range(6):
            action, alone[i] = agent.predict(observations[i : i + 1], alone[i], begins[i : i + 1], deterministic=True)
            np.testing.assert_allclose(actions[i : i + 1], action, **CLOSE)


def test_a_plan_is_executed_before_the_next_is_made() -> None:
    agent = make_agent(n_action_steps=3)
    state, plans = None, []
    for step in range(7):
        _, state = agent.predict(OBSERVATIONS + 0.1 * step, state, np.full(6, step == 0), deterministic=True)
        plans.append(state[0])
    assert [np.array_equal(a, b) for a, b in itertools.pairwise(plans)] == [True, True, False, True, True, False]


@pytest.mark.parametrize("lookahead", [0.5, 1.0, 2.25])
def test_a_controller_aims_at_a_place_ahead_on_the_plan(lookahead: float) -> None:
    agent = make_agent(**KINDS["controller"], lookahead=lookahead)
    controller, observation = agent.controller, OBSERVATIONS[0]
    assert controller is not None
    action, state = agent.predict(observation)
    rows = agent.planned_observations(state[0])[0]
    for step in range(agent.planning.n_action_steps):
        place = step / agent.layout.stride + lookahead
        target = np.array([np.interp(place, np.arange(len(rows)), rows[:, column]) for column in (0, 1)])
        np.testing.assert_allclose(action, controller.action(observation, target), atol=1e-5)
        action, state = agent.predict(observation, state)


def executed(agent: DiffusionAgent, actions: np.ndarray, n_steps: int) -> np.ndarray:
    """What is done in ``n_steps`` by an agent whose plan holds these actions (H, 2) in environment units."""
    plan = agent.layout.pack(np.zeros((agent.layout.horizon, 4)), agent.normalizer.actions.normalize(actions))
    first: Any = agent.predict(DATASET.observations[:1])[1]
    state: tuple[np.ndarray, ...] = first._replace(plans=plan[None].astype(np.float32), age=np.zeros(1, np.int64))
    done = []
    for _ in range(n_steps):
        action, state = agent.predict(DATASET.observations[:1], state)
        done.append(action[0])
    return np.stack(done)


@pytest.mark.parametrize("stride", [2, 4])
def test_planned_actions_between_rows_are_interpolated(stride: int) -> None:
    """Not held, which would make a staircase of a smooth movement."""
    agent = make_agent(stride=stride, n_action_steps=7 * stride + 1)
    steps = np.arange(7 * stride + 1)
    smooth = np.column_stack([np.sin(0.16 * steps), np.cos(0.16 * steps)]) * 0.9
    done = executed(agent, smooth[::stride], len(steps))
    rows = np.arange(8) * stride
    np.testing.assert_allclose(done[::stride], smooth[::stride], atol=1e-5)
    np.testing.assert_allclose(done[:, 0], np.interp(steps, rows, smooth[::stride, 0]), atol=1e-5)
    held = np.abs(smooth[steps // stride * stride] - smooth).max()
    assert np.abs(done - smooth).max() < 0.15 * held


def test_after_the_last_row_of_a_plan_its_action_is_held() -> None:
    agent = make_agent(stride=3, n_action_steps=24)
    actions = np.linspace(-0.8, 0.8, 16).reshape(8, 2)
    done = executed(agent, actions, 24)
    np.testing.assert_allclose(done[21:], np.broadcast_to(actions[-1], (3, 2)), atol=1e-5)
    np.testing.assert_allclose(done[:8], actions[0] + np.arange(8)[:, None] / 3 * (actions[1] - actions[0]), atol=1e-5)


@pytest.mark.parametrize(("stride", "n_action_steps"), [(1, 3), (4, 8), (4, 6), (3, 8)])
def test_a_refined_plan_goes_on_where_execution_stopped(stride: int, n_action_steps: int) -> None:
    """Also between two rows: without noise, what is left of a plan is the plan."""
    agent = make_agent(stride=stride, n_action_steps=n_action_steps, warm_start=0, clip=None)
    steps = np.arange(8) * stride
    plan = np.broadcast_to(0.02 * steps[:, None], agent.event_shape).astype(np.float32)[None]
    first: Any = agent.predict(DATASET.observations[:1])[1]
    seen: list[np.ndarray] = []
    agent.process.q_sample = lambda x0, *_: seen.append(x0.numpy().copy()) or x0  # type: ignore[method-assign]
    agent.predict(DATASET.observations[:1], first._replace(plans=plan, age=np.full(1, n_action_steps)))
    wanted = 0.02 * np.minimum(steps + n_action_steps, steps[-1])
    np.testing.assert_allclose(seen[0][0, :, 0], wanted, atol=1e-6)


def test_rows_of_every_step_are_executed_as_they_are() -> None:
    agent = make_agent(n_action_steps=8)
    actions = np.sin(np.arange(16.0)).reshape(8, 2) * 0.9
    np.testing.assert_allclose(executed(agent, actions, 8), actions, atol=1e-6)


def test_a_lookahead_beyond_the_plan_is_refused() -> None:
    for lookahead in (0.0, 8.0):
        with pytest.raises(ValueError, match=f"lookahead is {lookahead}, it must lie above 0 and up to 7"):
            make_agent(**KINDS["controller"], lookahead=lookahead)


def test_episode_start_alone_forgets_the_plan() -> None:
    agent = make_agent()
    _, state = agent.predict(OBSERVATIONS, deterministic=True)
    moved = OBSERVATIONS + 0.5
    fresh = agent.predict(moved, None, np.ones(6, bool), deterministic=True)[0]
    mixed = agent.predict(moved, state, np.arange(6) < 2, deterministic=True)[0]
    kept = agent.predict(moved, state, np.zeros(6, bool), deterministic=True)[0]
    np.testing.assert_allclose(mixed[:2], fresh[:2], **CLOSE)
    np.testing.assert_array_equal(mixed[2:], kept[2:])
    assert abs(kept - fresh).max() > 0.01


def test_predict_changes_nothing(agent: DiffusionAgent) -> None:
    agent.module.train()
    modes = [module.training for root in (agent.module, agent.averaged) for module in root.modules()]
    observations, starts = OBSERVATIONS.copy(), np.zeros(6, bool)
    _, state = agent.predict(observations)
    copies = [array.copy() for array in state]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]
    for _ in range(10):
        agent.predict(observations, state, starts)
    for given, copy in zip((*state, observations, starts), (*copies, OBSERVATIONS, np.zeros(6, bool)), strict=True):
        np.testing.assert_array_equal(given, copy)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()
    assert modes == [module.training for root in (agent.module, agent.averaged) for module in root.modules()]
    assert all(parameter.grad is None for parameter in agent.module.parameters())


def test_all_environments_are_planned_in_one_batched_call(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent()
    batches: list[int] = []
    agent.averaged.network.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    agent.predict(OBSERVATIONS)
    assert batches == [6] * agent.planning.n_sampling_steps


def test_imitation_s_call() -> None:
    one, other = make_agent(), make_agent()
    actions, state = one(OBSERVATIONS, None, np.ones(6, bool))
    wanted, wanted_state = other.predict(OBSERVATIONS, None, np.ones(6, bool), deterministic=False)
    np.testing.assert_array_equal(actions, wanted)
    np.testing.assert_array_equal(state[0], wanted_state[0])


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(3), r"observation has shape \(3,\), wanted \(4,\) or \(n_envs, 4\)"),
        (np.zeros((2, 5)), r"observation has shape \(2, 5\), wanted \(4,\) or \(n_envs, 4\)"),
        (np.zeros((1, 1, 4)), r"observation has shape \(1, 1, 4\), wanted"),
        (0.0, r"observation has shape \(\), wanted"),
        (np.array([0, np.nan, 0, 0]), r"shape \(4,\) holds NaN or inf, wanted finite values of shape \(4,\)"),
        (np.full((2, 4), np.inf), r"shape \(2, 4\) holds NaN or inf, wanted"),
    ],
)
def test_wrong_observations_are_refused(observation: Any, message: str) -> None:
    agent = make_agent()
    for call in (agent.predict, agent.plan):
        with pytest.raises(ValueError, match=message):
            call(observation)


def test_a_state_of_another_batch_is_refused() -> None:
    agent = make_agent()
    _, state = agent.predict(OBSERVATIONS)
    with pytest.raises(ValueError, match=r"state holds plans of shape \(6, 8, 6\), wanted .* for 2 environments"):
        agent.predict(OBSERVATIONS[:2], state)


def test_a_plan_begins_at_the_observation_in_environment_units(agent: DiffusionAgent) -> None:
    columns = list(agent.layout.columns)
    plan = agent.plan(OBSERVATIONS)
    assert plan.shape == (6, 8, len(columns))
    np.testing.assert_allclose(plan[:, 0], OBSERVATIONS[:, columns], rtol=0, atol=1e-5)
    np.testing.assert_allclose(agent.plan(OBSERVATIONS[2]), plan[2], **CLOSE)


def test_constant_columns_stay_exact_in_plans() -> None:
    assert (make_agent().plan(OBSERVATIONS)[..., 3] == 3.0).all()


# ---------------------------------------------------------------------- the loops of SB3 and gymnasium


def test_sb3_evaluate_runs_unmodified() -> None:
    env = DummyVecEnv([lambda: Monitor(Drift())] * 3)
    returns, lengths = evaluate_policy(make_agent(), env, n_eval_episodes=6, return_episode_rewards=True)
    assert lengths == [10] * 6 and np.isfinite(returns).all()


@pytest.fixture(scope="module")
def maze_agent() -> DiffusionAgent:
    dataset = make_dataset(length=30)
    return make_agent(normalizer=None).learn(dataset, 2)


def test_sb3_video_recorder_runs_unmodified(maze_agent: DiffusionAgent, tmp_path: Path) -> None:
    env: Any = DummyVecEnv([lambda: make_point_maze(render_mode="rgb_array", render_size=64)])
    env = VecVideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=12)
    observations, state, starts = env.reset(), None, np.ones(1, bool)
    for _ in range(13):
        actions, state = maze_agent.predict(observations, state, starts)
        observations, _, starts, _ = env.step(actions)
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 500


def test_gymnasium_record_video_runs_unmodified(maze_agent: DiffusionAgent, tmp_path: Path) -> None:
    env = make_point_maze(render_mode="rgb_array", render_size=64, max_episode_steps=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        env = RecordVideo(env, str(tmp_path), episode_trigger=lambda _: True)
    (observation, _), state, done = env.reset(seed=0), None, False
    while not done:
        action, state = maze_agent.predict(observation, state)
        observation, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
    env.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 500


def test_sb3_evaluates_in_the_real_maze(maze_agent: DiffusionAgent) -> None:
    env = Monitor(make_point_maze(max_episode_steps=20))
    returns, lengths = evaluate_policy(maze_agent, env, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [20, 20] and len(returns) == 2


# ---------------------------------------------------------------------- learning


def test_learning_lowers_the_denoising_error() -> None:
    agent, losses = make_agent(normalizer=None, batch_size=64, learning_rate=3e-3), []
    agent.learn(DATASET, 100, callback=lambda local, _: losses.append(float(local["values"]["loss"])) or True)
    assert np.mean(losses[-30:]) < 0.6 * np.mean(losses[:10])


def test_padding_is_masked_out_of_the_loss() -> None:
    agent = make_agent()
    x0, mask = torch.randn(4, 8, 6), torch.ones(4, 8, dtype=torch.bool)
    mask[:, 5:] = False
    changed = torch.where(mask[..., None], x0, 7.0)
    inner = agent.module.network
    agent.module.network = torch.nn.Identity()  # a network that looks at nothing else
    agent.module.network.forward = lambda x_t, t: torch.zeros_like(x_t)  # type: ignore[method-assign]
    losses = [float(agent.module.loss(x, mask, torch.Generator().manual_seed(0))) for x in (x0, changed)]
    agent.module.network = inner
    assert losses[0] == losses[1] > 0


def test_pinned_entries_carry_no_noise_and_no_loss() -> None:
    agent = make_agent(prediction="eps", first_action_weight=5.0)
    assert (agent.module.loss_weight[0, 2:] == 0).all()
    assert agent.module.loss_weight[0, 0] == pytest.approx(5 * float(agent.module.loss_weight[1, 0]))
    assert float(agent.module.loss_weight.mean()) == pytest.approx(1.0)
    eps = agent.eps(torch.randn(3, 8, 6), torch.tensor([0, 4, 9]))
    assert (eps[:, 0, 2:] == 0).all() and (eps[:, 1:] != 0).any()


def test_the_normaliser_is_fitted_once_or_given() -> None:
    agent = make_agent(normalizer=None)
    with pytest.raises(ValueError, match="the agent has no normalizer"):
        agent.predict(OBSERVATIONS)
    agent.learn(DATASET, 1).learn(EXPERT_DATASET, 1)
    assert agent.normalizer == Normalizer.fit(DATASET)
    both = make_agent(normalizer=None).learn([DATASET, EXPERT_DATASET], 1)
    assert both.normalizer == NORMALIZER == Normalizer.fit(TrajectoryDataset.concatenate([DATASET, EXPERT_DATASET]))


# ---------------------------------------------------------------------- a score model


def test_it_is_a_score_model_that_knows_its_start_rows() -> None:
    agent = make_agent(normalizer=None).learn(DATASET, 1)
    assert isinstance(agent, ScoreModel) and agent.event_shape == (8, 6)
    windows = agent.sample_pinned(50, torch.Generator().manual_seed(0))
    rows = windows[:, 0, 2:]
    known = torch.as_tensor(agent.normalizer.observations.normalize(np.array(DATASET.observations)))
    assert (rows[:, None] == known[None]).all(dim=2).any(dim=1).all()
    assert (windows[:, 1:] == 0).all() and (windows[:, 0, :2] == 0).all()


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"horizon": 10}, "event_shape"),
        ({"n_diffusion_steps": 12}, "process.n_diffusion_steps"),
        ({"n_diffusion_steps": 30, "schedule": "linear"}, "process"),
        ({"stride": 2}, "stride=1 against stride=2"),
        ({"normalizer": Normalizer.fit(DATASET)}, "normalizer="),
    ],
)
def test_agents_of_different_spaces_are_told_apart(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"base and expert differ in .*{field}"):
        check_compatible(make_agent(), make_agent(**kwargs))
    check_compatible(make_agent(), make_agent(seed=5, sampler="ddpm", n_action_steps=2))
