"""Held-out loss while learning: what is kept is the best average, training does not change, and a resume is exact."""

import copy
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.agents import (
    DATASET,
    EXPERT_DATASET,
    KINDS,
    NARROW,
    Lines,
    agent_of_kind,
    few_own_samples,
    make_agent,
    make_dataset,
    same_tensors,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rrpolicy import DiffusionAgent, RewardExtractor
from rrpolicy.rewards.discriminator import DiscriminatorReward

HELD_OUT = make_dataset(seed=5, n_episodes=2)
TOTAL, FREQ = 24, 4
BASE, EXPERT = make_agent(), make_agent(seed=1)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        few_own_samples(patch)
        yield


class Averages(BaseCallback):
    """Averaged weights after every step; ends learning after ``stop``."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.stop, self.seen = stop, {0: {}}

    def _on_step(self) -> bool:
        self.seen[self.num_timesteps] = {k: v.clone() for k, v in self.model.averaged.state_dict().items()}
        return self.num_timesteps != self.stop


def new_extractor(**kwargs: Any) -> RewardExtractor:
    heads = {"window_kwargs": NARROW, "step_kwargs": NARROW}
    return RewardExtractor(BASE, EXPERT, batch_size=8, buffer_size=32, seed=0, **heads, **kwargs)


def new_discriminator() -> DiscriminatorReward:
    return DiscriminatorReward(BASE, EXPERT, batch_size=8, seed=0, window_kwargs=NARROW)


LEARNERS: dict[str, tuple[Any, Any, Any]] = {
    **{kind: (lambda kind=kind: agent_of_kind(kind), DATASET, HELD_OUT) for kind in KINDS},
    "extractor": (new_extractor, [DATASET, EXPERT_DATASET], HELD_OUT),
    "value units": (lambda: new_extractor(value_units=True), None, HELD_OUT),
    "discriminator": (new_discriminator, [DATASET, EXPERT_DATASET], [HELD_OUT, EXPERT_DATASET]),
}
FEW = ("plain", "inverse", "extractor", "discriminator")  # other kinds of agents and units of values learn alike
every_learner = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in LEARNERS]
)
some_learners = pytest.mark.parametrize(
    "name", ["plain", "inverse", pytest.param("extractor", marks=pytest.mark.slow), "discriminator"]
)


def reload(learner: Any, path: Path) -> Any:
    models = {} if isinstance(learner, DiffusionAgent) else {"base": BASE, "expert": EXPERT}
    return type(learner).load(path, **models)


@every_learner
def test_the_best_average_is_kept_and_training_does_not_change(name: str) -> None:
    make, data, held_out = LEARNERS[name]
    plain = make().learn(data, TOTAL)
    learner, log, averages = make(), Lines(), Averages()
    learner.set_logger(Logger(None, [log]))
    learner.learn(data, TOTAL, averages, log_interval=FREQ, eval_dataset=held_out, eval_freq=FREQ)
    losses = {step: line["eval/loss"] for step, line in log.seen}
    assert list(losses) == list(range(FREQ, TOTAL + 1, FREQ))
    assert learner.best_step == min(losses, key=losses.__getitem__) and learner.best_loss == losses[learner.best_step]
    assert same_tensors(dict(learner.averaged.state_dict()), averages.seen[learner.best_step])
    assert same_tensors(dict(learner.module.state_dict()), dict(plain.module.state_dict()))
    assert same_tensors(averages.seen[TOTAL], dict(plain.averaged.state_dict()))
    assert torch.equal(learner.generator.get_state(), plain.generator.get_state())
    assert plain.best_step is None and plain.best_loss is None


@pytest.mark.parametrize(
    ("name", "stop"),
    [
        ("plain", 1),
        pytest.param("plain", FREQ, marks=pytest.mark.slow),  # where another learner is stopped, too
        pytest.param("plain", 2 * FREQ + 1, marks=pytest.mark.slow),
        ("inverse", FREQ),
        ("extractor", 2 * FREQ + 1),
        ("discriminator", 1),
    ],
)
def test_a_resume_is_exact(name: str, stop: int, tmp_path: Path) -> None:
    make, data, held_out = LEARNERS[name]
    options = {"eval_dataset": held_out, "eval_freq": FREQ, "checkpoint_path": tmp_path / "checkpoint"}
    whole = make().learn(data, TOTAL, **options)
    wanted = reload(whole, tmp_path / "checkpoint")
    stopped = make()
    stopped.learn(data, TOTAL, Averages(stop), **{**options, "checkpoint_path": tmp_path / "stopped"})
    resumed = reload(stopped, tmp_path / "stopped")
    resumed.learn(data, TOTAL - stop, reset_num_timesteps=False, **options)
    assert same_tensors(resumed.get_parameters(), whole.get_parameters())
    for other in (wanted, resumed):
        assert same_tensors(other.averaged.state_dict(), whole.averaged.state_dict())
        assert (other.best_step, other.best_loss) == (whole.best_step, whole.best_loss)
    for other in (whole, wanted, resumed):  # the average of all steps was kept, too, and is what goes on
        other.learn(data, 1, reset_num_timesteps=False)
        assert same_tensors(other.get_parameters(), whole.get_parameters())


def test_learning_goes_on_from_the_average_of_all_steps() -> None:
    agent = make_agent().learn(DATASET, TOTAL // 2, eval_dataset=HELD_OUT, eval_freq=2)
    halves = make_agent().learn(DATASET, TOTAL // 2)
    for one in (agent, halves):
        one.learn(DATASET, TOTAL // 2, reset_num_timesteps=False)
    assert same_tensors(agent.get_parameters(), halves.get_parameters()) and agent.best_step is None


def test_an_interrupted_training_is_left_as_it_was(tmp_path: Path) -> None:
    """The checkpoint holds the average of all steps beside the best one, and the way on is the same."""
    options: dict[str, Any] = {"eval_dataset": HELD_OUT, "eval_freq": FREQ}
    whole = make_agent().learn(DATASET, TOTAL, **options)

    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 10:
                signal.raise_signal(signal.SIGINT)
            return True

    averages = Averages()
    with pytest.raises(KeyboardInterrupt):
        make_agent().learn(DATASET, TOTAL, [averages, Interrupt()], checkpoint_path=tmp_path / "agent", **options)
    loaded = DiffusionAgent.load(tmp_path / "agent")
    assert same_tensors(dict(loaded.averaged.state_dict()), averages.seen[10]) and loaded.best_step in (4, 8)
    loaded.learn(DATASET, TOTAL - 10, reset_num_timesteps=False, **options)
    assert same_tensors(loaded.get_parameters(), whole.get_parameters()) and loaded.best_step == whole.best_step


class Spoil(BaseCallback):
    """Spoils all weights but for the measurement at ``good``; the step before each measurement sets them."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def _on_training_start(self) -> None:
        self.kept = copy.deepcopy(self.model.get_parameters())

    def _on_step(self) -> bool:
        if (self.num_timesteps + 1) % FREQ == 0:
            self.model.set_parameters(self.kept)
            if self.num_timesteps + 1 != self.good:
                for one in (*self.model.module.parameters(), *self.model.averaged.parameters()):
                    one.data.add_(torch.randn(one.shape))
        return True


@some_learners
def test_patience_ends_learning(name: str) -> None:
    make, data, held_out = LEARNERS[name]
    learner = make().learn(data, 100, Spoil(2 * FREQ), eval_dataset=held_out, eval_freq=FREQ, patience=2)
    assert (learner.num_timesteps, learner.best_step) == (4 * FREQ, 2 * FREQ)


def test_overfitting_is_seen_and_left() -> None:
    """Sixteen windows of noise are learned by heart, which helps on no other ones."""
    train, held_out = make_dataset(n_episodes=1, length=24), make_dataset(n_episodes=4, seed=9)
    agent = make_agent(learning_rate=1e-2, ema_decay=0.5, padding=False)
    agent.learn(train, 1500, eval_dataset=held_out, eval_freq=50, patience=3)
    assert agent.best_step is not None and agent.num_timesteps == agent.best_step + 150 < 1500


def test_episodes_are_held_out_whole(tmp_path: Path) -> None:
    data, held_out = make_dataset(n_episodes=10).split(0.2, seed=3)
    agent = make_agent().learn(data, 4, eval_dataset=[held_out], eval_freq=2)
    agent.save(tmp_path / "agent", resumable=False)
    assert DiffusionAgent.load(tmp_path / "agent").best_step == agent.best_step in (2, 4)


def test_wrong_options_are_named() -> None:
    agent = make_agent()
    for options, fault in (
        ({"eval_freq": 0}, "eval_freq is 0, it must be a whole number of at least 1"),
        ({"eval_freq": 11}, "eval_freq is 11, it must be at most total_timesteps, 10"),
        ({"patience": 0, "eval_freq": 1}, "patience is 0, it must be a whole number of at least 1"),
        ({"eval_dataset": make_dataset(length=4), "eval_freq": 1}, None),  # padded
        ({"eval_dataset": None, "patience": 3}, "patience is 3, it needs an eval_dataset"),
    ):
        arguments: Any = {"eval_dataset": HELD_OUT, **options}
        if fault is None:
            agent.learn(DATASET, 10, **arguments)
            continue
        with pytest.raises(ValueError, match=fault):
            agent.learn(DATASET, 10, **arguments)
    with pytest.raises(TypeError, match="TrajectoryDataset"):
        agent.learn(DATASET, 10, eval_dataset=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="longest episode has 4: hold out longer episodes"):
        make_agent(padding=False).learn(DATASET, 10, eval_dataset=make_dataset(length=4), eval_freq=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"total_timesteps": -1},
        {"eval_dataset": HELD_OUT, "eval_freq": 0},
        {"eval_dataset": HELD_OUT, "eval_freq": 6},
        {"patience": 2},
        {"eval_dataset": HELD_OUT, "eval_freq": 2, "patience": 0},
    ],
)
def test_refused_arguments_leave_no_normaliser(arguments: dict[str, Any]) -> None:
    agent = make_agent(normalizer=None)
    with pytest.raises(ValueError):
        agent.learn(DATASET, **{"total_timesteps": 5, **arguments})
    with pytest.raises(ValueError, match="the agent has no normalizer"):
        _ = agent.normalizer


def test_every_measurement_is_logged_and_zero_steps_change_nothing() -> None:
    agent, log = make_agent(), Lines()
    agent.set_logger(Logger(None, [log]))
    agent.learn(DATASET, 10, eval_dataset=HELD_OUT, eval_freq=5, log_interval=4)
    assert [step for step, line in log.seen if "eval/loss" in line] == [5, 10]
    before = {name: value.clone() for name, value in agent.averaged.state_dict().items()}
    best = agent.best_step
    agent.learn(DATASET, 0, reset_num_timesteps=False, eval_dataset=HELD_OUT)
    assert same_tensors(before, dict(agent.averaged.state_dict())) and agent.best_step == best


def test_an_exception_of_a_callback_leaves_no_environment() -> None:
    def fail(_: Any, __: Any) -> bool:
        raise RuntimeError("mine")

    extractor = RewardExtractor(BASE, EXPERT, step_kwargs=NARROW, window_kwargs=NARROW, buffer_size=32, batch_size=16)
    with pytest.raises(RuntimeError, match="mine"):
        extractor.learn(None, total_timesteps=2, callback=fail)
    assert extractor.get_env() is None
