"""Where noise is drawn: on the CPU by default and on the device with ``fast_noise``, which on the CPU is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, make_agent

from rrpolicy import DiffusionAgent, GuidedPlanner, RewardExtractor
from rrpolicy.agents.blended_planner import BlendedPlanner
from rrpolicy.common.archive import read_archive
from rrpolicy.common.device import CPU
from rrpolicy.common.noise import generator, moved, rand, randint, randn, same_place, send, twin

OBSERVATIONS = np.random.default_rng(0).normal(0, 0.3, (3, 4)).astype(np.float32)


def test_draws_are_those_of_torch() -> None:
    ours, theirs = generator(3), torch.Generator().manual_seed(3)
    assert torch.equal(randn((2, 3), ours, CPU), torch.randn(2, 3, generator=theirs))
    assert torch.equal(randint(7, (5,), ours, CPU), torch.randint(7, (5,), generator=theirs))
    assert torch.equal(rand(4, ours, CPU), torch.rand(4, generator=theirs))


def test_a_twin_gives_the_same_and_leaves_the_first_one() -> None:
    first = generator(0)
    begin = first.get_state()
    assert torch.equal(randn((3,), twin(first), CPU), randn((3,), twin(first, begin), CPU))
    assert torch.equal(first.get_state(), begin)


def test_a_generator_that_is_there_stays() -> None:
    first = generator(5)
    assert moved(first, CPU) is first and send(noise := torch.ones(2), CPU) is noise


@pytest.mark.parametrize(
    ("one", "other", "same"), [("cuda", "cuda:0", True), ("cuda:1", "cuda", False), ("cpu", "cuda:0", False)]
)
def test_a_device_without_a_number_is_the_first(one: str, other: str, same: bool) -> None:
    assert same_place(torch.device(one), torch.device(other)) == same


def test_on_the_cpu_fast_noise_changes_no_number(tmp_path: Path) -> None:
    found = []
    for fast in (False, True):
        base, expert = (make_agent(fast_noise=fast) for _ in range(2))
        base.learn(DATASET, total_timesteps=3, log_interval=0, eval_dataset=EXPERT_DATASET, eval_freq=2)
        expert.learn(EXPERT_DATASET, total_timesteps=3, log_interval=0)
        options = {"batch_size": 16, "buffer_size": 32, "heads": ["window"], "n_epochs": 1}
        extractor = RewardExtractor(base, expert, **options, fast_noise=fast)
        extractor.learn([DATASET, EXPERT_DATASET], total_timesteps=4, log_interval=0)
        planners = (base, GuidedPlanner(base, extractor.reward), BlendedPlanner(base, expert))
        assert all(planner.fast_noise == fast for planner in planners)
        weights = torch.cat([value.flatten() for value in extractor.reward.state_dict().values()]).numpy()
        found.append([base.best_loss, weights, *(planner.predict(OBSERVATIONS)[0] for planner in planners)])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_archive_says_so_only_where_it_is_so(tmp_path: Path) -> None:
    for fast in (False, True):
        agent = make_agent(fast_noise=fast).learn(DATASET, total_timesteps=1, log_interval=0)
        agent.save(tmp_path / "agent.zip")
        assert read_archive(tmp_path / "agent.zip").config["training"].get("fast_noise") == (True if fast else None)
        assert DiffusionAgent.load(tmp_path / "agent.zip").fast_noise == fast


def test_a_state_of_another_kind_of_device_goes_on_from_a_seed(tmp_path: Path) -> None:
    agent = make_agent(fast_noise=True, seed=4).learn(DATASET, total_timesteps=3, log_interval=0)
    agent.generator = Foreign()
    agent.save(tmp_path / "agent.zip")
    again = DiffusionAgent.load(tmp_path / "agent.zip")
    assert again.generator.initial_seed() == 4 + 3
    again.learn(DATASET, total_timesteps=1, log_interval=0, reset_num_timesteps=False)


class Foreign(torch.Generator):
    """One with the state of CUDA's: seed and offset."""

    def get_state(self) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)


def test_a_foreign_state_of_a_learner_without_it_is_refused(tmp_path: Path) -> None:
    agent = make_agent().learn(DATASET, total_timesteps=1, log_interval=0)
    agent.generator = Foreign()
    agent.save(tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="random state cannot be restored"):
        DiffusionAgent.load(tmp_path / "agent.zip")
