"""A student learns what its teacher does where it goes, resumes exactly, and is an ordinary policy."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from helpers.agents import DATASET, Drift, make_agent, same_tensors
from helpers.program import invoke
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from rrpolicy import DiffusionAgent, GuidedPlanner, PlanningOptions
from rrpolicy.common.interruption import TrainingInterrupted
from rrpolicy.common.typing import Array
from rrpolicy.diffusion import DiffusionProcess
from rrpolicy.diffusion.sampling import Step, ddim
from rrpolicy.export import OnnxActor, export_onnx, load_onnx
from rrpolicy.rl import Distillation, PlanDistillation, Visits, load_policy, save_policy
from rrpolicy.rl.distill_plans import clean_target

MAZE = "PointMaze_UMaze-v3"
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
    learner = Distillation(Linear(), batch_size=32, net_arch=(32,), learning_rate=5e-3, seed=3)  # type: ignore[arg-type]
    learner.learn(Drift, 200, n_rounds=1, visits=Visits(n_envs=32, first_steps=8, round_steps=8))
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


# ---------------------------------------------------------------------- students that plan


def steered() -> GuidedPlanner:
    """A base of 20 levels that plans in 5 steps, pulled towards .3 in every entry that is free."""
    agent = make_agent(process=DiffusionProcess(20), planning=PlanningOptions(n_sampling_steps=5))
    return GuidedPlanner(agent, lambda x, t: -2 * ((x - 0.3) ** 2).flatten(1).sum(1))


def planned(teacher: Any, n_sampling_steps: int | None, steps: int = 20, **options: Any) -> PlanDistillation:
    learner = PlanDistillation(teacher, n_sampling_steps, batch_size=16, learning_rate=5e-3, seed=3)
    return learner.learn(Drift, steps, n_rounds=1, visits=SIZES, **options)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_step_with_the_clean_target_goes_where_the_teacher_goes(schedule: str) -> None:
    process, draw = DiffusionProcess(40, schedule), torch.Generator().manual_seed(0)
    x_t, x_s = torch.randn(2, 5, 4, 3, generator=draw, dtype=torch.float64)
    t, s = torch.tensor([39, 10, 5, 39, 3]), torch.tensor([10, 5, 0, 0, 1])
    clean = clean_target(process, x_t, t, x_s, s)
    eps = process.eps_from_x0(x_t, t, clean)
    for i in range(len(t)):
        step = Step(process, x_t[i], clean[i], eps[i], int(t[i]), int(s[i]), torch.zeros_like, None)
        torch.testing.assert_close(ddim(step), x_s[i], atol=1e-6, rtol=1e-5)  # α and σ are of single precision


@pytest.mark.parametrize("n_steps", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, None))])
def test_a_student_makes_the_steered_plan_from_the_same_noise(n_steps: int | None) -> None:
    teacher = steered()
    learner = planned(teacher, n_steps, 120)
    seen, base = learner.labels["observations"].numpy(), teacher.agent

    def plans(planner: Any) -> Tensor:
        return planner.sample_at(teacher.pinned_at(seen[:, None]), torch.Generator().manual_seed(1))

    wanted, student = plans(teacher), learner.student
    assert student.planning.n_sampling_steps == (n_steps or 5)
    unlearned = base.with_planning(n_sampling_steps=student.planning.n_sampling_steps)
    errors = [float(((plans(one) - wanted) ** 2).mean()) for one in (student, unlearned)]
    assert errors[0] < 0.1 * float(wanted.var()) and errors[0] < 0.4 * errors[1]


def test_a_distillation_of_plans_resumes_exactly(tmp_path: Path) -> None:
    path, whole = tmp_path / "checkpoint.zip", planned(steered(), 1)
    with pytest.raises(TrainingInterrupted):
        planned(steered(), 1, callback=Interrupt(), checkpoint_path=path)
    resumed = PlanDistillation.load(path, teacher=steered())
    resumed.learn(Drift, 20, n_rounds=1, visits=SIZES)
    assert same_tensors(resumed.averaged.state_dict(), whole.averaged.state_dict())
    whole.student.save(tmp_path / "agent", resumable=False)
    again = DiffusionAgent.load(tmp_path / "agent", Drift())
    observations = whole.labels["observations"][:5].numpy()
    wanted = whole.student.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(again.predict(observations, deterministic=True)[0], wanted)


def test_plans_that_no_student_can_learn_are_refused() -> None:
    options: tuple[dict[str, Any], ...] = ({"n_candidates": 2}, {"warm_start": 3})
    for option in options:
        with pytest.raises(ValueError, match=r"with_planning\(n_candidates=1, warm_start=None\)"):
            PlanDistillation(steered().with_planning(**option))
    with pytest.raises(ValueError, match=r"n_sampling_steps is 4, it must be one of \[1, 2, 3, 5\]"):
        PlanDistillation(steered(), 4)
    with pytest.raises(ValueError, match="plans by a Linear"):
        PlanDistillation(Linear())  # type: ignore[arg-type]


def test_the_command_leaves_an_agent_that_plans_without_the_reward(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {"observations": rng.normal(size=(40, 4)), "actions": rng.uniform(-1, 1, (40, 2))}
    np.savez(tmp_path / "data.npz", episode_lengths=[20, 20], **rows)
    command = ["distill", f"{MAZE}/base", "--reward", f"{MAZE}/reward-3-1", "--out", tmp_path / "out", "--no-progress"]
    command += ["--dataset", tmp_path / "data.npz", "--total-timesteps", 3, "--n-episodes", 1, "--plan-steps", 1]
    result = invoke(command)
    assert result.exit_code == 0, result.output
    student = DiffusionAgent.load(tmp_path / "out" / "agent.zip")
    assert student.planning.n_sampling_steps == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())
    other = invoke([*command[:-1], 5, "--resume"])
    assert other.exit_code != 0 and "--plan-steps is 5" in other.output and "it is 1" in other.output
