"""A student learns what its teacher does where it goes, resumes exactly, and is an ordinary policy."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers.agents import DATASET, Drift, make_agent, same_tensors
from stable_baselines3.common.callbacks import BaseCallback

from rrpolicy.common.interruption import TrainingInterrupted
from rrpolicy.common.typing import Array
from rrpolicy.export import OnnxActor, export_onnx, load_onnx
from rrpolicy.rl import Distillation, Visits, load_policy, save_policy

SIZES = Visits(n_envs=4, first_steps=6, round_steps=3, student_share=0.5)


class Linear:
    """A teacher whose actions are a law of the observation; it stands for a planner."""

    layout = make_agent().layout
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    observation_space = Drift().observation_space

    def set_random_seed(self, seed: int | None) -> None:
        """Nothing is drawn."""

    def predict(self, observation: Array, *_: Any, **__: Any) -> tuple[Array, None]:
        return np.clip(0.8 * observation[:, :2] - 0.1, -1, 1).astype(np.float32), None


def distilled(teacher: Any, n_rounds: int = 1, steps: int = 20, **options: Any) -> Distillation:
    student = Distillation(teacher, batch_size=16, net_arch=(16,), seed=3)
    return student.learn(Drift, steps, n_rounds=n_rounds, visits=SIZES, **options)


def test_every_visited_state_is_labelled_by_a_plan_from_there() -> None:
    teacher = make_agent()
    student = distilled(teacher, deterministic=True)
    assert student.n_labels == 4 * (6 + 3) and student.round == 2
    labels = student.labels
    wanted, _ = teacher.predict(labels["observations"].numpy(), deterministic=True)
    np.testing.assert_allclose(labels["actions"].numpy(), wanted, atol=1e-5)  # the space is [-1, 1]
    assert labels["held_out"].sum() == 6 + 3  # one environment of four


def test_a_law_is_learned() -> None:
    learner = Distillation(Linear(), batch_size=32, net_arch=(32,), seed=3)  # type: ignore[arg-type]
    learner.learn(Drift, 500, n_rounds=1, visits=Visits(n_envs=32, first_steps=8, round_steps=8))
    labels = learner.labels
    spread = float(labels["actions"].var(0).mean())
    assert learner.best_loss is not None and learner.best_loss < 0.03 * spread  # of states that were held out
    actions, _ = learner.student.predict(labels["observations"].numpy(), deterministic=True)
    assert ((actions - labels["actions"].numpy()) ** 2).mean() < 0.03 * spread


def test_the_student_is_an_ordinary_policy(tmp_path: Path) -> None:
    learner = distilled(Linear())
    observations = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype(np.float32)
    with torch.no_grad():
        wanted = learner.averaged(torch.as_tensor(observations)).numpy()
    policy = learner.student
    np.testing.assert_allclose(policy.predict(observations, deterministic=True)[0], wanted, atol=1e-5)
    again = load_policy(save_policy(policy, tmp_path / "student"), Drift())
    np.testing.assert_array_equal(again.predict(observations)[0], policy.predict(observations)[0])
    exported = load_onnx(export_onnx(again, tmp_path / "student", card={"teacher": "a law"}))
    assert isinstance(exported, OnnxActor) and exported.card == {"teacher": "a law"}
    np.testing.assert_allclose(exported.predict(observations)[0], wanted, atol=1e-5)
    assert exported.predict(observations[0])[0].shape == (2,)
    with pytest.raises(ValueError, match=r"observation has shape \(3,\)"):
        exported.predict(np.zeros(3))


class Interrupt(BaseCallback):
    """Ctrl-C at one step of the second fit."""

    def _on_step(self) -> bool:
        learner: Any = self.model
        if learner.round == 1 and self.num_timesteps == 7:
            signal.raise_signal(signal.SIGINT)
        return True


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.zip"
    whole = distilled(make_agent(), n_rounds=2)
    with pytest.raises(TrainingInterrupted):
        distilled(make_agent(), n_rounds=2, callback=Interrupt(), checkpoint_path=path)
    resumed = Distillation.load(path, teacher=make_agent())
    assert (resumed.round, resumed.num_timesteps) == (1, 7)
    resumed.learn(Drift, 20, n_rounds=2, visits=SIZES, checkpoint_path=path)
    assert same_tensors(resumed.averaged.state_dict(), whole.averaged.state_dict())
    done = Distillation.load(path, teacher=make_agent())
    assert done.round == 3
    assert same_tensors(done.learn(Drift, 20, n_rounds=2).averaged.state_dict(), whole.averaged.state_dict())


def test_states_of_a_dataset_are_labelled_without_an_environment() -> None:
    teacher = make_agent()
    learner = Distillation(teacher, batch_size=16, net_arch=(16,)).learn(DATASET, 5)
    assert learner.n_labels == len(DATASET) and learner.round == 1


def test_what_cannot_be_distilled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plans from several observations"):
        Distillation(make_agent(n_observation_rows=2))
    unbounded = Linear()
    unbounded.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    with pytest.raises(ValueError, match="scaled to their bounds"):
        Distillation(unbounded)  # type: ignore[arg-type]
    learner = Distillation(make_agent(), net_arch=(8,))
    with pytest.raises(ValueError, match=r"Pendulum-v1|observation space"):
        learner.learn("Pendulum-v1", 5, visits=SIZES)
    with pytest.raises(ValueError, match="student_share is 2"):
        Visits(student_share=2)
    learner.save(tmp_path / "learner")
    with pytest.raises(ValueError, match="needs its teacher"):
        Distillation.load(tmp_path / "learner")
