"""Options of an agent: each belongs to one group, recipes name them flat, and ``load`` is alike in every class."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers.agents import DATASET, NARROW, Drift, make_agent, same_tensors

from rrpolicy import (
    DiffusionAgent,
    DiscriminatorReward,
    GuidedPlanner,
    PlanningOptions,
    RelativeReward,
    RewardExtractor,
)
from rrpolicy.agents.arguments import grouped
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import Step
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.testing import check_agent

OBSERVATIONS = np.random.default_rng(0).normal(size=(3, 4))


def test_groups_and_flat_options_make_the_same_agent() -> None:
    options = {"horizon": 8, "policy_kwargs": NARROW, "seed": 0}
    one = DiffusionAgent(
        "MlpPolicy",
        Drift(),
        process=DiffusionProcess(10, "cosine", "eps"),
        planning=PlanningOptions(n_action_steps=3, sampler="dpm++", clip=2.0),
        **options,
    )
    flat = {"n_diffusion_steps": 10, "prediction": "eps", "n_action_steps": 3, "sampler": "dpm++", "clip": 2.0}
    other = DiffusionAgent("MlpPolicy", Drift(), **grouped({**options, **flat}))
    assert (one.planning, one.process, one.layout) == (other.planning, other.process, other.layout)
    assert same_tensors(one.get_parameters()["policy"], other.get_parameters()["policy"])


def test_defaults_of_planning_fit_the_window_and_the_normaliser() -> None:
    short = DiffusionAgent("MlpPolicy", Drift(), horizon=4, normalizer_mode="gaussian", policy_kwargs=NARROW)
    assert (short.planning.n_action_steps, short.planning.clip, short.process) == (4, 5.0, DiffusionProcess())
    long = DiffusionAgent("MlpPolicy", Drift(), planning=PlanningOptions(clip=None), policy_kwargs=NARROW)
    assert (long.planning.n_action_steps, long.planning.clip) == (8, None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("n_action_steps", 8, r"n_action_steps is a planning option: planning=PlanningOptions\(n_action_steps=8\)"),
        ("sampler", "ddpm", r"sampler is a planning option: planning=PlanningOptions\(sampler='ddpm'\)"),
        ("schedule", "linear", r"schedule is an option of the process: process=DiffusionProcess\(schedule='linear'\)"),
        ("planning", {"n_action_steps": 8}, r"planning is a dict, wanted planning=PlanningOptions\(\.\.\.\)"),
        ("process", 50, r"process is a int, wanted process=DiffusionProcess\(\.\.\.\)"),
        ("n_steps", 8, r"DiffusionAgent\(\) takes no 'n_steps'"),
    ],
)
def test_an_option_in_the_wrong_place_is_told_where_it_belongs(name: str, value: Any, told: str) -> None:
    with pytest.raises(TypeError, match=told):
        DiffusionAgent("MlpPolicy", Drift(), **{name: value})


def test_options_that_learn_does_not_take_are_named_before_anything_changes() -> None:
    agent = make_agent()
    with pytest.raises(TypeError, match=r"learn\(\) takes no 'log_every', wanted some of \['log_interval'"):
        agent.learn(DATASET, 2, log_every=3)  # type: ignore[call-arg]
    assert agent.num_timesteps == 0


def test_the_policy_is_the_trained_network() -> None:
    agent = make_agent().learn(DATASET, 2)
    assert isinstance(agent.policy, torch.nn.Module) and agent.policy_class == "MlpPolicy"
    assert same_tensors(dict(agent.policy.state_dict()), agent.get_parameters()["policy"])
    assert not same_tensors(dict(agent.policy.state_dict()), dict(agent.averaged.state_dict()))


# ---------------------------------------------------------------------- own samplers


def halfway(step: Step) -> torch.Tensor:
    """DDIM towards half of the clean event."""
    return step.process.alpha(step.s) * step.x0 / 2 + step.process.sigma(step.s) * step.eps


def test_an_own_sampler_acts_and_no_archive_holds_it(tmp_path: Path) -> None:
    agent = make_agent(sampler=halfway)
    assert check_agent(agent.with_planning(sampler="ddim"), Drift())
    actions = agent.predict(OBSERVATIONS, deterministic=True)[0]
    assert not np.array_equal(actions, agent.with_planning(sampler="ddim").predict(OBSERVATIONS, deterministic=True)[0])
    wanted = "sampler is the function halfway, which no archive holds: save agent.with_planning"
    with pytest.raises(ValueError, match=wanted):
        agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match=wanted):
        agent.learn(DATASET, 1, checkpoint_path=tmp_path / "agent")
    assert not list(tmp_path.iterdir()) and agent.num_timesteps == 0
    agent.with_planning(sampler="ddim").save(tmp_path / "agent")
    loaded = DiffusionAgent.load(tmp_path / "agent").with_planning(sampler=halfway)
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], actions)
    with pytest.raises(ValueError, match=r"sampler is 'euler', it must be one of .* or a function of a Step"):
        agent.with_planning(sampler="euler")


# ---------------------------------------------------------------------- load(path, env=None, device="auto")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A loader of an archive of each kind."""
    folder = tmp_path_factory.mktemp("saved")
    agent = make_agent()
    networks = {"window_kwargs": NARROW, "step_kwargs": NARROW}
    extractor = RewardExtractor(agent, agent, **networks)
    things = {
        "agent": agent,
        "extractor": extractor,
        "reward": extractor.reward,
        "planner": GuidedPlanner(agent, extractor.reward),
        "discriminator": DiscriminatorReward(agent, agent, window_kwargs=NARROW),
    }
    for name, thing in things.items():
        thing.save(folder / name)
    two = {"base": agent, "expert": agent}
    return {
        "agent": lambda *args, **kwargs: DiffusionAgent.load(folder / "agent", *args, **kwargs),
        "extractor": lambda *args, **kwargs: RewardExtractor.load(folder / "extractor", *args, **two, **kwargs),
        "reward": lambda *args, **kwargs: RelativeReward.load(folder / "reward", *args, **kwargs),
        "planner": lambda *args, **kwargs: GuidedPlanner.load(folder / "planner", *args, **kwargs),
        "discriminator": lambda *args, **kwargs: DiscriminatorReward.load(
            folder / "discriminator", *args, **two, **kwargs
        ),
    }


