"""Clean events at which two models are compared: from datasets, from given samples, or the models' own samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rrpolicy.common.device import device_of
from rrpolicy.common.noise import randint
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.windows import WindowSampler
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.diffusion.score_model import ScoreModel, layout_of, normalizer_of

N_OWN_SAMPLES = 4096  # of each model
CHUNK = 1024
SHORT_EPISODES = (
    "compare the models at their own samples, data=None, or train both with a horizon that the episodes have "
    "(padding=True in learning is not enough: both models are asked about whole windows)"
)


class Events(Protocol):
    """A source of clean events."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, *event_shape), normalised."""
        ...


class _Rows:
    def __init__(self, x0: Tensor) -> None:
        self.x0 = x0

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.x0[randint(len(self.x0), (n,), generator, self.x0.device)]


class _Windows:
    def __init__(self, sampler: WindowSampler) -> None:
        self._sampler = sampler

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self._sampler.draw(n, generator)[0]


def as_events(data: Any, base: ScoreModel, expert: ScoreModel, seed: int | None) -> Events:
    """
    Clean normalised events of data; windows of datasets are where the base is.

    :param data: dataset(s), clean normalised events (N, *event_shape), or None for samples of both models
    :raises TypeError: for anything else
    :raises ValueError: for events of another shape or with NaN, or datasets for models without a layout
    """
    event_shape = tuple(base.event_shape)
    if data is None:
        generator = torch.Generator()
        generator.manual_seed(0 if seed is None else seed)
        return _Rows(torch.cat([own_samples(model, generator) for model in (base, expert)]))
    if isinstance(data, Tensor):
        if tuple(data.shape[1:]) != event_shape or not len(data):
            raise ValueError(f"data has shape {tuple(data.shape)}, wanted (N, {', '.join(map(str, event_shape))})")
        if not torch.isfinite(data).all():
            raise ValueError("data holds NaN or inf, clean events must be finite")
        return _Rows(data.float())
    datasets = [data] if isinstance(data, TrajectoryDataset) else data
    if not isinstance(datasets, Sequence) or not all(isinstance(one, TrajectoryDataset) for one in datasets):
        raise TypeError(
            f"data is a {type(data).__name__}; call it as extractor.learn([dataset, expert_dataset], "
            "total_timesteps=3_000), with a tensor of clean events, or with None"
        )
    layout, normalizer = layout_of(base), normalizer_of(base)
    if layout is None or normalizer is None:
        raise ValueError("the models have no layout and normalizer, so datasets mean nothing to them; pass a tensor")
    return _Windows(WindowSampler(datasets, layout, normalizer, advice=SHORT_EPISODES).to(device_of(base)))


def draw_events(data: Any, base: ScoreModel, expert: ScoreModel, n: int, seed: int) -> Tensor:
    """
    Clean events (n, *event_shape) of data, where the models are; for None, half of them of each model.

    :param data: as :func:`as_events` takes them
    """
    generator = torch.Generator().manual_seed(seed)
    if data is None:
        return torch.cat([sample_model(model, n // 2, generator=generator) for model in (base, expert)])
    return as_events(data, base, expert, seed).draw(n, generator).to(device_of(base))


def own_samples(model: ScoreModel, generator: torch.Generator) -> Tensor:
    """Clean samples of a model (`N_OWN_SAMPLES`, *event_shape), at which it is compared where there are no data."""
    return sample_model(model, N_OWN_SAMPLES, generator=generator, chunk=CHUNK)
