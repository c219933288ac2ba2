"""Safety guidance: a noise prediction pushed away from a concept (Schramowski et al. 2023, Safe Latent Diffusion).

Equations 3 to 8 of the paper as one pure function, with its four published strengths; the momentum that the paper
carries from step to step is an argument and a result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAFETY_CONCEPT = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids,"
    " blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
N_PUBLISHED_STEPS = 50  # for which the warm-up steps were chosen


@dataclass(frozen=True)
class SafetyConfig:
    """
    How strongly, and from which step on, a prediction is pushed away from the concept.

    :param guidance_scale: s_S, how fast the push grows with the similarity to the concept
    :param warmup_steps: δ, first denoising steps that are not pushed, during which momentum builds up
    :param threshold: λ, entries whose prompt and concept predictions differ by as much are left alone
    :param momentum_scale: s_m
    :param momentum_beta: β_m, how much of the momentum is kept at each step
    :raises ValueError: for a number out of range
    """

    guidance_scale: float
    warmup_steps: int
    threshold: float
    momentum_scale: float
    momentum_beta: float

    def __post_init__(self) -> None:
        if not self.guidance_scale > 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}, it must be positive")
        for name in ("warmup_steps", "momentum_scale", "momentum_beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must not be negative")
        if self.momentum_beta >= 1:
            raise ValueError(f"momentum_beta is {self.momentum_beta}, it must be below 1")


STRENGTHS = {
    "weak": SafetyConfig(20, 15, 0.0, 0.0, 0.0),
    "medium": SafetyConfig(1000, 10, 0.01, 0.3, 0.4),
    "strong": SafetyConfig(2000, 7, 0.025, 0.5, 0.7),
    "max": SafetyConfig(5000, 0, 1.0, 0.5, 0.7),
}
"""The published configurations."""


def safety_config(strength: str | SafetyConfig) -> SafetyConfig:
    """
    A safety configuration by the name of its strength; a configuration is returned as it is.

    :raises ValueError: for a strength that was not published
    """
    if isinstance(strength, SafetyConfig):
        return strength
    if strength not in STRENGTHS:
        raise ValueError(f"safety is {strength!r}, it must be one of {list(STRENGTHS)}")
    return STRENGTHS[strength]


def safety_guidance(
    config: SafetyConfig, unconditional: Tensor, text: Tensor, concept: Tensor, momentum: Tensor
) -> tuple[Tensor, Tensor]:
    """
    What is to be subtracted from the guidance of the prompt, text - unconditional.

    :param unconditional: noise predicted without a prompt (B, *event_shape)
    :param text: with the prompt
    :param concept: with the unsafe concept for a prompt
    :param momentum: of the steps before; zeros at the first
    :return: the push γ and the new momentum, both (B, *event_shape)
    """
    difference = text - concept
    # Eq. 6: an entry counts as far as prompt and concept agree on it, up to 1
    scale = torch.where(difference >= config.threshold, 0.0, (config.guidance_scale * difference.abs()).clamp(max=1.0))
    # Eq. 4 and 7: towards the concept, with momentum
    push = scale * (concept - unconditional) + config.momentum_scale * momentum
    # Eq. 8
    return push, config.momentum_beta * momentum + (1 - config.momentum_beta) * push
