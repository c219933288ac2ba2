"""The units of an agent fit its data: the bound of plans, shares beyond it, and the range of a base and its expert."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, SMALL, Drift, make_agent

from rrpolicy import DiffusionAgent, Normalizer, TrajectoryDataset
from rrpolicy.agents.arguments import grouped
from rrpolicy.diffusion.analytic import GaussianMixtureModel


def speeds(mean: float, n: int = 240, spread: float = 0.05, **columns: np.ndarray) -> TrajectoryDataset:
    """Episodes of an agent that drives at ``mean``: the first of two actions; observations as `Drift` has them."""
    actions = np.column_stack([mean + spread * np.random.uniform(-1, 1, n), np.random.uniform(-1, 1, n)])
    observations = np.column_stack([np.random.uniform(-1, 1, (n, 3)), np.full(n, 3.0)])
    for name, values in columns.items():
        kind, column = name.split("_")
        (actions if kind == "action" else observations)[:, int(column)] = values
    return TrajectoryDataset.from_arrays(observations, actions, episode_lengths=[24] * (n // 24))


def new_agent(**kwargs: Any) -> DiffusionAgent:
    return DiffusionAgent(**grouped({"policy": "MlpPolicy", "env": Drift(), **SMALL, **kwargs}))


def told_by(agent: DiffusionAgent, data: Any, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent.learn(data, 1, **kwargs)
    assert all(one.filename == __file__ for one in caught)  # the line that called learn
    told = [str(one.message) for one in caught]
    return [one for one in told if not one.startswith("actions: ")]  # of actions, which tests/test_own_data.py looks at


# ---------------------------------------------------------------------- clip


@pytest.mark.parametrize(("mode", "least"), [("limits", 1.5), ("isotropic", 1.5), ("gaussian", 5), ("quantiles", 1.5)])
def test_the_clip_of_a_new_agent_fits_the_mode(mode: str, least: float) -> None:
    assert new_agent(normalizer_mode=mode).planning.clip == least
    assert new_agent(normalizer=Normalizer.fit(DATASET, mode)).planning.clip == least
    assert new_agent(normalizer_mode=mode, clip=2.5).planning.clip == 2.5
    assert new_agent(normalizer_mode=mode, clip=None).planning.clip is None


@pytest.mark.parametrize("mode", ["gaussian", "quantiles"])
def test_clip_reaches_as_far_as_the_data(mode: str, tmp_path: Path) -> None:
    values = np.random.uniform(-1, 1, 240)
    values[7] = 40.0
    data = speeds(0.0, action_1=values)
    agent = new_agent(normalizer_mode=mode)
    assert told_by(agent, data) == []
    largest = np.abs(agent.normalizer.actions.normalize(data.actions)).max()
    assert agent.planning.clip == pytest.approx(largest, rel=1e-6) and largest > 5
    agent.save(tmp_path / "agent")
    assert DiffusionAgent.load(tmp_path / "agent").planning == agent.planning
    assert told_by(DiffusionAgent.load(tmp_path / "agent"), data) == []


@pytest.mark.parametrize("mode", ["limits", "isotropic"])
def test_data_within_the_limits_need_no_more_than_ever(mode: str) -> None:
    agent = new_agent(normalizer_mode=mode)
    assert told_by(agent, DATASET) == []
    assert agent.planning.clip == 1.5


def test_rare_large_actions_are_sampled_by_default() -> None:
    """Ten per cent of the actions at 2, 2.7 standard deviations away: an exact model plans them as often."""
    large = np.random.permutation(2400) < 240
    data = speeds(0.0, 2400, action_0=np.where(large, 2.0, np.random.normal(0, 0.2, 2400)))
    agent = new_agent(normalizer_mode="gaussian", n_diffusion_steps=50, n_sampling_steps=20).learn(data, 1)
    modes = agent.normalizer.actions.normalize(np.array([[0.0, 0.0], [2.0, 0.0]], np.float32))[:, 0]
    assert modes[1] > 1.5
    means = torch.zeros(2, *agent.event_shape)
    means[:, :, 0] = torch.as_tensor(modes)[:, None]
    model = GaussianMixtureModel(means, 0.01, torch.tensor([0.9, 0.1]), agent.process)
    agent.averaged.eps = model.eps  # type: ignore[method-assign]
    agent.action_space = type(agent.action_space)(-5.0, 5.0, (2,))
    share = [
        float((one.predict(np.repeat(data.observations[:1], 4000, axis=0))[0][:, 0] > 1.5).mean())
        for one in (agent, agent.with_planning(clip=1.5))
    ]
    assert share[0] == pytest.approx(0.1, abs=0.03) and share[1] == 0


def test_learn_names_the_columns_beyond_clip_and_their_shares() -> None:
    values = np.where(np.arange(240) < 24, 2.0, np.random.normal(0, 0.1, 240))
    (told,) = told_by(new_agent(normalizer_mode="gaussian", clip=2.0), speeds(0.0, action_1=values))
    assert told.startswith("10.00% of action 1 of the data lie beyond clip=2 normalised units")
    (told,) = told_by(new_agent(normalizer_mode="gaussian", clip=2.0), speeds(0.0, observation_2=values))
    assert told.startswith("10.00% of observation 2 of the data")
    assert told_by(new_agent(normalizer_mode="gaussian", clip=None), speeds(0.0, action_1=values)) == []


def test_columns_that_are_not_planned_do_not_count() -> None:
    data = speeds(0.0, observation_2=np.where(np.arange(240) < 24, 2.0, np.random.normal(0, 0.1, 240)))
    assert told_by(new_agent(normalizer_mode="gaussian", clip=2.0, observation_columns=(0, 1)), data) == []


# ---------------------------------------------------------------------- a base and its expert


def test_an_expert_beyond_the_base_s_range_is_refused() -> None:
    base = new_agent().learn(speeds(1.0), 1)
    expert = new_agent(normalizer=base.normalizer)
    with pytest.raises(ValueError, match=r"100\.00% of action 0 lies beyond clip=1\.5 .*Normalizer\.fit\(\[data"):
        expert.learn(speeds(3.0), 1)
    assert expert.num_timesteps == 0


def test_the_documented_recipe_reaches_the_expert_s_range() -> None:
    base, expert = speeds(1.0), speeds(3.0)
    normalizer = Normalizer.fit([base, expert])
    agents = [new_agent(normalizer=normalizer) for _ in range(2)]
    assert told_by(agents[0], base) == told_by(agents[1], expert) == []
    assert agents[0].fingerprint() == agents[1].fingerprint()
    np.testing.assert_allclose(normalizer.actions.denormalize(np.array([-1.0, 0.0]))[0], 0.95, atol=0.01)
    np.testing.assert_allclose(normalizer.actions.denormalize(np.array([1.0, 0.0]))[0], 3.05, atol=0.01)


def test_an_expert_partly_beyond_is_warned_of() -> None:
    mixed = speeds(1.0, action_0=np.where(np.arange(240) < 96, 3.0, 1.0 + np.random.uniform(-0.04, 0.04, 240)))
    expert = new_agent(normalizer=Normalizer.fit(speeds(1.0)))
    (told,) = told_by(expert, mixed)
    assert told.startswith("40.00% of action 0 of the data lie beyond clip=1.5")


def test_a_gaussian_normaliser_of_the_base_s_makes_room() -> None:
    base, expert = speeds(1.0), speeds(1.5)
    agent = new_agent(normalizer=Normalizer.fit(base, "gaussian"))
    assert told_by(agent, expert) == [] and agent.planning.clip is not None and agent.planning.clip > 5


def test_a_column_that_only_the_expert_varies_is_warned_of() -> None:
    base = speeds(1.0, action_1=np.zeros(240))
    agent = new_agent(normalizer=Normalizer.fit(base))
    (told,) = told_by(agent, speeds(1.0, action_1=np.where(np.arange(240) < 60, 0.5, 0.0)))
    assert told.startswith("25.00% of action 1 of the data differ from the constant that the normalizer given holds")
    assert told_by(new_agent(normalizer=Normalizer.fit(base)), base) == []


def test_going_on_with_the_same_data_is_never_refused(tmp_path: Path) -> None:
    """A narrow clip that was asked for does not stand in the way of a resume."""
    data = speeds(1.0)
    agent = new_agent(clip=0.2)
    assert len(told_by(agent, data)) == 1
    agent.save(tmp_path / "agent")
    assert len(told_by(DiffusionAgent.load(tmp_path / "agent"), data, reset_num_timesteps=False)) == 1


def test_a_pair_that_shares_its_range_is_not_told_anything() -> None:
    assert told_by(make_agent(), EXPERT_DATASET) == []
    with pytest.raises(ValueError, match="normalizer_mode is 'minmax', it must be one of"):
        new_agent(normalizer_mode="minmax")
