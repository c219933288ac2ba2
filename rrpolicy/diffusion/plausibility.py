"""The likelihood of clean events by a model's own denoising: no data, no environment, no other model.

Events that it denoises badly when they are hardly noised are unlike its data. The mean square error of predicted noise
is the model's likelihood bound up to weights and a constant (Ho et al. 2020, equations 12 and 14).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rrpolicy.common.device import CPU
from rrpolicy.common.noise import randn
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import Denoiser

LEVELS = (0.02, 0.04, 0.08)  # of T: clean enough for small faults to show


@lru_cache(maxsize=16)
@usual_torch()
def noise_probes(n_levels: int, event_shape: tuple[int, ...], seed: int = 0) -> tuple[tuple[int, Tensor], ...]:
    """
    Levels at which events are denoised, each with the noise of all of them.

    :param n_levels: noise levels of the process
    :param event_shape: shape of one event
    :param seed: of the noise
    :return: (level, noise (*event_shape), on the CPU) pairs, cleanest first
    """
    generator = torch.Generator().manual_seed(seed)
    levels = sorted({min(max(round(part * n_levels), 1), n_levels - 1) for part in LEVELS})
    return tuple((level, randn(event_shape, generator, CPU)) for level in levels)


@torch.no_grad()
def denoising_errors(
    denoiser: Denoiser, process: DiffusionProcess, candidates: Tensor, pinned: Tensor, seed: int = 0
) -> Tensor:
    """
    How badly clean events are denoised; the lower of two is the likelier.

    All of them get the same noise, with both signs, so that only they differ, and an error depends on its event alone.

    :param denoiser: (x_t, t) -> predicted noise
    :param process: noise levels
    :param candidates: clean events (n, *event_shape), normalised
    :param pinned: bool (*event_shape), entries that stay clean and do not count
    :param seed: of the noise
    :return: mean square errors (n,) over free entries and levels, in units of the noise
    """
    squares = torch.zeros(candidates.shape[0], device=candidates.device)
    probes = noise_probes(process.n_diffusion_steps, tuple(map(int, candidates.shape[1:])), seed)
    for level, drawn in probes:
        t = torch.full((candidates.shape[0],), level, dtype=torch.int64, device=candidates.device)
        noise = drawn.to(candidates.device)
        for signed in (noise, -noise):
            signed = signed.expand_as(candidates)
            x_t = torch.where(pinned, candidates, process.q_sample(candidates, t, signed))
            errors = torch.where(pinned, 0.0, denoiser(x_t, t) - signed) ** 2
            squares += errors.flatten(1).sum(dim=1)
    return squares / (2 * len(probes) * (~pinned).sum())
