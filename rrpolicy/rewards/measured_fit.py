"""Measuring the fit of an extraction: both models are compared at clean events with new noise, at a few noise levels.

Where pairs of predictions were recorded the models are not there, and the recorded pairs are looked at in bands of
levels instead. `FitReport` says what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.fit_report import FitReport, LevelFit
from rrpolicy.rewards.metrics import LEVELS, predicted_difference, winsorized_fraction
from rrpolicy.rewards.recorded import RecordedPairs
from rrpolicy.rewards.relative_reward import Head, RelativeReward
from rrpolicy.rewards.targets import Targets, noised, targets_at

N_EVENTS = 512  # clean events at which the models are compared at each level
N_RECORDED = 2048  # recorded pairs
N_BANDS = 5  # of noise levels, for recorded pairs
RANGE = (0.01, 0.99)  # quantiles between which rewards span their range
LOWEST = -1e6  # R² that are lower, or not finite, are given as this
CHUNK = 256  # events per call of the reward


@dataclass(frozen=True)
class _Compared:
    """
    Where two models were compared.

    :param targets: without values
    :param bands: (first, last) noise level of the parts to look at
    :param x0: the clean events (n, *event_shape), where there are any
    """

    targets: Targets
    bands: Sequence[tuple[int, int]]
    x0: Tensor | None


def measured_fit(
    reward: RelativeReward,
    base: ScoreModel,
    expert: ScoreModel,
    data: Tensor | RecordedPairs,
    held_out: bool,
    seed: int = 0,
) -> FitReport:
    """
    The fit of a reward, without what only training knows.

    :param data: clean normalised events (N, *event_shape), all of which serve, or recorded pairs
    :param held_out: whether the reward was not learned from them
    :param seed: of the choice of recorded pairs and of the noise
    """
    compared = _compared(reward, base, expert, data, seed)
    fits = [
        fit for head in reward.heads for band in compared.bands for fit in _fits(reward, compared, head, band, seed)
    ]
    return FitReport(
        n_events=len(compared.targets) if compared.x0 is None else len(compared.x0),
        held_out=held_out,
        levels=tuple(fits),
        map_level=reward.map_level if "step" in reward.heads else None,
        window_range=_window_range(reward, compared) if "window" in reward.heads else None,
        step_range=_step_range(reward, compared) if "step" in reward.heads else None,
    )


def clipped_share(
    reward: RelativeReward, targets: Targets, value_spread: Tensor, value_clip: float, n_events: int = N_EVENTS
) -> float | None:
    """
    Share of value targets that lie more than ``value_clip`` spreads from ρ, so that their errors count linearly.

    :param targets: what was learned from; the first of them are looked at
    :param value_spread: of values at each level (T,)
    :return: None where there are no values
    """
    rows = targets.rows(torch.arange(min(n_events, len(targets)), device=targets.t.device))
    if rows.value is None:
        return None
    with torch.no_grad():
        rho = torch.cat([reward(part.x_t, part.t, "window") for part in _parts(rows)])
    return float((((rho - rows.value) / value_spread[rows.t]).abs() > value_clip).float().mean())


def unfitted_levels(t: Tensor, n_levels: int) -> tuple[tuple[int, int], ...]:
    """
    Runs of noise levels at which there is no target.

    :param t: levels of targets (N,)
    :return: (first, last) of each run
    """
    fitted = {-1, n_levels, *t.unique().cpu().tolist()}
    return tuple((low + 1, high - 1) for low, high in pairwise(sorted(fitted)) if high - low > 1)


def _compared(
    reward: RelativeReward, base: ScoreModel, expert: ScoreModel, data: Tensor | RecordedPairs, seed: int
) -> _Compared:
    n_levels, generator = base.process.n_diffusion_steps, torch.Generator().manual_seed(seed)
    if isinstance(data, RecordedPairs):
        edges = sorted({round(i * n_levels / N_BANDS) for i in range(N_BANDS + 1)})
        bands = [(low, high - 1) for low, high in pairwise(edges)]
        return _Compared(data.draw(N_RECORDED, generator).to(reward.device), bands, None)
    of_maps = {reward.map_level} if "step" in reward.heads else set()
    levels = sorted({round(part * (n_levels - 1)) for part in LEVELS} | of_maps)
    parts = []
    for level in levels:
        t = torch.full((len(data),), level, dtype=torch.int64, device=data.device)
        parts.append(targets_at(base, expert, data, noised(base, data, t, generator), t, generator, 0))
    targets = Targets.joined(parts).to(reward.device)
    return _Compared(targets, [(level, level) for level in levels], data.to(reward.device))


def _fits(
    reward: RelativeReward, compared: _Compared, head: Head, band: tuple[int, int], seed: int
) -> Iterator[LevelFit]:
    """The fit of a head in a band of levels; none where there is nothing to explain."""
    t = compared.targets.t
    rows = compared.targets.rows(((t >= band[0]) & (t <= band[1])).nonzero().flatten())
    wanted = rows.eps_difference
    total = _squares(wanted)
    if not float(total.sum()) > 0 or (head == "step" and rows.x0 is None):
        return
    process = reward.process
    got = torch.cat([predicted_difference(reward, process, one.x_t, one.t, head, one.x0) for one in _parts(rows)])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(wanted.device)
    residual, permuted = _squares(got - wanted), _squares(got - wanted[order])
    r2, null = (_bounded(1 - float(one.sum() / total.sum())) for one in (residual, permuted))
    yield LevelFit(head, *band, r2, winsorized_fraction(residual, total), null)


def _window_range(reward: RelativeReward, compared: _Compared) -> float:
    """Of clean events at the cleanest level, or of recorded ones in the cleanest band."""
    if compared.x0 is not None:
        x0 = compared.x0
        x_t, t = torch.where(reward.pinned, x0, reward.process.alpha(0) * x0), torch.zeros_like(compared.targets.t[:1])
        t = t.expand(len(x0))
    else:
        cleanest = (compared.targets.t <= compared.bands[0][1]).nonzero().flatten()
        x_t, t = compared.targets.x_t[cleanest], compared.targets.t[cleanest]
    with torch.no_grad():
        return _range(
            torch.cat([reward(x, at, "window") for x, at in zip(x_t.split(CHUNK), t.split(CHUNK), strict=True)])
        )


def _step_range(reward: RelativeReward, compared: _Compared) -> float | None:
    """Of the clean states of events at the level of maps."""
    x0 = compared.targets.x0 if compared.x0 is None else compared.x0
    if x0 is None:
        return None
    states = x0[:, (~reward.pinned).any(dim=1)].flatten(0, 1)
    t = torch.full((len(states),), reward.map_level, dtype=torch.int64, device=states.device)
    with torch.no_grad():
        return _range(reward.forward_steps(reward.process.alpha(reward.map_level) * states, t))


def _range(rho: Tensor) -> float:
    if not len(rho):
        return 0.0
    low, high = (float(torch.quantile(rho.float(), one)) for one in RANGE)
    return high - low if high - low < -LOWEST else -LOWEST  # NaN, too


def _bounded(r2: float) -> float:
    return r2 if r2 > LOWEST else LOWEST  # NaN, too


def _squares(events: Tensor) -> Tensor:
    """Sum of squares (B,) of each event."""
    return (events**2).flatten(1).sum(dim=1)


def _parts(targets: Targets) -> Iterator[Targets]:
    """Targets in parts that one call of a network takes."""
    for index in torch.arange(len(targets), device=targets.t.device).split(CHUNK):
        yield targets.rows(index)