KINDS = ("agent", "extractor", "reward", "planner", "discriminator")


@pytest.mark.parametrize("kind", KINDS)
def test_load_takes_an_environment_and_a_device(saved: dict[str, Any], kind: str) -> None:
    assert saved[kind](Drift(), "cpu") is not None and saved[kind](env=None, device="auto") is not None
    with pytest.raises(ValueError, match=r"device is 'cuda:9', this machine has auto, cpu"):
        saved[kind](device="cuda:9")
    with pytest.raises(ValueError, match=rf"{kind}\.zip: the \w+ was made for .*, the environment has Box"):
        saved[kind](gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match=r"env is a int, wanted a gymnasium.Env"):
        saved[kind](3)


def test_an_agent_acts_in_the_environment_that_it_was_loaded_with(saved: dict[str, Any]) -> None:
    env = Drift()
    assert saved["agent"](env).env is env and saved["planner"](env).agent.env is env and saved["agent"]().env is None


def test_what_knows_no_environment_says_so(tmp_path: Path) -> None:
    ImageClassifier((1, 8, 8), ["a", "b"], width=8).save(tmp_path / "classifier")
    with pytest.raises(ValueError, match="env was given, and a ImageClassifier knows no environment"):
        ImageClassifier.load(tmp_path / "classifier", Drift())
    assert ImageClassifier.load(tmp_path / "classifier", device="cpu").width == 8
