"""The members of a generative model that the library uses.

A `ScoreModel` predicts the noise in x_t; agents, image models and the analytic mixtures of `diffusion.analytic` are
all score models, and reward extraction takes any two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rrpolicy.common.device import device_of
from rrpolicy.common.options import TrainingOptions
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.process import DiffusionProcess

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, *event_shape), t (B,) int64) -> predicted noise (B, *event_shape)."""


@runtime_checkable
class ScoreModel(Protocol):
    """
    A noise-predicting model of events of one shape.

    These four members are needed. Seven more are optional; a model leaves out those that do not apply, and only the
    functions named here read them:

    ============================  =========================================================  =======================
    optional member               what it is                                                 read by
    ============================  =========================================================  =======================
    ``pinned``                    bool tensor ``event_shape``: True for entries that arrive  :func:`pinned_mask`
                                  clean in every x_t and carry neither noise nor gradient
    ``sample_pinned(n, gen)``     ``(n, *event_shape)``, pinned entries as they occur        :func:`sampled_pinned`
    ``device``                    where it computes; the CPU where it does not say           ``common.device``
    ``clip``                      bound of clean entries, such as pixels, to which samplers  :func:`clip_of`
                                  clip their estimates; None for none
    ``layout``                    `TrajectoryLayout` of events that are windows              :func:`layout_of`
    ``normalizer``                `Normalizer` from environment units to events              :func:`normalizer_of`
    ``unet``                      U-Net of ``diffusers`` from whose weights a reward with    ``unet_encoder.``
                                  the network ``"unet-encoder"`` starts                      ``config_of_model``
    ============================  =========================================================  =======================
    """

    @property
    def process(self) -> DiffusionProcess:
        """Noise levels."""
        ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event."""
        ...

    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, *event_shape) for ``x_t`` (B, *event_shape) at levels ``t`` (B,) int64."""
        ...

    def fingerprint(self) -> str:
        """Equal for two models that share normaliser, layout, horizon and schedule."""
        ...


def pinned_mask(model: ScoreModel) -> Tensor:
    """The model's pinned entries, bool ``event_shape``; all False for a model without conditioning."""
    pinned: Tensor | None = getattr(model, "pinned", None)
    if pinned is None:
        return torch.zeros(tuple(model.event_shape), dtype=torch.bool, device=device_of(model))
    return pinned


@lru_cache(maxsize=64)
def pinned_on(layout: TrajectoryLayout, device: torch.device) -> Tensor:
    """The mask ``layout.pinned`` (H, D) as a tensor on a device, made once for each."""
    with torch.inference_mode(False):  # gradients may use it later
        return torch.tensor(layout.pinned, device=device)


def with_device_of(model: ScoreModel, training: TrainingOptions) -> TrainingOptions:
    """Options of a learner that computes where ``model`` does, if both leave it open where that is."""
    own: torch.device | None = getattr(model, "device", None)
    return training if own is None or training.get("device", "auto") != "auto" else {**training, "device": own}


def sampled_pinned(model: ScoreModel, n: int, generator: torch.Generator) -> Tensor:
    """
    Events (n, *event_shape) whose pinned entries are as they occur.

    :raises ValueError: for a model that cannot sample them
    """
    sample_pinned = getattr(model, "sample_pinned", None)
    if sample_pinned is None:
        raise ValueError("the model has pinned entries but no sample_pinned(n, generator); pass data instead")
    return sample_pinned(n, generator)


def clip_of(model: ScoreModel) -> float | None:
    """The bound of the model's clean entries; None for a model without one."""
    return getattr(model, "clip", None)


def layout_of(model: ScoreModel) -> TrajectoryLayout | None:
    """What the model's windows hold; None for events that are not windows."""
    return getattr(model, "layout", None)


def normalizer_of(model: ScoreModel) -> Normalizer | None:
    """
    The model's normaliser; None for a model whose events have no other units.

    :raises ValueError: for an agent that has none yet
    """
    return getattr(model, "normalizer", None)


def check_models(base: object, expert: object) -> None:
    """
    Check that two arguments are score models.

    :raises ValueError: for something that is no score model, naming the argument
    """
    for name, model in (("base", base), ("expert", expert)):
        if not isinstance(model, ScoreModel):
            raise ValueError(f"{name} is a {type(model).__name__}, wanted a ScoreModel such as a DiffusionAgent")


def check_compatible(base: ScoreModel, expert: ScoreModel) -> None:
    """
    Refuse two models whose scores cannot be subtracted.

    :raises ValueError: naming the field (event shape, process or a part of the fingerprint) and both values
    """
    for field, mine, other in (
        ("event_shape", tuple(base.event_shape), tuple(expert.event_shape)),
        ("process.n_diffusion_steps", base.process.n_diffusion_steps, expert.process.n_diffusion_steps),
    ):
        if mine != other:
            raise ValueError(f"base and expert differ in {field}: base has {mine}, expert has {other}")
    if not base.process.same_levels(expert.process):
        levels = f"base has {base.process.schedule}, expert has {expert.process.schedule}"
        raise ValueError(f"base and expert differ in process.schedule: {levels}")
    places = [getattr(model, "device", None) for model in (base, expert)]
    if None not in places and places[0] != places[1]:
        where = f"base is on {places[0]}, expert on {places[1]}"
        raise ValueError(f"base and expert are on two devices: {where}; move one, such as expert.to(base.device)")
    mine_parts, other_parts = (_fingerprint_parts(model) for model in (base, expert))
    differing = [
        " against ".join(
            f"{name}={parts[name]}" if name in parts else f"no {name}" for parts in (mine_parts, other_parts)
        )
        for name in dict.fromkeys((*mine_parts, *other_parts))
        if mine_parts.get(name) != other_parts.get(name)
    ]
    if differing:
        raise ValueError("base and expert differ in their fingerprints: " + "; ".join(differing))


def _fingerprint_parts(model: ScoreModel) -> dict[str, str]:
    """Fields of a fingerprint but the noise levels, which have a name in one model and are a table in another."""
    fields = dict(part.partition("=")[::2] for part in model.fingerprint().split(";"))
    return {name: value for name, value in fields.items() if name not in ("schedule", "process")}
