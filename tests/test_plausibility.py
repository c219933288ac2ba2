"""Which clean events a model finds likeliest: known errors of a normal distribution, an agent that chooses by them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, KINDS, agent_of_kind, make_agent

from rrpolicy import DiffusionAgent
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.plausibility import denoising_errors
from rrpolicy.diffusion.process import DiffusionProcess

PROCESS = DiffusionProcess(50, "cosine")
FREE = torch.zeros(4, 2, dtype=torch.bool)
OBSERVATIONS = DATASET.observations[::17][:6]


def test_errors_under_a_standard_normal_are_known() -> None:
    model = GaussianMixtureModel(torch.zeros(1, 4, 2), 1.0, process=PROCESS)  # which predicts σ x_t at every level
    events = torch.randn(7, 4, 2, generator=torch.Generator().manual_seed(3)) * torch.arange(1, 8).view(7, 1, 1)
    generator, wanted = torch.Generator().manual_seed(0), torch.zeros(7)
    for level in (1, 2, 4):
        noise = torch.randn(4, 2, generator=generator)
        alpha, sigma = PROCESS.alpha(level), PROCESS.sigma(level)  # the two signs take the mixed term away
        wanted += alpha**2 * (alpha**2 * (noise**2).mean() + sigma**2 * (events**2).flatten(1).mean(dim=1)) / 3
    torch.testing.assert_close(denoising_errors(model.eps, PROCESS, events, FREE), wanted, rtol=1e-4, atol=1e-5)


def test_between_two_ways_is_less_likely_than_either() -> None:
    ways = torch.stack([torch.full((4, 2), 1.0), torch.full((4, 2), -1.0)])
    model = GaussianMixtureModel(ways, 0.1, process=PROCESS)
    first, second, between = denoising_errors(model.eps, PROCESS, torch.cat([ways, torch.zeros(1, 4, 2)]), FREE)
    assert max(first, second) < 0.5 * between


def test_pinned_entries_stay_clean_and_do_not_count() -> None:
    pinned = FREE.clone()
    pinned[0] = True
    events = torch.randn(3, 4, 2)

    def denoiser(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(x_t[:, 0], events[:, 0])
        return torch.where(pinned, 1e6, 0.0).expand_as(x_t)

    errors = denoising_errors(denoiser, PROCESS, events, pinned)
    generator = torch.Generator().manual_seed(0)
    noises = torch.stack([torch.randn(4, 2, generator=generator) for _ in range(3)])
    torch.testing.assert_close(errors, (noises[:, 1:] ** 2).mean().expand(3))


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_keeps_the_likeliest_of_its_plans(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_of_kind(kind).with_planning(n_candidates=4)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        "rrpolicy.agents.planning.denoising_errors",
        lambda denoiser, process, plans, pinned: (
            seen.append(plans),
            denoising_errors(denoiser, process, plans, pinned),
        )[1],
    )
    _, (kept, *_) = agent.predict(OBSERVATIONS)
    errors = denoising_errors(agent.averaged.eps, agent.process, seen[0], agent.pinned).view(6, 4)
    assert len(errors.unique()) == 24
    for i in range(6):
        np.testing.assert_array_equal(kept[i], seen[0].view(6, 4, *agent.event_shape)[i, int(errors[i].argmin())])


def test_choosing_does_not_depend_on_the_batch_nor_on_earlier_plans() -> None:
    agent = make_agent(n_candidates=4)
    together = agent.predict(OBSERVATIONS, deterministic=True)[0]
    agent.predict(OBSERVATIONS)
    for observation, action in zip(OBSERVATIONS, together, strict=True):
        np.testing.assert_allclose(agent.predict(observation, deterministic=True)[0], action, atol=1e-5)


def test_another_way_to_plan_leaves_the_agent_alone() -> None:
    agent, same = make_agent(), make_agent()
    before = agent.predict(OBSERVATIONS, deterministic=True)[0]
    other = agent.with_planning(n_candidates=4, n_sampling_steps=2)
    other.predict(OBSERVATIONS)
    assert other.averaged is agent.averaged and agent.planning.n_candidates == 1
    np.testing.assert_array_equal(agent.predict(OBSERVATIONS)[0], same.predict(OBSERVATIONS)[0])  # the same noise
    np.testing.assert_array_equal(agent.predict(OBSERVATIONS, deterministic=True)[0], before)
    assert not np.array_equal(other.predict(OBSERVATIONS, deterministic=True)[0], before)
    with pytest.raises(TypeError, match="n_plans"):
        agent.with_planning(n_plans=2)


def test_the_number_of_candidates_is_kept_and_checked(tmp_path: Path) -> None:
    agent = make_agent(n_candidates=3)
    agent.save(tmp_path / "agent")
    assert DiffusionAgent.load(tmp_path / "agent").planning.n_candidates == 3
    with pytest.raises(ValueError, match="n_candidates is 0, it must be a whole number of at least 1"):
        make_agent(n_candidates=0)
