"""Steering in closed loop: what scale, candidates and sampler change, what they leave alone, and the archive.

Scale 0 is the base exactly; the kept candidate is the one that the reward itself prefers.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, KINDS, NARROW, Drift, agent_of_kind, make_agent, same_tensors
from helpers.forged import forge
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from rrpolicy import DiffusionAgent, GuidedPlanner, Normalizer, RelativeReward
from rrpolicy.common.archive import read_archive
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.rewards.guidance import GradientAt, guided

OBSERVATIONS = DATASET.observations[::17][:6]


def make_reward(agent: DiffusionAgent, **kwargs: Any) -> RelativeReward:
    """An untrained reward whose gradient is large enough to be felt."""
    reward = RelativeReward.for_model(agent, **{"window_kwargs": NARROW, "step_kwargs": NARROW, **kwargs})
    reward.gradient_scale.fill_(20.0)
    return reward.requires_grad_(False).eval()


class Rightward(RelativeReward):
    """ρ = the sum of the planned steps to the right (column 0 is the first action)."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, head: object = None) -> torch.Tensor:
        return 3.0 * x_t[..., 0].sum(dim=1)


def rightward(agent: DiffusionAgent) -> RelativeReward:
    return Rightward.for_model(agent, window_kwargs=NARROW, step_kwargs=NARROW)


def plans_of(planner: GuidedPlanner) -> np.ndarray:
    return planner.predict(OBSERVATIONS, deterministic=True)[1][0]


# ---------------------------------------------------------------------- guidance


@pytest.mark.parametrize("kind", KINDS)
def test_scale_zero_is_the_base_exactly(kind: str) -> None:
    agent = agent_of_kind(kind)
    planner = GuidedPlanner(agent, make_reward(agent), scale=0.0)
    state, base_state = None, None
    for step in range(6):
        observations = OBSERVATIONS + 0.1 * step
        actions, state = planner.predict(observations, state, deterministic=True)
        base_actions, base_state = agent.predict(observations, base_state, deterministic=True)
        np.testing.assert_array_equal(actions, base_actions)
        np.testing.assert_array_equal(state[0], base_state[0])


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_raises_the_reward_of_plans(kind: str) -> None:
    agent = agent_of_kind(kind)
    reward = rightward(agent)
    t = torch.zeros(6, dtype=torch.int64)
    rho = [
        reward(torch.as_tensor(plans_of(GuidedPlanner(agent, reward, scale=scale, max_shift=0.5))), t)
        for scale in (0.0, 0.5, 1.0)
    ]
    assert (rho[0] < rho[1]).all() and (rho[1] < rho[2]).all()


def test_guided_actions_go_where_the_reward_points() -> None:
    agent = make_agent().learn(DATASET, 1)
    firsts = [
        GuidedPlanner(agent, rightward(agent), scale=scale).predict(OBSERVATIONS, deterministic=True)[0][:, 0].mean()
        for scale in (0.0, 0.3, 1.0)
    ]
    assert firsts[0] < firsts[1] < firsts[2]


def test_no_step_is_longer_than_max_shift() -> None:
    agent = make_agent(n_sampling_steps=1, clip=None)
    plans = [plans_of(GuidedPlanner(agent, rightward(agent), scale=scale, max_shift=0.25)) for scale in (0.0, 1e6)]
    assert abs(plans[1] - plans[0]).max() == pytest.approx(0.25, rel=1e-2)


class Exact(RelativeReward):
    """The gradient of the exact log density ratio of two models."""

    models: tuple[GaussianMixtureModel, GaussianMixtureModel]

    def gradient(self, x_t: torch.Tensor, t: torch.Tensor, head: object = None) -> torch.Tensor:
        base, expert = self.models
        difference = (base.eps(x_t, t) - expert.eps(x_t, t)) / self.process.levels(x_t, t)[1]
        return torch.where(self.pinned, 0.0, difference)


def two_modes() -> tuple[DiffusionAgent, DiffusionAgent, Exact]:
    """Agents whose first action is .8 or -.8, rarely or nearly always the former, and their exact ρ."""
    agents = [make_agent(n_sampling_steps=5) for _ in range(2)]
    means = torch.zeros(2, *agents[0].event_shape)
    means[0, :, 0], means[1, :, 0] = 0.8, -0.8
    base, expert = (
        GaussianMixtureModel(means, 0.02, torch.tensor([share, 1 - share]), agents[0].process) for share in (0.06, 0.93)
    )
    for agent, model in zip(agents, (base, expert), strict=True):
        agent.averaged.eps = model.eps  # type: ignore[method-assign]
    reward = Exact.for_model(agents[0], window_kwargs=NARROW, step_kwargs=NARROW)
    reward.models = base, expert
    return agents[0], agents[1], reward


def share_of_the_mode(agent: Any) -> float:
    actions = agent.predict(np.repeat(OBSERVATIONS[:1], 2000, axis=0))[0]
    return float((actions[:, 0] > 0).mean())


