"""The one training loop: schedules, averaged weights, SB3's callbacks and logger, refusals.

Most of it is shown on a learner with two weights; what SB3 must accept is shown on a diffusion agent.
"""

import itertools
import math
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from helpers.agents import DATASET, Drift, make_agent, make_dataset, same_tensors
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from rrpolicy import DiffusionAgent
from rrpolicy.common.learner import Learner, LearningRate, TrainingInterrupted


class Line(Learner[nn.Linear]):
    """Fits y = 2 x + 1."""

    kind = "line"

    def __init__(self, learning_rate: LearningRate = 0.1, **kwargs: Any) -> None:
        options: dict[str, Any] = {
            "batch_size": 8,
            "ema_decay": 0.9,
            "weight_decay": 0.0,
            "max_grad_norm": 10.0,
            "tensorboard_log": None,
            "verbose": 0,
            "seed": 0,
            "device": "cpu",
            **kwargs,
        }
        super().__init__(learning_rate, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._start_from(nn.Linear(1, 1))

    def learn(self, total_timesteps: int, **kwargs: Any) -> Self:
        self._optimise(total_timesteps, **kwargs)
        return self

    def _draw_loss(self) -> tuple[Tensor, dict[str, float]]:
        x = torch.rand(self.batch_size, 1, generator=self.generator)
        error = self.module(x) - (2 * x + 1)
        return (error**2).mean(), {"error": float(error.detach().abs().mean())}

    def _config(self) -> dict[str, Any]:
        return {"training": {"learning_rate": None if callable(self.learning_rate) else self.learning_rate}}

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Self:
        rate = config["training"]["learning_rate"]
        return cls() if rate is None else cls(rate)


class At(BaseCallback):
    """Calls a function at one step; training goes on unless it returns False."""

    def __init__(self, step: int, function: Any) -> None:
        super().__init__()
        self._at, self._function = step, function

    def _on_step(self) -> bool:
        return self.num_timesteps != self._at or self._function(self.model) is not False


# ---------------------------------------------------------------------- the loop


def test_it_learns() -> None:
    line = Line().learn(400)
    assert float(line.averaged.weight) == pytest.approx(2.0, abs=0.1)
    assert float(line.averaged.bias) == pytest.approx(1.0, abs=0.1)
    assert line.num_timesteps == 400


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    one, same, other = (Line(seed=seed).learn(5) for seed in (1, 1, 2))
    assert same_tensors(one.get_parameters(), same.get_parameters())
    assert not same_tensors(one.get_parameters(), other.get_parameters())


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    make_agent(normalizer=None).learn(DATASET, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_averaged_weights_follow_with_a_decay_that_warms_up() -> None:
    line = Line(ema_decay=0.5)
    averaged = line.module.weight.detach().clone()
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 9 / 18, 0.5, 0.5]

    def follow(model: Line) -> None:
        nonlocal averaged
        averaged = averaged.lerp(model.module.weight.detach(), 1 - decays[model.num_timesteps - 1])
        torch.testing.assert_close(model.averaged.weight, averaged)

    line.learn(10, callback=[At(step, follow) for step in range(1, 11)])


def test_the_learning_rate_warms_up_and_decays_to_two_percent() -> None:
    rates: list[float] = []
    line = Line(0.1)
    line.learn(100, callback=lambda local, _: bool(rates.append(line.optimizer.param_groups[0]["lr"]) or True))
    assert rates[0] == pytest.approx(0.01, rel=0.01)
    assert max(rates) == pytest.approx(0.1, rel=0.05) and rates.index(max(rates)) in range(8, 12)
    assert rates[-1] == pytest.approx(0.002, rel=0.02)
    assert all(b < a for a, b in itertools.pairwise(rates[10:]))


def test_a_schedule_gets_the_remaining_progress() -> None:
    seen: list[float] = []

    def schedule(remaining: float) -> float:
        seen.append(remaining)
        return 0.01

    Line(schedule).learn(4)
    assert seen[-4:] == [1.0, 0.75, 0.5, 0.25]


def test_progress_goes_on_after_a_resume_and_over_again_after_a_reset() -> None:
    line = Line().learn(6)
    assert line.learn(4, reset_num_timesteps=False).num_timesteps == 10
    assert line.learn(3).num_timesteps == 3


def test_gradients_are_clipped() -> None:
    line = Line(max_grad_norm=1e-3)
    line.learn(1)
    norm = torch.cat([parameter.grad.flatten() for parameter in line.module.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, it must be a whole number of at least 1"),
        ({"max_grad_norm": -1}, "max_grad_norm is -1, it must be a finite number above 0"),
        ({"learning_rate": 0}, "learning_rate is 0, it must be a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan, it must be a finite number above 0"),
        ({"ema_decay": 1.0}, r"ema_decay is 1.0, it must lie in \[0, 1\)"),
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Line(**values)


@pytest.mark.parametrize("total_timesteps", [-1, 2.5, True, "10"])
def test_wrong_budgets_are_refused(total_timesteps: Any) -> None:
    with pytest.raises(ValueError, match=r"total_timesteps is .*, it must be a whole number of at least 0"):
        Line().learn(total_timesteps)


# ---------------------------------------------------------------------- what goes wrong


def poison(model: Line) -> None:
    nn.init.constant_(model.module.weight, math.nan)


def test_a_nan_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    line, path = Line(), tmp_path / "line.zip"
    with pytest.raises(FloatingPointError, match="the loss is nan at step 7"):
        line.learn(20, callback=At(7, poison), checkpoint_path=path, checkpoint_freq=5)
    kept = Line.load(path)
    assert kept.num_timesteps == 5
    assert same_tensors(kept.learn(15, reset_num_timesteps=False).get_parameters(), Line().learn(20).get_parameters())


def test_weights_that_are_not_finite_are_never_written_over_good_ones(tmp_path: Path) -> None:
    line, path = Line(), tmp_path / "line.zip"
    with pytest.raises(ValueError, match="weight"):
        line.learn(20, callback=At(10, poison), checkpoint_path=path, checkpoint_freq=5)
    assert Line.load(path).num_timesteps == 5


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    class Root(Line):
        def _draw_loss(self) -> tuple[Tensor, dict[str, float]]:
            return (self.module.weight * 0).abs().sqrt().sum(), {}

    root = Root()
    weight = root.module.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="the gradient norm is nan at step 0"):
        root.learn(3)
    assert torch.equal(root.module.weight, weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_before_leaving(tmp_path: Path, number: signal.Signals) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    path = tmp_path / "line.zip"
    with pytest.raises(TrainingInterrupted, match=f"interrupted by {number.name}") as caught:
        Line().learn(20, callback=At(7, lambda _: os.kill(os.getpid(), number)), checkpoint_path=path)
    assert caught.value.signal_number == number and isinstance(caught.value, KeyboardInterrupt)
    assert Line.load(path).num_timesteps == 7
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_in_the_last_step_is_not_lost() -> None:
    with pytest.raises(TrainingInterrupted):
        Line().learn(3, callback=At(3, lambda _: os.kill(os.getpid(), signal.SIGTERM)))


def test_training_runs_in_a_thread() -> None:
    line = Line()
    thread = threading.Thread(target=line.learn, args=(3,))
    thread.start()
    thread.join()
    assert line.num_timesteps == 3


# ---------------------------------------------------------------------- SB3's callbacks and logger


def test_a_callback_that_returns_false_stops_training_and_the_checkpoint_is_written(tmp_path: Path) -> None:
    line = Line().learn(20, callback=At(6, lambda _: False), checkpoint_path=tmp_path / "line")
    assert line.num_timesteps == 6 and Line.load(tmp_path / "line").num_timesteps == 6


def test_eval_callback_runs_unmodified(tmp_path: Path) -> None:
    agent = make_agent(n_action_steps=4)
    callback = EvalCallback(
        Monitor(Drift()),
        n_eval_episodes=2,
        eval_freq=3,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    agent.learn(DATASET, 6, callback=callback)
    assert callback.evaluations_timesteps == [3, 6] and math.isfinite(callback.best_mean_reward)
    best = DiffusionAgent.load(tmp_path / "best_model.zip")
    assert best.num_timesteps in (3, 6)


def test_checkpoint_callback_runs_unmodified(tmp_path: Path) -> None:
    agent = make_agent()
    agent.learn(DATASET, 6, callback=[CheckpointCallback(2, str(tmp_path), name_prefix="agent")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"agent_{step}_steps.zip" for step in (2, 4, 6)]
    assert DiffusionAgent.load(tmp_path / "agent_4_steps").num_timesteps == 4


def test_the_log_reaches_tensorboard(tmp_path: Path) -> None:
    Line(tensorboard_log=str(tmp_path)).learn(10, log_interval=5)
    (folder,) = tmp_path.iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/error", "train/learning_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10]


def test_the_log_goes_to_any_sb3_logger(tmp_path: Path) -> None:
    line = Line()
    line.set_logger(configure(str(tmp_path), ["csv"]))
    line.learn(10, log_interval=5)
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(lines) == 3 and "train/loss" in lines[0] and "time/total_timesteps" in lines[0]


def test_the_log_is_silent_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    Line().learn(5, log_interval=5)
    assert capsys.readouterr().out == ""
    Line(verbose=1).learn(5, log_interval=5)
    assert "train/" in capsys.readouterr().out


def test_the_progress_bar_counts_gradient_steps(capsys: pytest.CaptureFixture[str]) -> None:
    Line().learn(7, progress_bar=True)
    assert "7/7" in capsys.readouterr().err


# ---------------------------------------------------------------------- parameters and calls


def test_parameters_travel_between_learners() -> None:
    trained, fresh = Line().learn(5), Line(seed=9)
    fresh.set_parameters(trained.get_parameters())
    assert same_tensors(fresh.get_parameters(), trained.get_parameters())
    trained.learn(5)
    assert not same_tensors(fresh.get_parameters(), trained.get_parameters())  # copies, not views


def test_a_part_of_the_parameters_can_be_set() -> None:
    trained, fresh = Line().learn(5), Line()
    parameters = trained.get_parameters()
    fresh.set_parameters({"averaged": parameters["averaged"]}, exact_match=False)
    assert same_tensors(fresh.get_parameters()["averaged"], parameters["averaged"])
    assert not same_tensors(fresh.get_parameters()["policy"], parameters["policy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("averaged"), r"parameters lacks \['averaged'\]; pass exact_match=False"),
        (lambda p: p.update(critic={}), r"parameters has \['critic'\], known are"),
        (lambda p: p["policy"].update(weight=torch.zeros(2, 2)), r"parameters\['policy'\] does not fit: .*weight"),
        (lambda p: p["policy"].pop("bias"), r"parameters\['policy'\] does not fit: .*bias"),
        (lambda p: p["policy.optimizer"].pop("state"), r"parameters\['policy\.optimizer'\] does not fit"),
        (lambda p: p["policy.optimizer"].update(param_groups=[]), r"parameters\['policy\.optimizer'\] does not fit"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    parameters = Line().learn(2).get_parameters()
    change(parameters)
    with pytest.raises(ValueError, match=message):
        Line().set_parameters(parameters)


def test_learn_without_data_shows_the_right_call() -> None:
    agent = make_agent()
    for arguments in ((10_000,), (DATASET,), ([DATASET, 3], 10), (None, 10)):
        with pytest.raises(TypeError, match=r"agent\.learn\(dataset, total_timesteps=10_000\)"):
            agent.learn(*arguments)


def test_a_refused_dataset_leaves_no_trace() -> None:
    agent = make_agent(normalizer=None)
    short = make_dataset(length=4)
    with pytest.raises(ValueError, match="no window fits"):
        make_agent(normalizer=None, padding=False).learn(short, 1)
    wide = type(DATASET).from_arrays(DATASET.observations[:, :3], DATASET.actions)
    with pytest.raises(ValueError, match="columns"):
        agent.learn(wide, 1)
    assert agent.learn(DATASET, 1).normalizer.observations.width == 4


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="device is 'cuda:9', this machine has auto, cpu"):
        make_agent(device="cuda:9")
