"""Stopped and resumed equals uninterrupted, bit for bit: agents, extractors and discriminators, however they stop.

Weights, averaged weights and optimiser state are compared exactly after the same total number of steps.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.agents import DATASET, EXPERT_DATASET, NARROW, few_own_samples, make_agent, same_tensors
from stable_baselines3.common.callbacks import BaseCallback

from rrpolicy import DiffusionAgent, DiscriminatorReward, RewardExtractor
from rrpolicy.common.interruption import TrainingInterrupted
from rrpolicy.common.learner import Learner

TOTAL = 14
STEPS_PER_BUFFER = 4  # buffer_size * n_epochs / batch_size
BASE, EXPERT = make_agent(), make_agent(seed=1)
DATA = [DATASET, EXPERT_DATASET]


class StopAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._last = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self._last


def new_agent() -> DiffusionAgent:
    return make_agent(normalizer=None, seed=3)


def new_extractor() -> RewardExtractor:
    buffer = {"batch_size": 16, "buffer_size": 32, "n_epochs": 2}
    return RewardExtractor(BASE, EXPERT, window_kwargs=NARROW, step_kwargs=NARROW, seed=3, **buffer)


def new_discriminator() -> DiscriminatorReward:
    return DiscriminatorReward(BASE, EXPERT, batch_size=16, window_kwargs=NARROW, seed=3)


KINDS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "agent": (new_agent, DATASET, {}),
    "extractor": (new_extractor, DATA, {"base": BASE, "expert": EXPERT}),
    "discriminator": (new_discriminator, DATA, {"base": BASE, "expert": EXPERT}),
}


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Learner]:
    return {kind: make().learn(data, TOTAL) for kind, (make, data, _) in KINDS.items()}


def state_of(learner: Learner) -> dict[str, Any]:
    return {**learner.get_parameters(), "generator": learner.generator.get_state(), "step": learner.num_timesteps}


def finish(kind: str, path: Path) -> Learner:
    """Load the checkpoint and take the steps that were still to come."""
    make, data, models = KINDS[kind]
    resumed = type(make()).load(path, **models)
    return resumed.learn(data, TOTAL - resumed.num_timesteps, reset_num_timesteps=False)


# After the first step, in the middle of a buffer, at its end, at the start of the next, in the third, before the last.
MORE = [pytest.param(step, marks=pytest.mark.slow) for step in (2, 10)]


@pytest.mark.parametrize("step", [1, STEPS_PER_BUFFER, STEPS_PER_BUFFER + 1, TOTAL - 1, *MORE])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(kind: str, step: int, tmp_path: Path, uninterrupted: dict[str, Learner]) -> None:
    make, data, _ = KINDS[kind]
    make().learn(data, TOTAL, callback=StopAt(step), checkpoint_path=tmp_path / kind)
    assert same_tensors(state_of(finish(kind, tmp_path / kind)), state_of(uninterrupted[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_writing_checkpoints_changes_nothing(kind: str, tmp_path: Path, uninterrupted: dict[str, Learner]) -> None:
    make, data, _ = KINDS[kind]
    learner = make().learn(data, TOTAL, checkpoint_path=tmp_path / kind, checkpoint_freq=3)
    assert same_tensors(state_of(learner), state_of(uninterrupted[kind]))
    loaded = finish(kind, tmp_path / kind)
    assert loaded.num_timesteps == TOTAL
    for name in ("policy", "averaged"):
        assert same_tensors(loaded.get_parameters()[name], learner.get_parameters()[name])


def test_stopping_twice_is_no_worse(tmp_path: Path, uninterrupted: dict[str, Learner]) -> None:
    path = tmp_path / "extractor"
    new_extractor().learn(DATA, TOTAL, callback=StopAt(3), checkpoint_path=path)
    again = RewardExtractor.load(path, base=BASE, expert=EXPERT)
    again.learn(DATA, TOTAL - 3, callback=StopAt(7), checkpoint_path=path, reset_num_timesteps=False)
    assert same_tensors(state_of(finish("extractor", path)), state_of(uninterrupted["extractor"]))


def test_the_models_own_samples_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_own_samples(monkeypatch)
    whole = new_extractor().learn(None, 6)
    new_extractor().learn(None, 6, callback=StopAt(3), checkpoint_path=tmp_path / "extractor")
    resumed = RewardExtractor.load(tmp_path / "extractor", base=BASE, expert=EXPERT)
    resumed.learn(None, 3, reset_num_timesteps=False)
    assert same_tensors(state_of(resumed), state_of(whole))


def test_the_optimiser_s_settings_survive(tmp_path: Path) -> None:
    options = {
        "learning_rate": 3e-3,
        "weight_decay": 0.1,
        "ema_decay": 0.5,
        "max_grad_norm": 0.3,
        "first_action_weight": 4.0,
        "batch_size": 8,
        "seed": 5,
        "padding": False,
    }
    make_agent(**options).learn(DATASET, 2).save(tmp_path / "agent")
    loaded = DiffusionAgent.load(tmp_path / "agent")
    assert {name: getattr(loaded, name) for name in options} == options


def test_a_schedule_must_be_given_again(tmp_path: Path) -> None:
    def schedule(remaining: float) -> float:
        return 1e-2 * remaining

    whole = make_agent(learning_rate=schedule).learn(DATASET, 8)
    make_agent(learning_rate=schedule).learn(DATASET, 8, callback=StopAt(5), checkpoint_path=tmp_path / "agent")
    resumed = DiffusionAgent.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="learning_rate was a callable"):
        resumed.learn(DATASET, 3, reset_num_timesteps=False)
    resumed = DiffusionAgent.load(tmp_path / "agent")
    resumed.learning_rate = schedule
    assert same_tensors(state_of(resumed.learn(DATASET, 3, reset_num_timesteps=False)), state_of(whole))


def test_an_archive_for_sharing_acts_but_holds_no_training_state(tmp_path: Path) -> None:
    agent = new_agent().learn(DATASET, 5)
    agent.save(tmp_path / "whole")
    agent.save(tmp_path / "shared", resumable=False, half=True, card={"note": "half"})
    assert (tmp_path / "shared.zip").stat().st_size < 0.3 * (tmp_path / "whole.zip").stat().st_size
    shared = DiffusionAgent.load(tmp_path / "shared")
    action, wanted = (one.predict(DATASET.observations[:4], deterministic=True)[0] for one in (shared, agent))
    assert abs(action - wanted).max() < 0.02
    with pytest.raises(ValueError, match="half=True stores rounded weights, pass resumable=False"):
        agent.save(tmp_path / "shared", half=True)


class Linger(BaseCallback):
    """Tells at step 7 that it is there, and stays for long enough to be stopped."""

    def __init__(self, pipe: int, n_naps: int) -> None:
        super().__init__()
        self._pipe, self._n_naps = pipe, n_naps

    def _on_step(self) -> bool:
        if self.num_timesteps == 7:
            os.write(self._pipe, b"ready")
            for _ in range(self._n_naps):
                time.sleep(0.05)
        return True


@pytest.mark.parametrize(("number", "last_step"), [(signal.SIGTERM, 7), (signal.SIGKILL, 5)])
def test_a_stopped_process_resumes_exactly(
    number: signal.Signals, last_step: int, tmp_path: Path, uninterrupted: dict[str, Learner]
) -> None:
    path = tmp_path / "agent.zip"
    lingering = Linger(writing := (pipe := os.pipe())[1], 2 if number == signal.SIGTERM else 1200)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            new_agent().learn(DATASET, TOTAL, callback=lingering, checkpoint_path=path, checkpoint_freq=5)
        except TrainingInterrupted as interrupted:
            os._exit(interrupted.signal_number)
        finally:
            os._exit(99)
    os.close(writing)
    with open(pipe[0], "rb", buffering=0) as told:
        assert told.read(5) == b"ready"
    os.kill(child, number)
    status = os.waitpid(child, 0)[1]
    if number == signal.SIGTERM:
        assert os.waitstatus_to_exitcode(status) == signal.SIGTERM  # it was told, and left by itself
    else:
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == ["agent.zip"]
    assert DiffusionAgent.load(path).num_timesteps == last_step
    assert same_tensors(state_of(finish("agent", path)), state_of(uninterrupted["agent"]))