def test_an_exact_reward_acts_as_the_expert_by_default() -> None:
    base, expert, reward = two_modes()
    planner = GuidedPlanner(base, reward)
    assert share_of_the_mode(base) < 0.2 < 0.8 < share_of_the_mode(expert)
    assert share_of_the_mode(planner) == pytest.approx(share_of_the_mode(expert), abs=0.1)
    assert planner.share_bound == 0


def test_the_planner_tells_how_often_guidance_was_bound() -> None:
    base, expert, reward = two_modes()
    bound = GuidedPlanner(base, reward, max_shift=0.02)
    assert bound.share_bound == 0  # no plan yet
    assert share_of_the_mode(bound) < share_of_the_mode(expert) - 0.2
    assert 0.01 < bound.share_bound < 1
    loose = GuidedPlanner(base, reward, max_shift=1e6)
    share_of_the_mode(loose)
    assert loose.share_bound == 0 == bound.with_planning(n_sampling_steps=2).share_bound


def test_all_free_entries_may_be_bound() -> None:
    agent = make_agent(observation_columns=(0,), clip=None)
    planner = GuidedPlanner(agent, rightward(agent), scale=1e6, max_shift=0.25)
    planner.plan(OBSERVATIONS)
    free = int((~agent.pinned).sum())
    assert planner.share_bound == pytest.approx(agent.layout.horizon / free)  # of the first action, in every row


def test_samples_guided_by_an_exact_reward_are_the_expert_s() -> None:
    base, _, reward = two_modes()
    clean = torch.zeros(2000, *base.event_shape)
    steered = guided(base.eps, reward, base.process, 1.0)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_model(base, clean=clean, generator=generator, n_sampling_steps=5, denoiser=steered)
    assert float((drawn[:, 1, 0] > 0).float().mean()) > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_untouched(kind: str) -> None:
    agent = agent_of_kind(kind)
    before = {name: {**values} for name, values in agent.get_parameters().items()}
    copies = {
        name: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
        for name, values in before.items()
    }
    acted = agent.predict(OBSERVATIONS, deterministic=True)[0]
    planning, same = agent.planning, agent_of_kind(kind)
    same.predict(OBSERVATIONS, deterministic=True)
    planner = GuidedPlanner(agent, make_reward(agent), scale=2.0, n_candidates=2, n_action_steps=2, n_sampling_steps=2)
    planner.predict(OBSERVATIONS)
    assert same_tensors(agent.get_parameters(), copies) and agent.planning == planning
    np.testing.assert_array_equal(agent.predict(OBSERVATIONS, deterministic=True)[0], acted)
    np.testing.assert_array_equal(agent.predict(OBSERVATIONS)[0], same.predict(OBSERVATIONS)[0])  # the same noise


# ---------------------------------------------------------------------- candidates


def test_the_candidate_with_the_highest_reward_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent()
    reward = make_reward(agent)
    planner = GuidedPlanner(agent, reward, n_candidates=5)
    seen: list[torch.Tensor] = []
    ask = RelativeReward.forward
    monkeypatch.setattr(
        RelativeReward, "forward", lambda self, x, t, head=None: (seen.append(x.detach()), ask(self, x, t, head))[1]
    )
    _, (kept, *_) = planner.predict(OBSERVATIONS)
    drawn = seen[-1]  # it is asked for gradients before
    assert drawn.shape == (30, 8, 6)
    candidates = drawn.view(6, 5, 8, 6)
    rho = reward(drawn, torch.zeros(30, dtype=torch.int64)).view(6, 5)
    assert len(rho.unique()) == 30
    for i in range(6):
        np.testing.assert_array_equal(kept[i], candidates[i, int(rho[i].argmax())])


