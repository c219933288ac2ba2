"""Events of two models from the same conditions and the same noise, so that each pair shows what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.device import device_of
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.diffusion.score_model import ScoreModel, layout_of, normalizer_of, pinned_mask, sampled_pinned
from rrpolicy.rewards.events import as_events

N_STEPS = 50  # denoising steps at most, one at each level
CHUNK = 2048  # events at a time


@dataclass(frozen=True, eq=False)
class Samples:
    """
    Clean events of two models, paired.

    :param base: (N, *event_shape), normalised
    :param expert: (N, *event_shape), from the same conditions and noise
    :param groups: (N,) the episode from which each condition is; None where that is not known
    :raises ValueError: for shapes that do not fit together or numbers that are not finite
    """

    base: Tensor
    expert: Tensor
    groups: Array | None = None

    def __post_init__(self) -> None:
        if self.base.shape != self.expert.shape or len(self.base) < 4:
            found = f"{tuple(self.base.shape)} and {tuple(self.expert.shape)}"
            raise ValueError(f"samples have shapes {found}, wanted two of (N, *event_shape) with N >= 4")
        if self.groups is not None and len(self.groups) != len(self.base):
            raise ValueError(f"groups has {len(self.groups)} entries, wanted {len(self.base)}")
        if not (torch.isfinite(self.base).all() and torch.isfinite(self.expert).all()):
            raise ValueError("samples hold NaN or infinite numbers")

    def __len__(self) -> int:
        return len(self.base)

    @property
    def both(self) -> Tensor:
        """All events (2N, *event_shape), the base's first."""
        return torch.cat([self.base, self.expert])


def draw_samples(base: ScoreModel, expert: ScoreModel, n: int, data: Any = None, seed: int = 0) -> Samples:
    """
    Events of both models from the same conditions.

    :param n: pairs
    :param data: where conditions come from: dataset(s), whose episodes are the groups, or clean events
        (m, *event_shape); None for those of both models, an equal share of each
    :param seed: of conditions and noise
    """
    generator = torch.Generator().manual_seed(seed)
    conditions, groups = conditions_of(base, expert, n, data, generator)
    return Samples(sampled(base, n, conditions, seed), sampled(expert, n, conditions, seed), groups)


def sampled(model: ScoreModel, n: int, conditions: Tensor | None, seed: int, denoiser: Any = None) -> Tensor:
    """
    Clean events (n, *event_shape) of a model, by deterministic sampling of second order at all levels, or at `N_STEPS`
    of more. With few levels DDIM, of first order, would leave a bias that intervals do not allow for.

    :param conditions: events whose pinned entries are kept; None for a model without
    :param seed: of the noise, which is the same for every model
    :param denoiser: in place of the model's own
    """
    return sample_model(
        model,
        n,
        generator=torch.Generator().manual_seed(seed + 1),
        clean=conditions,
        n_sampling_steps=min(N_STEPS, model.process.n_diffusion_steps),
        solver="dpm++",
        denoiser=denoiser,
        chunk=CHUNK,
    )


def conditions_of(
    base: ScoreModel, expert: ScoreModel, n: int, data: Any, generator: torch.Generator
) -> tuple[Tensor | None, Array | None]:
    """Events (n, *event_shape) whose pinned entries are conditions, None without any, and their episodes if known."""
    if not bool(pinned_mask(base).any()):
        return None, None
    if data is None:
        halves = (n - n // 2, n // 2)
        known = [sampled_pinned(model, m, generator) for model, m in zip((base, expert), halves, strict=True) if m]
        return torch.cat(known), None
    datasets = [data] if isinstance(data, TrajectoryDataset) else data
    if not isinstance(datasets, Sequence) or not all(isinstance(one, TrajectoryDataset) for one in datasets):
        return as_events(data, base, expert, 0).draw(n, generator).to(device_of(base)), None
    return _windows(datasets, base, n, generator)


def _windows(
    datasets: Sequence[TrajectoryDataset], model: ScoreModel, n: int, generator: torch.Generator
) -> tuple[Tensor, Array]:
    """Windows of datasets, an equal share of each, and their episodes, numbered through."""
    layout, normalizer = layout_of(model), normalizer_of(model)
    if layout is None or normalizer is None or not datasets:
        raise ValueError("data are datasets, which mean nothing to models without layout and normalizer: pass a tensor")
    windows, groups, before = [], [], 0
    for i, dataset in enumerate(datasets):
        count = n // len(datasets) + (i < n % len(datasets))
        known = dataset.window_starts(layout, padding=True)
        chosen = torch.randint(len(known), (count,), generator=generator).numpy()
        found = dataset.windows(layout, known[chosen])
        observations = normalizer.observations.normalize(found.observations)
        packed = layout.pack(observations, normalizer.actions.normalize(found.actions))
        windows.append(torch.as_tensor(packed, dtype=torch.float32))
        groups.append(before + np.searchsorted(np.cumsum(dataset.episode_lengths), known[chosen], side="right"))
        before += dataset.n_episodes
    return torch.cat(windows).to(device_of(model)), np.concatenate(groups)
