"""Sources of an extraction's targets: both models evaluated at noised clean events, or recorded pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rrpolicy.common.arguments import whole
from rrpolicy.common.device import device_of
from rrpolicy.common.noise import randint, send
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.events import as_events
from rrpolicy.rewards.recorded import RecordedPairs
from rrpolicy.rewards.targets import Targets, make_targets

Data = TrajectoryDataset | Sequence[TrajectoryDataset] | Tensor | RecordedPairs | None
MAX_BUFFER_EVENTS, MAX_BUFFER_NUMBERS = 2**20, 2**32
Source = Callable[[int, torch.Generator], Targets]
"""(number of targets, source of randomness) -> targets."""


def target_source(
    base: ScoreModel, expert: ScoreModel, data: Data, pairs: Targets | None, seed: int | None, n_value_draws: int
) -> Source:
    """
    Make the source that targets are drawn from.

    :param data: as in `RewardExtractor.learn`
    :param pairs: where the models were compared already, one half of what is drawn; None for nothing
    :param seed: of the models' own samples, where there are no data
    :param n_value_draws: later levels per value target; 0 for gradients alone
    :raises ValueError: when data do not fit the models
    """
    if pairs is not None:
        return _with_pairs(pairs, target_source(base, expert, data, None, seed, n_value_draws))
    if isinstance(data, RecordedPairs):
        if data.model.fingerprint() != base.fingerprint():
            raise ValueError(
                f"data was recorded with {data.model.fingerprint()}, base and expert are {base.fingerprint()}"
            )
        return data.draw
    events, device = as_events(data, base, expert, seed), device_of(base)

    def draw(n: int, generator: torch.Generator) -> Targets:
        return make_targets(base, expert, send(events.draw(n, generator), device), generator, n_value_draws)

    return draw


def check_buffer(buffer_size: int, batch_size: int, event_shape: Sequence[int]) -> None:
    """
    Check the size of the buffer of targets.

    :raises ValueError: for a buffer smaller than a batch, or one that no memory holds
    """
    if whole("buffer_size", buffer_size) < batch_size:
        raise ValueError(f"buffer_size is {buffer_size}, it must be at least batch_size, {batch_size}")
    if (size := buffer_size * math.prod(event_shape)) > MAX_BUFFER_NUMBERS or buffer_size > MAX_BUFFER_EVENTS:
        raise ValueError(
            f"buffer_size is {buffer_size}, which makes {size} numbers, wanted at most 2**20 events "
            f"and {MAX_BUFFER_NUMBERS} numbers"
        )


def _with_pairs(pairs: Targets, rest: Source) -> Source:
    def draw(n: int, generator: torch.Generator) -> Targets:
        chosen = randint(len(pairs), (n // 2,), generator, pairs.t.device)
        return Targets.joined([pairs.rows(chosen), rest(n - n // 2, generator)])

    return draw
