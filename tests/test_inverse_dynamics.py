"""Inverse dynamics against systems whose inverse is known, and as the controller of an agent: learned, kept, steered.

Contracts of agents run on it in the other files (kind ``inverse`` of `small`).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, KINDS, NARROW, NORMALIZER, Drift, make_agent, same_tensors
from helpers.forged import forge
from stable_baselines3.common.callbacks import BaseCallback

from rrpolicy import DiffusionAgent, GuidedPlanner, Normalizer, RelativeReward, RewardExtractor, TrajectoryDataset
from rrpolicy.agents.arguments import grouped
from rrpolicy.agents.inverse_dynamics import InverseDynamics, LearnedController
from rrpolicy.common.archive import read_archive
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.diffusion.score_model import check_compatible
from rrpolicy.envs.controller import PDController

OBSERVATIONS = DATASET.observations[::17][:6]
B = np.array([[0.2, 0.05, 0.0], [-0.1, 0.15, 0.3]])  # o' = o + a B: three columns, two actions
TOTAL = 12


def make_linear_dataset(n_episodes: int = 20, length: int = 50) -> TrajectoryDataset:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (n_episodes, length, 2))
    moved = np.concatenate([np.zeros((n_episodes, 1, 3)), np.cumsum(actions @ B, axis=1)[:, :-1]], axis=1)
    observations = rng.uniform(-1, 1, (n_episodes, 1, 3)) + moved
    return TrajectoryDataset.from_arrays(
        observations.reshape(-1, 3), actions.reshape(-1, 2), episode_lengths=[length] * n_episodes
    )


LINEAR = make_linear_dataset()


def make_linear_agent(**kwargs: Any) -> DiffusionAgent:
    env = Drift()
    env.observation_space = type(env.observation_space)(-np.inf, np.inf, (3,), np.float64)
    options: dict[str, Any] = {"horizon": 4, "n_diffusion_steps": 10, "policy_kwargs": NARROW, "seed": 0}
    return DiffusionAgent("MlpPolicy", env, controller="inverse-dynamics", **grouped({**options, **kwargs}))


def make_inverse_agent(**kwargs: Any) -> DiffusionAgent:
    return make_agent(**{**KINDS["inverse"], **kwargs})


class StopAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._last = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self._last


# ---------------------------------------------------------------------- what is learned


@pytest.fixture(scope="module")
def linear_agent() -> DiffusionAgent:
    return make_linear_agent(learning_rate=1e-2, ema_decay=0.95, batch_size=64).learn(LINEAR, 150)


def test_it_inverts_a_linear_system(linear_agent: DiffusionAgent) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(LINEAR.n_transitions, size=200)
    current, wanted = LINEAR.observations[rows], rng.uniform(-0.9, 0.9, (200, 2))
    assert linear_agent.controller is not None
    actions = linear_agent.controller.action(current, current + wanted @ B)
    assert np.sqrt(((actions - wanted) ** 2).mean()) < 0.03  # of a spread of 0.52


def test_following_a_plan_reaches_its_rows(linear_agent: DiffusionAgent) -> None:
    """The system itself, driven by the agent's actions, passes through the planned observations."""
    observation = LINEAR.observations[7]
    controller = linear_agent.controller
    assert controller is not None
    path = observation + np.cumsum(np.tile([[0.3, -0.2], [-0.4, 0.5]], (5, 1)) @ B, axis=0)
    for target in path:
        observation = observation + controller.action(observation, target) @ B
        assert abs(observation - target).max() < 0.05


