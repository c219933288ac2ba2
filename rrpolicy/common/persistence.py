"""Learners as archives: what is kept of one, and how it is rebuilt, so that training goes on exactly."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from rrpolicy.common.archive import read_archive, write_archive
from rrpolicy.common.arguments import flag
from rrpolicy.common.device import CPU, resolve
from rrpolicy.common.held_out import GROUPS, BestWeights
from rrpolicy.common.noise import moved
from rrpolicy.common.publish import Published
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.weights import (
    check_alike,
    check_weights,
    moments,
    set_generator_state,
    set_moments,
    stored_weights,
)

LearningRate = float | Callable[[float], float]
Module = TypeVar("Module", bound=nn.Module)


class Archived(Published, ABC, Generic[Module]):
    """Base of a `Learner`: saving and loading."""

    kind: ClassVar[str]

    module: Module
    averaged: Module
    generator: torch.Generator
    learning_rate: LearningRate
    device: torch.device
    num_timesteps: int
    seed: int | None
    fast_noise: bool
    _optimizer: torch.optim.Optimizer | None
    _total_timesteps: int
    _best: BestWeights
    _tensorboard_run: str | None

    @property
    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """Of the trained network."""

    # ------------------------------------------------------------------ hooks

    @abstractmethod
    def _config(self) -> dict[str, Any]:
        """Everything but tensors that :meth:`load` needs."""

    @classmethod
    @abstractmethod
    def _from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Self:
        """An untrained learner with the architecture of ``config``."""

    @classmethod
    def _module_of(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], **kwargs: Any
    ) -> nn.Module | None:
        """The network of ``config``, built without memory by :meth:`load` to be compared; None is not compared."""

    def _extra_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Groups of tensors to save beside the weights."""
        return {}

    # ------------------------------------------------------------------ persistence

    def save(
        self,
        path: str | Path,
        *,
        resumable: bool = True,
        half: bool = False,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Write one archive (no pickle) that :meth:`load` reads.

        :param path: file; ``.zip`` is added when missing
        :param resumable: keep optimiser, random state and raw weights, so that training can go on exactly
        :param half: store the averaged weights in half precision (for sharing; not for resuming)
        :param card: facts about the model, kept as ``card.json``
        :raises ValueError: for ``half`` together with ``resumable``
        """
        if flag("half", half) and flag("resumable", resumable):
            raise ValueError("half=True stores rounded weights, pass resumable=False with it")
        tensors = {**self._extra_tensors(), "averaged": stored_weights(self.averaged, half)}
        if resumable:
            tensors["weights"] = self.module.state_dict()
            tensors["optimizer"] = moments(self.optimizer)
            tensors["random"] = {"generator": self.generator.get_state(), **self._random_state()}
            tensors |= self._best.tensors()
        write_archive(path, self.kind, self._archive_config(), tensors, {**self._card(), **(card or {})})

    def _save_to_share(self, path: Path, card: Mapping[str, Any] | None) -> None:
        self.save(path, resumable=False, card=card)

    def _card(self) -> dict[str, Any]:
        """Facts for the card that the object has itself; the caller's own come first."""
        return {}

    def _archive_config(self) -> dict[str, Any]:
        steps = {"num_timesteps": self.num_timesteps, "total_timesteps": self._total_timesteps}
        run = {} if self._tensorboard_run is None else {"tensorboard_run": self._tensorboard_run}
        return {**self._config(), **steps, **self._best.config(), **run}

    @classmethod
    @usual_torch()
    def load(cls, path: str | Path, env: Any = None, device: torch.device | str = "auto", **kwargs: Any) -> Self:
        """
        Read what :meth:`save` wrote.

        :param path: file, with or without ``.zip``
        :param env: an environment or its id, whose spaces must be those that it was made for; an agent acts in it from
            now on. Archives hold none
        :param device: where it computes from now on, see `common.device.resolve`
        :param kwargs: what an archive of this kind does not hold, such as the two models of an extractor, or the class
            of an own network
        :raises FileNotFoundError: when there is no such file
        :raises ValueError: when the archive is damaged, foreign, unsafe or of another kind, naming file and fault, and
            for another environment, naming both spaces
        :raises TypeError: for a keyword that there is not, naming it
        """
        place = None if device == "auto" else resolve(device)
        parameters = inspect.signature(cls._from_config).parameters.values()
        taken = ["env", "device", *(one.name for one in parameters if one.default is None)]
        unknown = sorted(set(kwargs) - set(taken))
        if unknown and not any(one.kind is one.VAR_KEYWORD for one in parameters):
            raise TypeError(f"load() of {cls.__name__} takes no {unknown[0]!r}, wanted some of {taken}")
        archive = read_archive(path, cls.kind)
        with archive.rebuilding():
            averaged = archive.tensors["averaged"]
            check_weights(partial(cls._module_of, archive.config, archive.tensors, **kwargs), averaged)
            for group in ("weights", *GROUPS):
                check_alike(archive.tensors.get(group, averaged), averaged)
            learner = cls._from_config(archive.config, archive.tensors, **kwargs)
            learner = learner if place is None else learner.to(place)
            learner._restore(archive.config, archive.tensors)
            if env is not None:
                learner._take_env(env)
        return learner

    def to(self, device: torch.device | str) -> Self:
        """
        Move the networks, and what the optimiser has gathered, to a device.

        :param device: see `common.device.resolve`
        :return: itself
        """
        self.device = resolve(device)
        self.module, self.averaged = self.module.to(self.device), self.averaged.to(self.device)
        if self._optimizer is not None:  # made anew, since its parameters may be other objects now
            gathered, self._optimizer = self._optimizer.state_dict(), None
            self.optimizer.load_state_dict(gathered)
        self._place_generator()
        return self

    @property
    def noise_device(self) -> torch.device:
        """Where noise is drawn: on the CPU, with ``fast_noise`` where the networks compute."""
        return self.device if self.fast_noise else CPU

    def _place_generator(self) -> None:
        """Draw where ``fast_noise`` says; on another kind of device from a seed of this step."""
        self.generator = moved(self.generator, self.noise_device, (self.seed or 0) + self.num_timesteps)

    def _take_env(self, env: Any) -> None:
        """
        Take the environment that :meth:`load` was given, if it fits.

        :raises ValueError: when it does not, naming both spaces
        """
        raise ValueError(f"env was given, and a {type(self).__name__} knows no environment: leave it out")

    def _restore(self, config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.num_timesteps = int(config["num_timesteps"])
        self._total_timesteps = int(config["total_timesteps"])
        if config["training"]["learning_rate"] is None:
            self.learning_rate = lost_schedule
        self._best = BestWeights.from_archive(config, tensors)
        self._tensorboard_run = config.get("tensorboard_run")
        self.averaged.load_state_dict(tensors["averaged"])
        self.module.load_state_dict(tensors.get("weights", tensors["averaged"]))
        if "optimizer" in tensors:
            set_moments(self.optimizer, tensors["optimizer"])
        if "random" in tensors:
            self._set_generator(tensors["random"]["generator"])
            self._set_random_state(tensors["random"])

    def _set_generator(self, state: Tensor) -> None:
        """With ``fast_noise`` the state may be of another kind of device: then draws go on from a seed of this step."""
        if self.fast_noise and state.shape != self.generator.get_state().shape:
            self.generator.manual_seed((self.seed or 0) + self.num_timesteps)
        else:
            set_generator_state(self.generator, state)

    def _random_state(self) -> dict[str, Tensor]:
        """Further random state that an exact resume needs."""
        return {}

    def _set_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`_random_state` returned."""


def training_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments in an archive; a schedule, which it does not hold, is left out."""
    return {name: value for name, value in config["training"].items() if value is not None}


def lost_schedule(progress: float) -> float:
    """The learning-rate schedule of a loaded learner whose own was a callable: always refused."""
    raise ValueError("learning_rate was a callable, which no archive holds: set it on what was loaded before learning")
