"""The baseline: a noise-conditioned classifier of expert against base events, used as a reward in the place of ρ.

At its optimum the logit is log p_expert,t(x_t) - log p_base,t(x_t), the same ρ; but a classifier is free to separate
the two by anything that differs, and saturates where it is sure (the paper's comparison in locomotion).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from rrpolicy.common.arguments import whole
from rrpolicy.common.computing import Batch, Values
from rrpolicy.common.held_out import N_HELD_OUT
from rrpolicy.common.learner import Learner, LearningRate, MaybeCallback
from rrpolicy.common.noise import randint, send
from rrpolicy.common.options import LearnOptions, TrainingOptions, check_options
from rrpolicy.common.persistence import training_arguments
from rrpolicy.common.schema import native
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible, check_models, with_device_of
from rrpolicy.rewards.events import Events, as_events, own_samples
from rrpolicy.rewards.heads import archived_window, restored_window
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.targets import noised


class DiscriminatorReward(Learner[RelativeReward]):
    """
    Learns the logit of "expert, not base" for noised events; its ``reward`` is a `RelativeReward`.

    Further keywords are those of `TrainingOptions`.

    :param base: the weak model: gives the space, and the negatives when no data are given
    :param expert: the strong model: gives the positives when no data are given
    :param learning_rate: peak learning rate or SB3 schedule
    :param batch_size: events per gradient step, half of each kind
    :param window_kwargs: arguments of the network, the same as the window head's
    :raises ValueError: when the two models do not share their space, naming the field
    """

    kind: ClassVar[str] = "discriminator"

    @usual_torch()
    def __init__(
        self,
        base: ScoreModel,
        expert: ScoreModel,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 128,
        window_kwargs: Mapping[str, Any] | None = None,
        **training: Unpack[TrainingOptions],
    ) -> None:
        check_options("DiscriminatorReward", training, TrainingOptions)
        check_models(base, expert)
        check_compatible(base, expert)
        super().__init__(learning_rate, batch_size, **with_device_of(base, training))
        if batch_size < 2:
            raise ValueError(f"batch_size is {batch_size}, it must be at least 2, one event of each kind")
        self.base = base
        self.expert = expert
        self.window_kwargs: dict[str, Any] = native(window_kwargs or {})
        self._setup_model()

    def _setup_model(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if self.seed is None else self.seed)
            self._start_from(
                RelativeReward.for_model(
                    self.base, heads=("window",), window_kwargs=self.window_kwargs, source=self.kind
                )
            )

    @property
    def reward(self) -> RelativeReward:
        """The logit as a reward (averaged weights)."""
        return self.averaged

    @usual_torch()
    def learn(
        self,
        data: Sequence[TrajectoryDataset] | Sequence[Tensor] | None = None,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        *,
        eval_dataset: Sequence[TrajectoryDataset] | Sequence[Tensor] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Self:
        """
        Fit the classifier; one timestep is one gradient step. Further keywords are those of `LearnOptions`.

        :param data: [base data, expert data], datasets or clean normalised events (N, *event_shape); None for samples
            of the two models
        :param total_timesteps: gradient steps to take
        :param callback: SB3 callback(s)
        :param eval_dataset: [base data, expert data] that are held out, of the kinds of ``data``;
            ``dataset.split(0.1)`` divides by episode
        :return: self
        :raises TypeError: when called without ``total_timesteps``
        :raises ValueError: unless there are exactly two sources
        """
        check_options("learn", options, LearnOptions)
        if total_timesteps is None:
            raise TypeError("learn() lacks total_timesteps; call it as learn([dataset, expert_dataset], 3_000)")
        total_timesteps = whole("total_timesteps", total_timesteps, 0)
        loss = None if eval_dataset is None else self._held_out_loss(eval_dataset)
        watch = self._watch(loss, total_timesteps, options)
        self._sources = self._two_sources(data)
        self._learn(total_timesteps, callback, options, watch)
        return self

    def _held_out_loss(self, data: Any) -> Callable[[], float]:
        sources = self._two_sources(data)

        def loss() -> float:
            with self._judged():
                return float(self._loss_of(self._drawn(sources, N_HELD_OUT // 2))[0])

        return loss

    def _two_sources(self, data: Any) -> list[Events]:
        if data is None:
            generator = torch.Generator().manual_seed(0 if self.seed is None else self.seed)
            data = [own_samples(model, generator) for model in (self.base, self.expert)]
        if not isinstance(data, Sequence) or len(data) != 2:
            raise ValueError("data must hold two sources, [base data, expert data], or be None")
        return [as_events(source, self.base, self.expert, self.seed) for source in data]

    def _draw(self) -> Batch:
        return self._drawn(self._sources, self.batch_size // 2)

    def _drawn(self, sources: Sequence[Events], half: int) -> Batch:
        """Noised events, their levels, and whether each is the expert's."""
        x0 = send(torch.cat([source.draw(half, self.generator) for source in sources]), self.device)
        t = randint(self.base.process.n_diffusion_steps, (len(x0),), self.generator, self.device)
        labels = torch.arange(len(x0), device=self.device).ge(half).float()
        return noised(self.base, x0, t, self.generator), t, labels

    def _loss_of(self, batch: Batch) -> tuple[Tensor, Values]:
        x_t, t, labels = batch
        logits = self.module(x_t, t).float()
        accuracy = ((logits > 0) == labels.bool()).float().mean()
        return nn.functional.binary_cross_entropy_with_logits(logits, labels), {"accuracy": accuracy}

    def _take_env(self, env: Any) -> None:
        self.averaged.check_environment(env)

    def _config(self) -> dict[str, Any]:
        return {
            "window_kwargs": archived_window(self.window_kwargs),
            "training": self._training_config(),
        }

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> RelativeReward | None:
        base, window_kwargs = kwargs.get("base"), restored_window(config["window_kwargs"], kwargs.get("network"))
        if base is None:
            return None
        return RelativeReward.for_model(base, heads=("window",), window_kwargs=window_kwargs, source=cls.kind)

    @classmethod
    def _from_config(
        cls,
        config: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Tensor]],
        base: ScoreModel | None = None,
        expert: ScoreModel | None = None,
        network: type[nn.Module] | None = None,
    ) -> Self:
        if base is None or expert is None:
            raise ValueError("a discriminator needs its two models: load(path, base=base, expert=expert)")
        check_models(base, expert)
        window_kwargs = restored_window(config["window_kwargs"], network)
        return cls(base, expert, window_kwargs=window_kwargs, **training_arguments(config))
