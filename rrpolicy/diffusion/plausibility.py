"""The likelihood of clean events by a model's own denoising: no data, no environment, no other model.

Events that it denoises badly when they are hardly noised are unlike its data. The mean square error of predicted noise
is the model's likelihood bound up to weights and a constant (Ho et al. 2020, equations 12 and 14).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rrpolicy.common.device import randn
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import Denoiser

LEVELS = (0.02, 0.04, 0.08)  # of T: clean enough for small faults to show


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
    generator = torch.Generator().manual_seed(seed)
    levels = sorted(
        {min(max(round(part * process.n_diffusion_steps), 1), process.n_diffusion_steps - 1) for part in LEVELS}
    )
    squares = torch.zeros(candidates.shape[0], device=candidates.device)
    for level in levels:
        t = torch.full((candidates.shape[0],), level, dtype=torch.int64, device=candidates.device)
        noise = randn(candidates.shape[1:], generator, candidates.device)
        for signed in (noise, -noise):
            signed = signed.expand_as(candidates)
            x_t = torch.where(pinned, candidates, process.q_sample(candidates, t, signed))
            errors = torch.where(pinned, 0.0, denoiser(x_t, t) - signed) ** 2
            squares += errors.flatten(1).sum(dim=1)
    return squares / (2 * len(levels) * (~pinned).sum())