def test_it_learns_from_real_transitions_only() -> None:
    """A layout of two rows, as far apart as the plan's, never across the end of an episode."""
    agent = make_inverse_agent(stride=3, observation_columns=(1, 0)).learn(DATASET, 1)
    transitions = agent.averaged.inverse_dynamics.transitions([DATASET], agent.normalizer)
    drawn, mask = transitions.draw(200, torch.Generator().manual_seed(0))
    assert mask.all() and drawn.shape == (200, 2, 6)
    observations = torch.as_tensor(agent.normalizer.observations.normalize(DATASET.observations))
    actions = torch.as_tensor(agent.normalizer.actions.normalize(DATASET.actions))
    row = (drawn[:, 0, None, 2:] == observations).all(dim=2).float().argmax(dim=1)
    assert (row % 24 < 24 - 3).all()
    assert torch.equal(drawn[:, 0, :2], actions[row]) and torch.equal(drawn[:, 1, 2:], observations[row + 3])


def test_the_loss_is_the_squared_error_of_the_first_action() -> None:
    network = InverseDynamics(TrajectoryLayout(4, 2, 8, observation_columns=(2, 0)), width=8, n_blocks=1)
    rows = torch.randn(5, 2, 6)
    predicted = network(rows[:, 0, 2:], rows[:, 1][:, [4, 2]])
    torch.testing.assert_close(network.loss(rows), (predicted - rows[:, 0, :2]).square().mean())


def test_the_controller_speaks_environment_units() -> None:
    network = InverseDynamics(TrajectoryLayout(4, 2, 8, observation_columns=(2, 0)), width=8, n_blocks=1)
    controller = LearnedController(network, NORMALIZER)
    targets = DATASET.observations[1:7][:, [2, 0]]
    actions = controller.action(OBSERVATIONS, targets)
    units = NORMALIZER.observations
    inputs = [torch.as_tensor(units.normalize(OBSERVATIONS)), torch.as_tensor(units.select((2, 0)).normalize(targets))]
    wanted = NORMALIZER.actions.denormalize(network(*inputs).detach().numpy())
    np.testing.assert_array_equal(actions, wanted)
    assert actions.shape == (6, 2) and controller.action(OBSERVATIONS[0], targets[0]).shape == (2,)


# ---------------------------------------------------------------------- in an agent


def test_an_agent_acts_through_it() -> None:
    agent = make_inverse_agent()
    assert not agent.layout.plan_actions and agent.event_shape == (8, 4)
    action, state = agent.predict(OBSERVATIONS, deterministic=True)
    for age in range(agent.planning.n_action_steps):
        target = agent.planned_observations(state[0])[:, age + 1]
        wanted = agent.controller.action(OBSERVATIONS, target)
        np.testing.assert_allclose(action, np.clip(wanted, -1, 1), atol=1e-6)
        action, state = agent.predict(OBSERVATIONS, state, deterministic=True)


def test_it_is_learned_with_the_denoiser() -> None:
    values: list[dict[str, float]] = []
    agent = make_inverse_agent(normalizer=None)
    before = agent.averaged.inverse_dynamics.state_dict()["enter.weight"].clone()
    agent.learn(DATASET, 3, callback=lambda local, _: values.append(local["values"]) or True)
    assert not torch.equal(agent.averaged.inverse_dynamics.enter.weight, before)
    assert all(one["loss"] == pytest.approx(one["denoising"] + one["inverse_dynamics"]) for one in values)
    assert agent.controller.normalizer is agent.normalizer == Normalizer.fit(DATASET)


@pytest.mark.parametrize("n_steps", [0, 1])
def test_the_denoiser_starts_and_steps_as_it_would_without(n_steps: int) -> None:
    """Where the bound on the gradient's norm, the only thing they share, does not bind."""
    learned = make_inverse_agent(max_grad_norm=1e9).learn(DATASET, n_steps)
    law = make_agent(max_grad_norm=1e9, controller=PDController((0, 1), (2, 3))).learn(DATASET, n_steps)
    assert same_tensors(learned.module.network.state_dict(), law.module.network.state_dict())


