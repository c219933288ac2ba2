"""What an agent can plan against what its data hold: the bound of normalised plan entries, and the shares beyond it.

Entries beyond ``clip`` are never sampled, and columns that were constant when a normaliser was fitted are never varied.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import LEAST_CLIP, Normalizer
from rrpolicy.data.windows import WindowSampler

BOUNDED = ("limits", "isotropic")  # data lie within 1 where these were fitted
ADVICE = "fit one normaliser on the data of both agents, Normalizer.fit([dataset, expert_dataset]), and give it to both"


def clip_for(normalizer: Normalizer, sampler: WindowSampler, clip: float) -> float:
    """
    The bound of an agent that was given none.

    :param normalizer: of the agent
    :param sampler: its data
    :param clip: the bound until now
    :return: as much as the data reach where the normaliser's mode leaves that open
    """
    clip = max(clip, LEAST_CLIP[normalizer.mode])
    return clip if normalizer.mode in BOUNDED else max(clip, sampler.largest())


def check_range(
    datasets: Sequence[TrajectoryDataset],
    sampler: WindowSampler,
    layout: TrajectoryLayout,
    normalizer: Normalizer,
    clip: float | None,
    new: bool,
) -> None:
    """
    Tell what share of the data an agent could never plan.

    :param datasets: environment units
    :param sampler: their windows, normalised
    :param clip: bound of normalised plan entries
    :param new: the data may be others than those that the normaliser was fitted to
    :raises ValueError: when more than half of a column of new data lies beyond ``clip``
    """
    names = [f"action {i}" for i in range(layout.action_dim)] if layout.plan_actions else []
    names += [f"observation {column}" for column in layout.columns]
    if clip is not None:
        shares = dict(zip(names, sampler.share_beyond(clip).tolist(), strict=True))
        name = max(shares, key=shares.__getitem__)
        if new and shares[name] > 0.5:
            raise ValueError(
                f"{_told({name: shares[name]})} lies beyond clip={clip:g} normalised units of the given "
                f"normalizer, where nothing can be planned: {ADVICE}, or pass another clip"
            )
        if beyond := {name: share for name, share in shares.items() if share > 0}:
            warnings.warn(
                f"{_told(beyond)} of the data lie beyond clip={clip:g} normalised units and will never be "
                f"planned: pass a larger clip, or {ADVICE}",
                RrpolicyWarning,
                stacklevel=4,
            )
    if new and (differs := _differing(datasets, normalizer, layout, names)):
        warnings.warn(
            f"{_told(differs)} of the data differ from the constant that the normalizer given holds for that "
            f"column, and are taken for it: {ADVICE}",
            category=RrpolicyWarning,
            stacklevel=4,
        )


def _differing(
    datasets: Sequence[TrajectoryDataset], normalizer: Normalizer, layout: TrajectoryLayout, names: Sequence[str]
) -> dict[str, float]:
    """Share of the data that leave the constant of each planned column that is constant to the normaliser."""
    shares = {}
    for kind, mapped in (("action", normalizer.actions), ("observation", normalizer.observations)):
        for column in np.flatnonzero(mapped.scale == 0).tolist():
            values = np.concatenate([getattr(dataset, f"{kind}s")[:, column] for dataset in datasets])
            share = float((~np.isclose(values, mapped.offset[column], rtol=1e-5)).mean())
            if share and f"{kind} {column}" in names:
                shares[f"{kind} {column}"] = share
    return shares


def _told(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.2%} of {name}" for name, share in shares.items())
