"""DAgger (Ross et al. 2011) with a planner as teacher: the loop of everything that is distilled from one.

The teacher labels the states that it visits itself, then, in rounds, those that the student visits. No reward and no
label of an expert is used. Without an environment, states of a dataset are labelled.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self, Unpack

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from tqdm.auto import tqdm

from rrpolicy.agents.environment import flat_environment
from rrpolicy.agents.planning import Planner
from rrpolicy.common.arguments import number, whole
from rrpolicy.common.boxes import box_from_dict, box_to_dict
from rrpolicy.common.interruption import TrainingInterrupted, deferred_signals
from rrpolicy.common.learner import Learner, LearningRate, MaybeCallback
from rrpolicy.common.options import LearnOptions, TrainingOptions, check_options
from rrpolicy.common.persistence import Module, training_arguments
from rrpolicy.common.spaces import check_spaces, flat_box
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.data.dataset import TrajectoryDataset

N_LABELS = 25_600  # states of a dataset that are labelled at most
GROUPS = ("observations", "actions", "held_out")


@dataclass(frozen=True)
class Visits:
    """
    Sizes of the collections that a student is distilled from.

    :param n_envs: environments that are planned for at once
    :param first_steps: steps of each in the first collection, which the teacher acts in
    :param round_steps: steps of each in every round of DAgger
    :param student_share: share of the environments in which the student acts in rounds; in the others the teacher does
    """

    n_envs: int = 64
    first_steps: int = 400
    round_steps: int = 250
    student_share: float = 0.8

    def __post_init__(self) -> None:
        whole("n_envs", self.n_envs, 2)
        whole("first_steps", self.first_steps, 1)
        whole("round_steps", self.round_steps, 1)
        if not 0 <= number("student_share", self.student_share) <= 1:
            raise ValueError(f"student_share is {self.student_share}, it must lie in [0, 1]")


class Dagger(Learner[Module]):
    """
    Base of what learns from a planner's plans at the states that teacher and student visit.

    Subclasses set their network, say how the student acts, and draw batches from the labels; ``argument`` names the
    constructor's argument, and attribute, that their archives hold beside.

    :param teacher: the planner
    :raises ValueError: for a teacher that plans from several observations, or actions without finite bounds
    """

    argument: ClassVar[str]

    def __init__(
        self, teacher: Planner, learning_rate: LearningRate, batch_size: int, **training: Unpack[TrainingOptions]
    ) -> None:
        check_options(type(self).__name__, training, TrainingOptions)
        super().__init__(learning_rate, batch_size, **training)
        if teacher.layout.n_observation_rows > 1:
            raise ValueError("the teacher plans from several observations, a student sees one")
        self.teacher = teacher
        self.observation_space = flat_box(teacher.observation_space, "observation")
        self.action_space = flat_box(teacher.action_space, "action")
        if not self.action_space.is_bounded():
            raise ValueError(f"the actions of a student are scaled to their bounds, the space is {self.action_space}")
        self.round = 0
        self._labels = self._no_labels()

    # ------------------------------------------------------------------ hooks

    @property
    @abstractmethod
    def student(self) -> Predictor:
        """What has been distilled so far (averaged weights), which acts in rounds."""

    @abstractmethod
    def _prepare(self) -> None:
        """Compute what depends on all labels of now; called before every fit, also when it goes on."""

    @abstractmethod
    def _held_out_loss(self) -> float:
        """The loss of labels that are held out."""

    # ------------------------------------------------------------------ learning

    @property
    def labels(self) -> Mapping[str, Tensor]:
        """Labelled states: ``observations`` (n, obs_dim), ``actions`` (n, act_dim) in [-1, 1], ``held_out`` (n,)."""
        return dict(self._labels)

    @property
    def n_labels(self) -> int:
        """Labelled states so far."""
        return len(self._labels["observations"])

    @usual_torch()
    def learn(
        self,
        env: str | Callable[[], gym.Env] | TrajectoryDataset,
        total_timesteps: int = 6_000,
        callback: MaybeCallback = None,
        *,
        n_rounds: int = 3,
        visits: Visits | None = None,
        deterministic: bool = False,
        **options: Unpack[LearnOptions],
    ) -> Self:
        """
        Label what the teacher visits, fit the student, and repeat with what the student visits.

        A learner that was loaded from a checkpoint goes on where it was, bit for bit on one CPU thread.

        :param env: the id of an environment, or a function that makes one; or a dataset, of which states are labelled
            once
        :param total_timesteps: gradient steps of each fit
        :param callback: SB3 callback(s)
        :param n_rounds: of DAgger, after the first fit; none for a dataset
        :param visits: sizes of the collections; None for the defaults
        :param deterministic: label by the planner's deterministic plans, not by plans from fresh noise, whose mean the
            student learns
        :return: self
        :raises ValueError: for an environment with other spaces, or numbers out of range
        """
        check_options("learn", options, LearnOptions)
        sizes, steps = visits or Visits(), whole("total_timesteps", total_timesteps, 1)
        make = None if isinstance(env, TrajectoryDataset) else partial(_made, env)
        last = 0 if make is None else whole("n_rounds", n_rounds, 0)
        freq = min(options.get("eval_freq", 500), steps)
        while self.round <= last:
            if not self.num_timesteps:
                bar = bool(options.get("progress_bar", False))
                if make is None:
                    self._label_dataset(env, deterministic)  # type: ignore[arg-type]
                else:
                    self._visit(make, sizes, deterministic, bar)
            self._prepare()
            self._learned = (~self._labels["held_out"]).nonzero().flatten()
            watch = self._watch(self._held_out_loss, steps, {**options, "eval_freq": freq})
            begins = {"reset_num_timesteps": not self.num_timesteps}
            settings: Any = {**options, **begins}
            self._learn(steps - self.num_timesteps, callback, settings, watch)
            self.round, self.num_timesteps = self.round + 1, 0
            if (path := options.get("checkpoint_path")) is not None:
                self.save(path)
        return self

    # ------------------------------------------------------------------ labels

    def _visit(self, make: Callable[[], gym.Env], sizes: Visits, deterministic: bool, progress_bar: bool) -> None:
        """Let teacher and student act, and the teacher label every state by a plan from there."""
        n_steps = sizes.round_steps if self.round else sizes.first_steps
        seed = (0 if self.seed is None else self.seed) + 10_000 * self.round
        by_student = np.arange(sizes.n_envs) < round(sizes.student_share * sizes.n_envs) * bool(self.round)
        student = self.student
        self.teacher.set_random_seed(seed)
        envs = DummyVecEnv([make] * sizes.n_envs)
        seen, labels = [], []
        try:
            check_spaces(self.observation_space, self.action_space, envs.observation_space, envs.action_space)
            envs.seed(seed)
            observations: Any = envs.reset()
            with deferred_signals() as received, tqdm(total=n_steps, leave=False, disable=not progress_bar) as bar:
                for _ in range(n_steps):
                    planned, _ = self.teacher.predict(observations, deterministic=deterministic)
                    seen.append(np.array(observations, dtype=np.float32))
                    labels.append(planned)
                    acted, _ = student.predict(observations, deterministic=deterministic)
                    observations, *_ = envs.step(np.where(by_student[:, None], acted, planned))
                    bar.update()
                    if received:
                        raise TrainingInterrupted(received[0])
        finally:
            envs.close()
        held_out = np.arange(sizes.n_envs) % 16 == 15 if sizes.n_envs >= 16 else np.arange(sizes.n_envs) == 0
        self._add(np.concatenate(seen), np.concatenate(labels), np.tile(held_out, n_steps))

    def _label_dataset(self, dataset: TrajectoryDataset, deterministic: bool) -> None:
        """States of a dataset, evenly spread, with the teacher's plans from there."""
        chosen = np.unique(np.linspace(0, len(dataset) - 1, min(N_LABELS, len(dataset))).astype(int))
        observations = dataset.observations[chosen]
        self.teacher.set_random_seed(0 if self.seed is None else self.seed)
        parts = np.array_split(observations, max(len(observations) // 512, 1))
        labels = np.concatenate([self.teacher.predict(part, deterministic=deterministic)[0] for part in parts])
        blocks = np.arange(len(chosen)) * 16 // len(chosen)  # one of 16 stretches is held out
        self._add(observations, labels, blocks == blocks.max())

    def _add(self, observations: Array, actions: Array, held_out: Array) -> None:
        low, high = (torch.as_tensor(bound) for bound in (self.action_space.low, self.action_space.high))
        added = {
            "observations": torch.as_tensor(observations, dtype=torch.float32),
            "actions": 2 * (torch.as_tensor(actions, dtype=torch.float32) - low) / (high - low) - 1,
            "held_out": torch.as_tensor(held_out),
        }
        self._labels = {name: torch.cat([self._labels[name], added[name]]) for name in GROUPS}

    def _no_labels(self) -> dict[str, Tensor]:
        return {
            "observations": torch.zeros(0, self.observation_space.shape[0]),
            "actions": torch.zeros(0, self.action_space.shape[0]),
            "held_out": torch.zeros(0, dtype=torch.bool),
        }

    # ------------------------------------------------------------------ persistence

    def _config(self) -> dict[str, Any]:
        return {
            "observation_space": box_to_dict(self.observation_space),
            "action_space": box_to_dict(self.action_space),
            self.argument: getattr(self, self.argument),
            "round": self.round,
            "training": self._training_config(),
        }

    def _extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"labels": self._labels}

    @classmethod
    def _from_config(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        teacher: Planner | None = None,
    ) -> Self:
        own: Any = {cls.argument: config[cls.argument], **training_arguments(config)}
        learner = cls(needed(teacher), **own)
        for name in ("observation", "action"):
            mine, other = box_from_dict(config[f"{name}_space"]), getattr(learner, f"{name}_space")
            if mine != other:
                raise ValueError(f"the {name} space of the distillation is {mine}, the teacher's {other}")
        return learner

    def _restore(self, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        super()._restore(config, tensors)
        labels = tensors["labels"]
        for name, wanted in self._no_labels().items():
            found = labels[name]
            alike = found.shape[1:] == wanted.shape[1:] and found.dtype == wanted.dtype
            if not alike or len(found) != len(labels["observations"]):
                raise ValueError(f"labels hold {name} of {found.dtype} {tuple(found.shape)}")
        self.round, self._labels = int(config["round"]), {name: labels[name] for name in GROUPS}


def needed(teacher: Planner | None) -> Planner:
    """
    The teacher, which no archive of a distillation holds.

    :raises ValueError: when it was not given
    """
    if teacher is None:
        raise ValueError("a distillation needs its teacher: load(path, teacher=planner)")
    return teacher


def _made(env: str | Callable[[], gym.Env]) -> Any:
    return flat_environment(env if isinstance(env, str) else env())