def test_more_candidates_are_never_worse_and_one_batched_call(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent()
    reward, t = make_reward(agent), torch.zeros(6, dtype=torch.int64)
    best = []
    for n_candidates in (1, 4, 16):
        planner = GuidedPlanner(agent, reward, scale=0.0, n_candidates=n_candidates)
        plans = planner.predict(OBSERVATIONS, deterministic=True)[1][0]
        best.append(reward(torch.as_tensor(plans), t))
    assert (best[0] <= best[1] + 1e-3).all() and (best[1] <= best[2] + 1e-3).all()
    assert (best[0] < best[2]).any()
    batches: list[int] = []
    agent.averaged.network.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    GuidedPlanner(agent, reward, n_candidates=4).predict(OBSERVATIONS)
    assert batches == [24] * agent.planning.n_sampling_steps


def test_candidates_are_chosen_for_each_environment_alone() -> None:
    agent = make_agent()
    planner = GuidedPlanner(agent, make_reward(agent), n_candidates=3)
    together = planner.predict(OBSERVATIONS, deterministic=True)[0]
    for i in range(6):
        alone = planner.predict(OBSERVATIONS[i], deterministic=True)[0]
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- options


def test_planning_options_are_the_base_s_unless_given() -> None:
    agent = make_agent(n_action_steps=5, n_sampling_steps=4, sampler="ddpm")
    reward = make_reward(agent)
    assert GuidedPlanner(agent, reward).planning == agent.planning
    given: dict[str, Any] = {"n_action_steps": 2, "n_sampling_steps": 3, "sampler": "dpm++", "warm_start": 4}
    assert vars(GuidedPlanner(agent, reward, **given).planning) == {**vars(agent.planning), **given}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_candidates": 0}, "n_candidates is 0, it must be a whole number of at least 1"),
        ({"scale": -1.0}, "scale is -1.0, it must be a finite number of at least 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"n_action_steps": 9}, r"n_action_steps is 9, it must lie in 1\.\.8"),
        ({"n_sampling_steps": 11}, "n_sampling_steps is 11"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
    ],
)
def test_wrong_options_are_refused(kwargs: dict[str, Any], message: str) -> None:
    agent = make_agent()
    with pytest.raises(ValueError, match=message):
        GuidedPlanner(agent, make_reward(agent), **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "field"),
    [
        ({"horizon": 10}, "event shape"),
        ({"n_diffusion_steps": 12}, "n_diffusion_steps"),
        ({"n_diffusion_steps": 30, "schedule": "linear"}, "n_diffusion_steps"),
        ({"stride": 2}, "layout"),
        ({"normalizer": Normalizer.fit(DATASET)}, "normalizer"),
    ],
)
def test_a_reward_of_another_space_is_refused(kwargs: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"agent and reward differ in {field}: the agent has .*, the reward has"):
        GuidedPlanner(make_agent(), make_reward(make_agent(**kwargs)))


def test_the_schedule_is_compared_too() -> None:
    agent = make_agent(n_diffusion_steps=30)
    with pytest.raises(ValueError, match="differ in schedule: the agent has cosine, the reward has linear"):
        GuidedPlanner(agent, make_reward(make_agent(n_diffusion_steps=30, schedule="linear")))


# ---------------------------------------------------------------------- loops and archive


def test_sb3_evaluate_runs_unmodified() -> None:
    agent = make_agent()
    returns, lengths = evaluate_policy(
        GuidedPlanner(agent, make_reward(agent)), Monitor(Drift()), n_eval_episodes=2, return_episode_rewards=True
    )
    assert lengths == [10, 10] and len(returns) == 2


@pytest.mark.parametrize("gradient_at", ["noised", "clean"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_planner_acts_alike(kind: str, gradient_at: GradientAt, tmp_path: Path) -> None:
    agent = agent_of_kind(kind)
    options: dict[str, Any] = {"scale": 1.5, "n_candidates": 2, "n_sampling_steps": 2, "max_shift": 0.2}
    planner = GuidedPlanner(agent, make_reward(agent), gradient_at=gradient_at, **options)
    planner.save(tmp_path / "planner", card={"note": "tiny"})
    loaded = GuidedPlanner.load(tmp_path / "planner")
    for name in ("scale", "n_candidates", "max_shift", "gradient_at", "planning"):
        assert getattr(loaded, name) == getattr(planner, name)
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], planner.predict(OBSERVATIONS, deterministic=True)[0]
    )
    assert loaded.reward.normalizer == planner.normalizer and loaded.agent.env is None
    assert read_archive(tmp_path / "planner").card == {"note": "tiny"}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda config, tensors: config.update(scale=-1), "scale: .* greater than or equal to 0, got -1"),
        (lambda config, tensors: config.pop("reward"), "reward"),
        (lambda config, tensors: tensors.pop("agent-averaged"), "averaged"),
        (lambda config, tensors: tensors["reward-weights"].popitem(), "has no tensor window"),
        (
            lambda config, tensors: config["reward"]["process"].update(n_diffusion_steps=12),
            r"gradient_scale has shape \(10,\), wanted \(12,\)",
        ),
        (lambda config, tensors: config["planning"].update(n_action_steps=99), "n_action_steps is 99"),
    ],
)
def test_archives_that_do_not_fit_are_refused_naming_file_and_fault(change: Any, fault: str, tmp_path: Path) -> None:
    agent = make_agent()
    GuidedPlanner(agent, make_reward(agent)).save(tmp_path / "planner")
    archive = read_archive(tmp_path / "planner")
    change(archive.config, archive.tensors)
    forge(archive.path, archive.kind, archive.config, archive.tensors)
    with pytest.raises(ValueError, match=fault) as caught:
        GuidedPlanner.load(archive.path)
    assert str(archive.path) in str(caught.value)


def test_agents_and_planners_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent")
    with pytest.raises(ValueError, match="agent"):
        GuidedPlanner.load(tmp_path / "agent")
