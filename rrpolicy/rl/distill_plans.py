"""A steered planner distilled into a diffusion agent, whose plans need no gradient and may take fewer steps.

Progressive distillation (Salimans & Ho 2022, algorithm 2), from all of the teacher's denoising steps to those of the
student at once, along plans that begin in the states that teacher and student visit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.agents.guided_planner import GuidedPlanner
from rrpolicy.agents.planning import CHUNK, Planner
from rrpolicy.agents.policy import DiffusionPolicy
from rrpolicy.common.arguments import whole
from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.device import CPU
from rrpolicy.common.learner import LearningRate
from rrpolicy.common.noise import generator, randint, send
from rrpolicy.common.options import TrainingOptions
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rl.dagger import Dagger, needed


class PlanDistillation(Dagger[DiffusionPolicy]):
    """
    Learns a diffusion agent that plans like a steered planner without its reward; further keywords are those of
    `TrainingOptions`.

    With the same noise the student makes the teacher's plan, as well as it has learned.

    :param teacher: a `GuidedPlanner` of a `DiffusionAgent`, or such an agent itself; its network is the student's start
    :param n_sampling_steps: denoising steps of the student; its noise levels must be among the teacher's. None for as
        many as the teacher's
    :param learning_rate: peak learning rate or SB3 schedule of each round
    :param batch_size: plans per gradient step, each at one level
    :raises ValueError: for a teacher with another base, of several candidates or with a warm start, which a denoiser
        cannot learn, and for a number of steps whose levels the teacher does not visit
    """

    kind: ClassVar[str] = "plan-distillation"
    argument: ClassVar[str] = "n_sampling_steps"

    @usual_torch()
    def __init__(
        self,
        teacher: Planner,
        n_sampling_steps: int | None = None,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 256,
        **training: Unpack[TrainingOptions],
    ) -> None:
        self._agent = _agent_of(teacher)
        super().__init__(teacher, learning_rate, batch_size, **training)
        steps = teacher.planning.n_sampling_steps
        self.n_sampling_steps = steps if n_sampling_steps is None else whole("n_sampling_steps", n_sampling_steps, 1)
        self._steps = _shared_levels(teacher, self.n_sampling_steps)
        self._paths = torch.zeros(0, len(self._steps) + 1, *teacher.layout.event_shape)
        self._start_from(copy.deepcopy(self._agent.averaged).requires_grad_(True))

    @property
    def student(self) -> DiffusionAgent:
        """The agent (averaged weights): a `DiffusionAgent` as any other, which plans by DDIM."""
        agent = copy.copy(self._agent)
        planning = self.teacher.planning
        # The clean estimates that lead along the teacher's path may lie beyond its bound, the path itself does not.
        agent.planning = replace(planning, n_sampling_steps=self.n_sampling_steps, sampler="ddim", clip=None)
        config, tensors = agent._config(), agent._extra_tensors()
        own = None if isinstance(agent.policy_class, str) else agent.policy_class
        student = DiffusionAgent._from_config(config, tensors, own).to(self.device)
        weights = self.averaged.state_dict()
        student.set_parameters({"policy": weights, "averaged": weights}, exact_match=False)
        return student

    # ------------------------------------------------------------------ learning

    @torch.no_grad()
    def _prepare(self) -> None:
        """The teacher's plans from all labelled states: x_t at the student's levels, and the plans themselves."""
        noise = generator((0 if self.seed is None else self.seed) + self.round)
        parts = []
        for some in self._labels["observations"].split(CHUNK):
            visited: dict[int, Tensor] = {}
            pinned = self.teacher.pinned_at(some[:, None].numpy())
            plans = self.teacher.sample_at(pinned, noise, lambda x_t, t, at=visited: at.update({int(t[0]): x_t}))  # type: ignore[misc]
            parts.append(torch.stack([*(visited[level] for level in self._steps), plans], dim=1).to(CPU))
        self._paths = torch.cat(parts)

    def _draw(self) -> Batch:
        rows = self._learned[randint(len(self._learned), (self.batch_size,), self.generator, CPU)]
        return self._steps_of(rows, randint(len(self._steps), (len(rows),), self.generator, CPU))

    def _steps_of(self, rows: Tensor, step: Tensor) -> Batch:
        """Noisy plans, their levels, and the clean plans that lead to where the teacher goes."""
        levels = torch.tensor(self._steps)
        x_t, x_s, t = self._paths[rows, step], self._paths[rows, step + 1], levels[step]
        s = levels[(step + 1).clamp(max=len(levels) - 1)]
        last = (step + 1 == len(levels))[:, None, None]
        process = self._agent.process
        batch = x_t, t, torch.where(last, x_s, clean_target(process, x_t, t, x_s, s))
        return tuple(send(one, self.device) for one in batch)

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        x_t, t, clean = batch
        process = self._agent.process
        target = process.target(clean, t, process.eps_from_x0(x_t, t, clean))
        weight = self.module.loss_weight * process.loss_weight(t)[:, None, None]
        return (weight * (self.module.output(x_t, t).float() - target) ** 2).mean(), {}

    def _held_out_loss(self) -> float:
        rows = self._labels["held_out"].nonzero().flatten()
        with self._judged():
            losses = [
                self._loss_of(self._steps_of(rows, torch.full_like(rows, step)))[0] for step in range(len(self._steps))
            ]
        return float(torch.stack(losses).mean())

    # ------------------------------------------------------------------ persistence

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> DiffusionPolicy:
        return copy.deepcopy(_agent_of(needed(kwargs.get("teacher"))).averaged)


def clean_target(process: DiffusionProcess, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """
    The clean estimate with which one step of DDIM goes from x_t to x_s (Salimans & Ho 2022, algorithm 2).

    :param process: noise levels
    :param x_t: (B, *event_shape) at levels ``t`` (B,)
    :param x_s: (B, *event_shape) at cleaner levels ``s`` (B,)
    """
    alpha_t, sigma_t = process.levels(x_t, t)
    alpha_s, sigma_s = process.levels(x_s, s)
    ratio = sigma_s / sigma_t
    return (x_s - ratio * x_t) / (alpha_s - ratio * alpha_t)


def _agent_of(teacher: Planner) -> DiffusionAgent:
    """The diffusion agent whose denoiser the teacher steers."""
    agent = teacher.agent if isinstance(teacher, GuidedPlanner) else teacher
    if not isinstance(agent, DiffusionAgent):
        raise ValueError(f"the teacher plans by a {type(agent).__name__}, wanted a DiffusionAgent, steered or not")
    if teacher.planning.n_candidates > 1 or teacher.planning.warm_start is not None:
        raise ValueError(
            "the teacher chooses among candidates or begins at its last plan, which a denoiser cannot learn: distill "
            "planner.with_planning(n_candidates=1, warm_start=None)"
        )
    return agent


def _shared_levels(teacher: Planner, n_sampling_steps: int) -> list[int]:
    """Noise levels of the student, which the teacher visits as well."""
    process, n_most = teacher.process, teacher.planning.n_sampling_steps
    visited = process.timesteps(n_most)
    known = [n for n in range(1, n_most + 1) if set(process.timesteps(n)) <= set(visited)]
    if n_sampling_steps not in known:
        raise ValueError(
            f"n_sampling_steps is {n_sampling_steps}, it must be one of {known}, whose noise levels are among those of "
            f"the teacher's {n_most}"
        )
    return process.timesteps(n_sampling_steps)
