"""Any score model of windows acts, is extracted from and is steered as an agent of this library is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, NARROW, Drift, make_agent

from rrpolicy import DiffusionAgent, GuidedPlanner, PlanningOptions, RewardExtractor, check_agent, evaluate
from rrpolicy.agents import ModelPlanner
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import check_compatible
from rrpolicy.models import from_module, vp

AGENT, EXPERT = make_agent(), make_agent(seed=1)


def planner_of(agent: DiffusionAgent, **options: Any) -> ModelPlanner:
    """The agent's network as if it came from elsewhere: a module, a noise table and a prediction."""
    t = torch.arange(agent.process.n_diffusion_steps)
    model = from_module(
        lambda x, time: agent.averaged.eps(x, time),
        vp(agent.process.alpha(t).double() ** 2),
        "eps",
        agent.event_shape,
        pinned=agent.pinned,
    )
    spaces = (agent.observation_space, agent.action_space)
    planning = PlanningOptions(**{**vars(agent.planning), **options})
    return ModelPlanner(model, *spaces, agent.layout, agent.normalizer, planning, agent.controller, seed=0)


def test_it_acts_as_the_agent_whose_network_it_has() -> None:
    ours, theirs = evaluate(AGENT, Drift, 3, record_observations=True), evaluate(planner_of(AGENT), Drift, 3)
    np.testing.assert_allclose(theirs.returns, ours.returns, atol=1e-4)
    check_agent(planner_of(AGENT), Drift())


def test_a_pair_of_them_is_a_pair_of_agents() -> None:
    base, expert = planner_of(AGENT), planner_of(EXPERT)
    rewards = []
    for pair in ((AGENT, EXPERT), (base, expert)):
        extractor = RewardExtractor(
            *pair, batch_size=16, buffer_size=64, seed=0, window_kwargs=NARROW, step_kwargs=NARROW
        )
        rewards.append(extractor.learn([DATASET, EXPERT_DATASET], 3, log_interval=0).reward)
    x, t = torch.randn(4, *AGENT.event_shape), torch.tensor([0, 3, 5, 9])
    torch.testing.assert_close(rewards[1](x, t), rewards[0](x, t), rtol=1e-3, atol=1e-4)
    steered = [GuidedPlanner(agent, rewards[0]) for agent in (AGENT, base)]
    plans = [planner.plan(np.zeros((2, 4), dtype=np.float32)) for planner in steered]
    np.testing.assert_allclose(plans[1], plans[0], atol=1e-3)
    assert not np.allclose(plans[0], AGENT.plan(np.zeros((2, 4), dtype=np.float32)), atol=1e-4)


def test_what_no_archive_holds_is_not_saved(tmp_path: Path) -> None:
    reward = RewardExtractor(AGENT, EXPERT, seed=0, window_kwargs=NARROW, step_kwargs=NARROW).reward
    with pytest.raises(ValueError, match="agent is a ModelPlanner, which no archive holds"):
        GuidedPlanner(planner_of(AGENT), reward).save(tmp_path / "planner")


def test_tables_are_equal_when_their_numbers_are() -> None:
    cosine = DiffusionProcess(20, "cosine", "eps")
    table = DiffusionProcess.from_alphas_cumprod((cosine.alpha(torch.arange(20)).double() ** 2).tolist(), "eps")
    other = DiffusionProcess.from_alphas_cumprod(np.linspace(0.99, 0.01, 20).tolist(), "eps")
    assert table == cosine and hash(table) == hash(cosine) and table.same_levels(DiffusionProcess(20))
    assert other != cosine and DiffusionProcess(20) != cosine and DiffusionProcess(21, prediction="eps") != cosine
    agents = [
        DiffusionAgent(
            "MlpPolicy", Drift(), horizon=8, process=process, normalizer=AGENT.normalizer, policy_kwargs=NARROW
        )
        for process in (cosine, table)
    ]
    check_compatible(*agents)


def test_what_does_not_fit_together_is_named() -> None:
    good = planner_of(AGENT)
    given = (good.observation_space, good.action_space, good.layout, good.normalizer)
    bare = from_module(lambda x, time: x, good.model.path, "eps", AGENT.event_shape)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="pinned entries"):
        ModelPlanner(bare, *given)
    with pytest.raises(ValueError, match=r"events of shape \(3, 2\)"):
        ModelPlanner(from_module(lambda x, time: x, good.model.path, "eps", (3, 2)), *given)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="numbers of observation and action"):
        ModelPlanner(good.model, good.action_space, good.action_space, *given[2:])
    with pytest.raises(ValueError, match=r"no layout of its own: pass layout="):
        ModelPlanner(good.model, good.observation_space, good.action_space)
    with pytest.raises(ValueError, match="base is a object"):
        ModelPlanner(object(), *given)  # type: ignore[arg-type]
