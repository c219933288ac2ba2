"""Numbers of numpy are taken wherever numbers are, and every public object goes through pickle, as workers need."""

import copy
import functools
import pickle  # what joblib and spawned workers use; no archive does
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.agents import DATASET, EXPERT_DATASET, KINDS, NORMALIZER, Drift, agent_of_kind, make_agent

from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward, RewardExtractor
from rrpolicy.agents.blended_planner import BlendedPlanner
from rrpolicy.agents.options import PlanningOptions
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.rewards.discriminator import DiscriminatorReward

OBSERVATIONS = np.random.default_rng(0).normal(size=(3, 4))
WHOLE, REAL = np.int64, np.float32


def numpy_agent(**kwargs: Any) -> DiffusionAgent:
    return DiffusionAgent(
        "MlpPolicy",
        Drift(),
        learning_rate=REAL(1e-3),
        horizon=WHOLE(8),
        stride=WHOLE(1),
        batch_size=WHOLE(16),
        process=DiffusionProcess(WHOLE(10)),
        planning=PlanningOptions(
            n_action_steps=WHOLE(2),
            n_sampling_steps=WHOLE(3),
            warm_start=WHOLE(4),
            clip=REAL(1.5),
            lookahead=REAL(1),
            n_candidates=WHOLE(2),
        ),
        first_action_weight=REAL(2),
        ema_decay=REAL(0.5),
        weight_decay=REAL(0),
        max_grad_norm=REAL(1),
        seed=WHOLE(3),
        policy_kwargs={"width": WHOLE(32), "n_blocks": WHOLE(1), "n_fourier_features": WHOLE(4), "bandwidth": REAL(1)},
        **kwargs,
    )


def test_an_agent_of_numpy_numbers_is_saved_and_loaded(tmp_path: Path) -> None:
    agent = numpy_agent().learn(DATASET, WHOLE(3))
    agent.save(tmp_path / "agent")
    loaded = DiffusionAgent.load(tmp_path / "agent")
    wanted = agent.predict(OBSERVATIONS, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], wanted)
    assert type(agent.seed) is int and type(agent.planning.clip) is float and type(agent.policy_kwargs["width"]) is int


def test_rewards_and_planners_of_numpy_numbers(tmp_path: Path) -> None:
    base, expert = make_agent(), make_agent(seed=1)
    extractor = RewardExtractor(
        base,
        expert,
        learning_rate=REAL(1e-3),
        batch_size=WHOLE(8),
        buffer_size=WHOLE(32),
        n_epochs=WHOLE(2),
        value_coef=REAL(0.1),
        n_value_draws=WHOLE(1),
        n_step_rows=WHOLE(2),
        first_action_weight=REAL(2),
        seed=WHOLE(1),
        window_kwargs={"width": WHOLE(32), "n_blocks": WHOLE(1)},
        step_kwargs={"width": WHOLE(16)},
    ).learn(DATASET, WHOLE(2))
    extractor.save(tmp_path / "extractor")
    assert RewardExtractor.load(tmp_path / "extractor", base=base, expert=expert).n_epochs == 2
    extractor.reward.save(tmp_path / "reward")
    reward = RelativeReward.load(tmp_path / "reward")
    planner = GuidedPlanner(base, reward, scale=REAL(1), n_candidates=WHOLE(2), max_shift=REAL(0.5))
    planner.save(tmp_path / "planner")
    assert GuidedPlanner.load(tmp_path / "planner").max_shift == 0.5
    discriminator = DiscriminatorReward(base, expert, batch_size=WHOLE(8), seed=WHOLE(2))
    discriminator.learn([DATASET, EXPERT_DATASET], WHOLE(2)).save(tmp_path / "discriminator")
    ImageClassifier((1, WHOLE(16), 16), ["a", "b"], width=WHOLE(8), seed=WHOLE(0)).save(tmp_path / "judge")
    assert ImageClassifier.load(tmp_path / "judge").width == 8


@functools.cache
def objects() -> dict[str, Any]:
    base, expert = make_agent(), make_agent(seed=1)
    extractor = RewardExtractor(base, expert, batch_size=8, buffer_size=32).learn(DATASET, 1)
    return {
        **{kind: agent_of_kind(kind) for kind in KINDS},
        "learned": make_agent().learn(DATASET, 1),
        "guided": GuidedPlanner(base, extractor.reward),
        "blended": BlendedPlanner(base, expert),
        "extractor": extractor,
        "reward": extractor.reward,
        "discriminator": DiscriminatorReward(base, expert, batch_size=8).learn([DATASET, EXPERT_DATASET], 1),
        "judge": ImageClassifier((1, 16, 16), ["a", "b"], width=8),
        "dataset": DATASET,
        "normalizer": NORMALIZER,
    }


def answer(thing: Any) -> Any:
    """What a copy must answer alike."""
    if hasattr(thing, "plan"):
        return thing.predict(OBSERVATIONS, deterministic=True)[0]
    reward = getattr(thing, "reward", thing)
    if isinstance(reward, RelativeReward):
        return reward.predict(OBSERVATIONS[None].repeat(8, 1)[:, :8], np.zeros((1, 8, 2)))
    return thing.fingerprint() if hasattr(thing, "fingerprint") else repr(thing)[:20]


OTHERS = ("learned", "guided", "blended", "extractor", "reward", "discriminator", "judge", "dataset", "normalizer")


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_public_objects_are_pickled_and_copied(name: str) -> None:
    thing = objects()[name]
    for other in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing)):
        np.testing.assert_array_equal(answer(other), answer(thing))


def test_a_learner_with_a_log_is_pickled_without_it(tmp_path: Path) -> None:
    agent = make_agent(tensorboard_log=str(tmp_path)).learn(DATASET, 1, log_interval=1)
    again = pickle.loads(pickle.dumps(agent))
    assert again.learn(DATASET, 1, reset_num_timesteps=False).num_timesteps == 2
