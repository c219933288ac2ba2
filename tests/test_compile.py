"""Compiled networks learn and act as before, and archives do not know of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers.agents import DATASET, EXPERT_DATASET, make_agent, same_tensors
from helpers.recipes import ENV_ID
from test_cli import built, fault, run, tiny_zoo  # noqa: F401  a zoo for every test

from rrpolicy import DiffusionAgent, DiscriminatorReward, RewardExtractor
from rrpolicy.common.archive import read_archive
from rrpolicy.common.processes import Processes

ROOT = Path(__file__).resolve().parents[1]


@torch._dynamo.register_backend(name="nothing_compiles")
def nothing_compiles(graph: Any, inputs: Any) -> Any:
    """A backend without a compiler."""
    raise RuntimeError("there is no compiler\nlook for one")


@torch._dynamo.register_backend(name="counting")
def counting(graph: Any, inputs: Any) -> Any:
    """A backend that compiles nothing and counts the graphs that it gets."""
    GRAPHS.append(graph)
    return graph.forward


GRAPHS: list[Any] = []


def trained(**options: Any) -> DiffusionAgent:
    agent = make_agent(**options)
    return agent.learn(DATASET, 4, log_interval=0, eval_dataset=EXPERT_DATASET, eval_freq=2)


def test_a_compiled_agent_is_the_same_agent(tmp_path: Path) -> None:
    GRAPHS.clear()
    kind = {"controller": "inverse-dynamics", "controller_kwargs": {"width": 16, "n_blocks": 1}}
    compiled, plain = trained(compile="counting", **kind), trained(**kind)
    assert len(GRAPHS) >= 2  # a denoiser and a controller
    assert same_tensors(compiled.get_parameters(), plain.get_parameters())
    observations = DATASET.observations[:3]
    np.testing.assert_array_equal(compiled.predict(observations)[0], plain.predict(observations)[0])
    for name, agent in {"compiled": compiled, "plain": plain}.items():
        agent.save(tmp_path / f"{name}.zip")
    archives = [read_archive(tmp_path / f"{name}.zip") for name in ("compiled", "plain")]
    assert archives[0].config == archives[1].config
    assert same_tensors(archives[0].tensors, archives[1].tensors)


def test_what_was_loaded_is_compiled_and_goes_on(tmp_path: Path) -> None:
    trained().save(tmp_path / "agent.zip")
    agents = [DiffusionAgent.load(tmp_path / "agent.zip") for _ in range(2)]
    GRAPHS.clear()
    assert agents[0].compile_networks("counting") is agents[0] and agents[0].compile_backend == "counting"
    for agent in agents:
        agent.learn(DATASET, 2, log_interval=0, reset_num_timesteps=False)
    assert GRAPHS and same_tensors(*(agent.get_parameters() for agent in agents))


BF16 = pytest.param({"precision": "bf16"}, marks=pytest.mark.slow)  # without a compiler: test_precision


@pytest.mark.parametrize("options", [BF16, {"accumulate": 2}], ids=str)
def test_it_goes_with_the_other_options(options: dict[str, Any]) -> None:
    agents = [trained(compile="counting", **options), trained(**options)]
    assert same_tensors(*(agent.get_parameters() for agent in agents))


def test_a_discriminator_is_compiled() -> None:
    GRAPHS.clear()
    base, expert, found = make_agent(), make_agent(seed=1), []
    for compile in ("counting", False):
        learner = DiscriminatorReward(base, expert, batch_size=16, seed=0, compile=compile)
        found.append(learner.learn([DATASET, EXPERT_DATASET], 3, log_interval=0).get_parameters())
    assert GRAPHS and same_tensors(*found)


def test_a_backend_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"compile is 'fast', it must be True, False or a backend of torch.compile: "):
        make_agent(compile="fast")


def test_where_nothing_compiles_is_said_when_the_learner_is_made() -> None:
    wanted = r"^compile is wanted, and torch.compile with 'nothing_compiles' cannot compile on cpu here: [^\n]*$"
    with pytest.raises(ValueError, match=wanted) as caught:
        make_agent(compile="nothing_compiles")
    assert "there is no compiler" in str(caught.value)
    with pytest.raises(ValueError, match=wanted):
        make_agent().compile_networks("nothing_compiles")


def test_an_extractor_says_that_it_differentiates_twice() -> None:
    with pytest.raises(ValueError, match="a RewardExtractor differentiates its network twice"):
        RewardExtractor(make_agent(), make_agent(), compile="eager")


def test_processes_that_share_a_batch_refuse_it() -> None:
    agent = make_agent(compile="counting")
    with (
        patch("rrpolicy.common.learner.current", return_value=Processes(0, 2)),
        pytest.raises(ValueError, match="compile is 'counting', which several processes"),
    ):
        agent.learn(DATASET, 1)


def test_no_compiler_on_this_machine_is_one_line(tmp_path: Path) -> None:
    run("collect", "--env", ENV_ID, "--n-transitions", 1000, "--out", tmp_path / "data")
    train = ("train", "--dataset", tmp_path / "data", "--out", tmp_path / "run", "--no-progress")
    with patch("torch.compile", side_effect=RuntimeError("no compiler")):
        assert "cannot compile on cpu here: no compiler" in fault(*train, "--compile")
    run(*train, "--total-timesteps", 2)
    with patch("torch.compile", side_effect=RuntimeError("no compiler")):
        assert "cannot compile on cpu here" in fault(*train, "--total-timesteps", 3, "--compile", "--resume")


@pytest.mark.slow
def test_the_compiler_gives_the_numbers_of_torch() -> None:
    compiled, plain = trained(compile=True), trained()
    for mine, theirs in zip(compiled.averaged.parameters(), plain.averaged.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    observations = DATASET.observations[:3]
    np.testing.assert_allclose(compiled.predict(observations)[0], plain.predict(observations)[0], atol=1e-4)


@pytest.mark.slow
def test_without_a_compiler_it_is_refused() -> None:
    code = "from helpers.agents import make_agent; make_agent(compile=True)"
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PATH": "/nowhere", "CXX": "/nowhere/g++", "PYTHONPATH": places}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "ValueError: compile is wanted, and torch.compile with 'inductor' cannot compile on cpu here" in done.stderr


def test_distributions_go_on_checking_what_they_are_given() -> None:
    make_agent(compile="eager").learn(DATASET, 1, log_interval=0)
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(torch.zeros(1), torch.full((1,), torch.nan))
