"""Flags and numbers that are something else are refused by name: text is not a flag, NaN is not a strength."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.agents import DATASET, NARROW, make_agent

from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward, RewardExtractor
from rrpolicy.agents.blended_planner import BlendedPlanner
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.guidance import guided

AGENT = make_agent()
REWARD = RelativeReward.for_model(AGENT, window_kwargs=NARROW, step_kwargs=NARROW)
FLAG, TEXT = "it must be True or False", "it must be a number"


def extractor(**kwargs: Any) -> RewardExtractor:
    return RewardExtractor(AGENT, AGENT, **{"window_kwargs": NARROW, "step_kwargs": NARROW, **kwargs})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make_agent, "padding"),
        (extractor, "row_weighting"),
        (extractor, "value_units"),
        (lambda **kwargs: RelativeReward.for_model(AGENT, **kwargs), "value_units"),
    ],
)
def test_text_is_no_flag(make: Any, name: str) -> None:
    for text in ("False", "True", "", None, 2, 0.5):
        with pytest.raises(ValueError, match=f"^{name} is {text!r}, {FLAG}"):
            make(**{name: text})
    assert getattr(make(**{name: np.False_}), name) is False


@pytest.mark.parametrize("make", [make_agent, extractor, lambda **kwargs: DiscriminatorReward(AGENT, AGENT, **kwargs)])
def test_verbose_is_a_number(make: Any) -> None:
    with pytest.raises(ValueError, match="verbose is 'False', it must be a whole number of at least 0"):
        make(verbose="False")
    assert (make(verbose=True).verbose, make(verbose=np.int64(0)).verbose) == (1, 0)


@pytest.mark.parametrize("name", ["reset_num_timesteps", "progress_bar"])
def test_flags_of_learn(name: str) -> None:
    agent = make_agent().learn(DATASET, 2)
    with pytest.raises(ValueError, match=f"{name} is 'False', {FLAG}"):
        agent.learn(DATASET, 1, **{name: "False"})
    assert agent.num_timesteps == 2


def test_flags_of_predict_and_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"deterministic is 'False', {FLAG}"):
        AGENT.predict(DATASET.observations[0], deterministic="False")  # type: ignore[arg-type]
    for name in ("half", "resumable"):
        with pytest.raises(ValueError, match=f"{name} is 'False', {FLAG}"):
            AGENT.save(tmp_path / "agent", **{"half": True, "resumable": False, name: "False"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "clip",
        "lookahead",
        "first_action_weight",
        "learning_rate",
        "ema_decay",
        "weight_decay",
        "max_grad_norm",
    ],
)
def test_numbers_of_an_agent(name: str) -> None:
    for wrong in (math.nan, math.inf, -1.0, "0.5"):
        with pytest.raises(ValueError, match=f"{name} is .*{str(wrong).strip('-')}"):
            make_agent(**{name: wrong}).save("nowhere/agent")


@pytest.mark.parametrize("name", ["n_action_steps", "n_sampling_steps", "n_candidates", "warm_start", "batch_size"])
def test_whole_numbers_of_an_agent(name: str) -> None:
    for wrong in (1.5, "1", math.nan, True):
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}, it must be (a (whole )?number|positive)"):
            make_agent(**{name: wrong})
        if name != "batch_size":
            with pytest.raises(ValueError, match=f"{name} is {wrong!r}, it must be a whole number"):
                AGENT.with_planning(**{name: wrong})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("value_coef", math.nan),
        ("value_coef", -0.1),
        ("value_coef", "0.1"),
        ("n_epochs", 0),
        ("n_epochs", "4"),
        ("n_value_draws", -1),
        ("n_step_rows", 0),
        ("buffer_size", "16384"),
        ("first_action_weight", math.nan),
        ("row_floor", 0.0),
        ("value_clip", 0.0),
    ],
)
def test_numbers_of_an_extractor(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {wrong!r}"):
        extractor(**{name: wrong})


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "1", True])
def test_strength_and_bound_of_guidance(wrong: Any) -> None:
    for name in ("scale", "max_shift"):
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}, it must be"):
            GuidedPlanner(AGENT, REWARD, **{name: wrong})
        with pytest.raises(ValueError, match=f"{name} is {wrong!r}, it must be"):
            guided(AGENT.eps, REWARD, AGENT.process, **{"scale": 1.0, name: wrong})
    with pytest.raises(ValueError, match=f"scale is {wrong!r}, it must be"):
        BlendedPlanner(AGENT, AGENT, wrong)


def test_names_for_what_fits_the_data_are_only_those_that_are_documented() -> None:
    with pytest.raises(ValueError, match=f"clip is 'data', {TEXT}"):
        make_agent(clip="data")
    with pytest.raises(ValueError, match=f"clip is 'auto', {TEXT}"):
        AGENT.with_planning(clip="auto")
    assert isinstance(make_agent(clip="auto"), DiffusionAgent)
