"""What the library needs to know of a generative model, and nothing more.

A `ScoreModel` predicts the noise in x_t; agents, image models and the analytic mixtures of `diffusion.analytic` are
all score models, and reward extraction takes any two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rrpolicy.diffusion.process import DiffusionProcess

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, *event_shape), t (B,) int64) -> predicted noise (B, *event_shape)."""


@runtime_checkable
class ScoreModel(Protocol):
    """
    A noise-predicting model of events of one shape.

    A model with conditioned entries also has ``pinned``, a bool tensor ``event_shape``: entries that are True arrive
    clean in every x_t and carry neither noise nor gradient. A model whose clean entries are bounded, such as pixels,
    may have ``clip``, the bound, to which samplers clip their estimates of the clean event.
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
    return torch.zeros(tuple(model.event_shape), dtype=torch.bool, device="cpu") if pinned is None else pinned


def check_models(base: object, expert: object) -> None:
    """:raises ValueError: for something that is no score model, naming the argument"""
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
        ("process.schedule", base.process.schedule, expert.process.schedule),
    ):
        if mine != other:
            raise ValueError(f"base and expert differ in {field}: base has {mine}, expert has {other}")
    if base.fingerprint() != expert.fingerprint():
        mine_parts, other_parts = (
            dict(part.partition("=")[::2] for part in model.fingerprint().split(";")) for model in (base, expert)
        )
        names = dict.fromkeys((*mine_parts, *other_parts))
        differing = [
            " against ".join(
                f"{name}={parts[name]}" if name in parts else f"no {name}" for parts in (mine_parts, other_parts)
            )
            for name in names
            if mine_parts.get(name) != other_parts.get(name)
        ]
        raise ValueError(
            "base and expert differ in their fingerprints: "
            + ("; ".join(differing) or f"{base.fingerprint()} against {expert.fingerprint()}")
        )
