"""What the caller has set in torch changes no number: inference mode, no gradients, another default dtype."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.agents import (
    DATASET,
    EXPERT_DATASET,
    KINDS,
    NARROW,
    Drift,
    agent_of_kind,
    few_own_samples,
    make_agent,
    same_tensors,
)

from rrpolicy import DiffusionAgent, GuidedPlanner, RelativeReward, RewardExtractor, evaluate
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.rewards.discriminator import DiscriminatorReward
from rrpolicy.rewards.guidance import guided

OBSERVATIONS = DATASET.observations[::17][:6]


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], Any]] = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "float64": double}
all_modes = pytest.mark.parametrize("mode", MODES)


def reward_of(agent: DiffusionAgent) -> RelativeReward:
    reward = RelativeReward.for_model(agent, window_kwargs=NARROW, step_kwargs=NARROW)
    reward.gradient_scale.fill_(5.0)
    return reward


def acted(policy: Any, n_steps: int = 4) -> list[np.ndarray]:
    state, actions = None, []
    for step in range(n_steps):
        action, state = policy.predict(OBSERVATIONS + 0.1 * step, state, np.full(6, step == 0), deterministic=True)
        actions.append(action)
    return actions


MOST = [(kind, mode) for kind in KINDS for mode in MODES if kind != "plain" and mode != "inference"]
PAIRS = [("plain", mode) for mode in MODES] + [(kind, "inference") for kind in KINDS if kind != "plain"]


@pytest.mark.parametrize(("kind", "mode"), [*PAIRS, *(pytest.param(*one, marks=pytest.mark.slow) for one in MOST)])
def test_steering_gives_the_same_numbers(kind: str, mode: str) -> None:
    agent = agent_of_kind(kind)
    planners = [agent, GuidedPlanner(agent, reward_of(agent), scale=2.0, n_candidates=2)]
    wanted = [acted(planner) for planner in planners]
    with MODES[mode]():
        seen = [acted(planner) for planner in planners]
    np.testing.assert_array_equal(seen, wanted)


@all_modes
def test_rewards_give_the_same_numbers(mode: str) -> None:
    agent = make_agent()
    reward, x = reward_of(agent), np.random.normal(size=(5, *agent.event_shape))

    def numbers() -> list[Any]:
        x_t, t = torch.tensor(x, dtype=torch.float32), torch.arange(5)
        drawn = sample_model(
            agent,
            clean=x_t,
            generator=torch.Generator().manual_seed(0),
            n_sampling_steps=5,
            denoiser=guided(agent.eps, reward, agent.process, 1.0),
        )
        scores = reward.predict(OBSERVATIONS, np.zeros((6, 2)))
        return [reward.gradient(x_t, t), reward(x_t, t).detach(), drawn, torch.as_tensor(scores), agent.eps(x_t, t)]

    wanted = numbers()
    with MODES[mode]():
        seen = numbers()
    assert same_tensors(seen, wanted) and all(one.dtype == torch.float32 for one in seen)


@all_modes
@pytest.mark.parametrize("kind", ["plain", "unet", "transformer", "inverse"])
def test_learning_gives_the_same_weights(kind: str, mode: str) -> None:
    wanted = learned_as_usual(kind)
    with MODES[mode]():
        seen = agent_of_kind(kind).learn(DATASET, 3).get_parameters()
    assert same_tensors(seen, wanted)


@functools.cache
def learned_as_usual(kind: str) -> Any:
    return agent_of_kind(kind).learn(DATASET, 3).get_parameters()


@all_modes
def test_extraction_gives_the_same_weights(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_own_samples(monkeypatch)
    wanted = extracted_as_usual()
    with MODES[mode]():
        seen = extracted()
    assert same_tensors(seen, wanted)


def extracted() -> list[Any]:
    agents = [make_agent(seed=seed).learn(DATASET, 1) for seed in (0, 1)]
    heads = {"window_kwargs": NARROW, "step_kwargs": NARROW}
    extractor = RewardExtractor(*agents, buffer_size=32, batch_size=8, seed=0, **heads)
    discriminator = DiscriminatorReward(*agents, batch_size=8, seed=0, window_kwargs=NARROW)
    extractor.learn(None, 2).learn([DATASET, EXPERT_DATASET], 3)
    discriminator.learn([DATASET, EXPERT_DATASET], 3)
    return [one.reward.state_dict() for one in (extractor, discriminator)]


extracted_as_usual = functools.cache(extracted)


@all_modes
def test_what_was_made_in_a_mode_works_outside_of_it(tmp_path: Path, mode: str) -> None:
    agent = make_agent().learn(DATASET, 2)
    planner = GuidedPlanner(agent, reward_of(agent))
    planner.save(tmp_path / "planner")
    agent.save(tmp_path / "agent")
    planner.reward.save(tmp_path / "reward")
    wanted = acted(planner)
    with MODES[mode]():
        loaded = GuidedPlanner.load(tmp_path / "planner")
        parts = DiffusionAgent.load(tmp_path / "agent"), RelativeReward.load(tmp_path / "reward")
    np.testing.assert_array_equal(acted(loaded), wanted)
    np.testing.assert_array_equal(acted(GuidedPlanner(*parts)), wanted)
    agent.learn(DATASET, 2, reset_num_timesteps=False)
    parts[0].learn(DATASET, 2, reset_num_timesteps=False)
    assert same_tensors(parts[0].get_parameters(), agent.get_parameters())


@all_modes
def test_evaluation_gives_the_same_returns_and_the_mode_stays(mode: str) -> None:
    agent = make_agent()
    planner = GuidedPlanner(agent, reward_of(agent))
    wanted = evaluate(planner, Drift, n_eval_episodes=2).returns
    with MODES[mode]():
        before = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype()
        seen = evaluate(planner, Drift, n_eval_episodes=2).returns
        assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype()) == before
    np.testing.assert_array_equal(seen, wanted)
