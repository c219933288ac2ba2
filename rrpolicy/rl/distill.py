"""A planner distilled into a policy without planning: an MLP that acts in a fraction of a millisecond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import Actor
from torch import Tensor, nn

from rrpolicy.agents.planning import Planner
from rrpolicy.common.arguments import whole
from rrpolicy.common.boxes import box_from_dict
from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.device import CPU
from rrpolicy.common.learner import LearningRate
from rrpolicy.common.noise import randint, send
from rrpolicy.common.options import TrainingOptions
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.rl.dagger import Dagger
from rrpolicy.rl.policies import Sb3Agent

LEAST_STD = 1e-3  # added to the spread of observations
NAME = "Distillation"  # the algorithm, in archives of students


class Student(nn.Module):
    """
    An actor of Stable-Baselines3 that sees standardised observations.

    :param observation_space: a flat Box
    :param action_space: a flat Box with finite bounds, to which the actor's tanh is scaled
    :param net_arch: hidden widths
    """

    mean: Tensor
    std: Tensor

    def __init__(self, observation_space: spaces.Box, action_space: spaces.Box, net_arch: Sequence[int]) -> None:
        super().__init__()
        width = observation_space.shape[0]
        self.actor = _actor(observation_space, action_space, net_arch)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, observations: Tensor) -> Tensor:
        """(B, obs_dim) in environment units -> actions (B, act_dim) in [-1, 1]."""
        return self.actor.mu((observations - self.mean) / self.std)

    def policy(self) -> Sb3Agent:
        """The actor alone, the standardisation in its first layer."""
        own = self.actor
        actor = _actor(own.observation_space, own.action_space, own.net_arch)
        actor.load_state_dict(own.state_dict())
        first = next(layer for layer in actor.mu if isinstance(layer, nn.Linear))
        with torch.no_grad():
            first.weight.div_(self.std)
            first.bias.sub_(first.weight @ self.mean)
        return Sb3Agent(actor.to(self.mean.device), NAME)


def _actor(observation_space: Any, action_space: Any, net_arch: Sequence[int]) -> Actor:
    width = observation_space.shape[0]
    extractor = FlattenExtractor(observation_space)
    actor = Actor(observation_space, action_space, list(net_arch), extractor, width, activation_fn=nn.SiLU)
    actor.set_training_mode(False)
    return actor


class Distillation(Dagger[Student]):
    """
    Learns a policy without planning from a planner's actions; further keywords are those of `TrainingOptions`.

    :param teacher: the planner, such as a `GuidedPlanner`; ``planner.compile()`` labels several times faster
    :param learning_rate: peak learning rate or SB3 schedule of each round
    :param batch_size: labelled states per gradient step
    :param net_arch: hidden widths of the student
    :raises ValueError: for a teacher that plans from several observations, or actions without finite bounds
    """

    kind: ClassVar[str] = "distillation"
    argument: ClassVar[str] = "net_arch"

    @usual_torch()
    def __init__(
        self,
        teacher: Planner,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 512,
        net_arch: Sequence[int] = (256, 256),
        **training: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(teacher, learning_rate, batch_size, **training)
        self.net_arch = [whole("net_arch", width, 1) for width in net_arch]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            self._start_from(Student(self.observation_space, self.action_space, self.net_arch))

    @property
    def student(self) -> Sb3Agent:
        """The policy (averaged weights), which `rl.save_policy` keeps."""
        return self.averaged.policy()

    # ------------------------------------------------------------------ learning

    def _prepare(self) -> None:
        seen = self._labels["observations"]
        for module in (self.module, self.averaged):  # the first layer's inputs change their units with the data
            module.mean.copy_(seen.mean(0))
            module.std.copy_(seen.std(0) + LEAST_STD)

    def _draw(self) -> Batch:
        return self._rows(self._learned[randint(len(self._learned), (self.batch_size,), self.generator, CPU)])

    def _rows(self, rows: Tensor) -> Batch:
        return tuple(send(self._labels[name][rows], self.device) for name in ("observations", "actions"))

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        observations, actions = batch
        return nn.functional.mse_loss(self.module(observations).float(), actions), {}

    def _held_out_loss(self) -> float:
        with self._judged():
            return float(self._loss_of(self._rows(self._labels["held_out"].nonzero().flatten()))[0])

    # ------------------------------------------------------------------ persistence

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> Student:
        seen, acted = (box_from_dict(config[f"{name}_space"]) for name in ("observation", "action"))
        return Student(seen, acted, config["net_arch"])