@pytest.mark.parametrize("step", [1, 5, TOTAL - 1])
def test_resumed_equals_uninterrupted(step: int, tmp_path: Path) -> None:
    whole = make_inverse_agent(normalizer=None).learn(DATASET, TOTAL)
    make_inverse_agent(normalizer=None).learn(DATASET, TOTAL, callback=StopAt(step), checkpoint_path=tmp_path / "agent")
    resumed = DiffusionAgent.load(tmp_path / "agent").learn(DATASET, TOTAL - step, reset_num_timesteps=False)
    assert same_tensors(resumed.get_parameters(), whole.get_parameters())
    assert torch.equal(resumed.generator.get_state(), whole.generator.get_state())


def test_data_without_transitions_are_refused_and_leave_no_trace() -> None:
    single = TrajectoryDataset.from_arrays(DATASET.observations[:9], DATASET.actions[:9], episode_lengths=[1] * 9)
    agent = make_inverse_agent(normalizer=None)
    with pytest.raises(ValueError, match=r"no window fits: layout spans 2 environment steps .* the longest episode"):
        agent.learn(single, 1)
    assert agent.controller is None
    with pytest.raises(ValueError, match="the agent has no normalizer"):
        agent.predict(OBSERVATIONS)


def test_the_archive_keeps_it(tmp_path: Path) -> None:
    agent = make_inverse_agent(normalizer=None).learn(DATASET, 3)
    agent.save(tmp_path / "agent", resumable=False)
    archive = read_archive(tmp_path / "agent")
    assert archive.config["controller"] == "inverse-dynamics"
    assert archive.config["controller_kwargs"] == KINDS["inverse"]["controller_kwargs"]
    assert "inverse_dynamics.enter.weight" in archive.tensors["averaged"]
    loaded = DiffusionAgent.load(tmp_path / "agent")
    targets = DATASET.observations[1:7]
    np.testing.assert_array_equal(*(one.controller.action(OBSERVATIONS, targets) for one in (agent, loaded)))


def test_archives_of_older_versions_load(tmp_path: Path) -> None:
    """They know laws only, and no arguments of controllers."""
    for kind in ("plain", "controller"):
        make_agent(**KINDS[kind]).save(tmp_path / "agent")
        archive = read_archive(tmp_path / "agent")
        del archive.config["controller_kwargs"]
        forge(archive.path, archive.kind, archive.config, archive.tensors)
        assert DiffusionAgent.load(archive.path).controller == KINDS[kind].get("controller")


def test_base_and_expert_each_have_their_own_and_the_base_s_is_followed(tmp_path: Path) -> None:
    base = make_inverse_agent().learn(DATASET, 2)
    expert = make_inverse_agent(seed=1).learn(EXPERT_DATASET, 2)
    check_compatible(base, expert)
    check_compatible(base, make_agent(controller=PDController((0, 1), (2, 3))))  # plans alone are compared
    options: dict[str, Any] = {"batch_size": 16, "buffer_size": 32, "window_kwargs": NARROW, "step_kwargs": NARROW}
    reward: RelativeReward = RewardExtractor(base, expert, **options).learn([DATASET, EXPERT_DATASET], 2).reward
    planner = GuidedPlanner(base, reward)
    planner.save(tmp_path / "planner")
    for one in (planner, GuidedPlanner.load(tmp_path / "planner")):
        targets = DATASET.observations[1:7]
        np.testing.assert_array_equal(*(who.controller.action(OBSERVATIONS, targets) for who in (one, base)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"controller": "pid"}, "controller is 'pid', wanted a PDController, 'inverse-dynamics' or None"),
        ({"controller": None}, "controller_kwargs is .*width.*, wanted none without controller='inverse-dynamics'"),
        ({"controller_kwargs": {"depth": 3}}, "controller_kwargs is {'depth': 3}.*depth"),
        ({"lookahead": 2.0}, "lookahead is 2.0, inverse dynamics is learned for the next row: wanted 1"),
        ({"n_action_steps": 8}, r"n_action_steps is 8, it must lie in 1\.\.7"),
    ],
)
def test_wrong_options_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_inverse_agent(**kwargs)
