"""What learning from single transitions needs of recorded episodes: what followed each row, and where nothing did.
Of a dataset that does not tell how its episodes ended, those that were recorded to their end and are shorter than the
time limit are taken as ended for good, with a warning."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from rrpolicy.common.messages import RrpolicyWarning
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset

SAME_RETURN = 1e-6  # relative: sums of rewards in another order or precision


class Transitions(NamedTuple):
    """
    n transitions in environment units.

    ``observations`` (n, obs_dim), ``actions`` (n, action_dim), ``rewards`` (n,), ``next_observations`` (n, obs_dim) and
    ``terminals`` (n,) bool, where nothing follows and the next observation is not to be looked at.
    """

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    terminals: Array


def episode_returns(dataset: TrajectoryDataset) -> Array:
    """
    Sums of the rewards of each episode (E,), float64.

    :raises ValueError: when there are no rewards
    """
    if dataset.rewards is None:
        raise ValueError("dataset has no rewards, wanted one for each of its transitions")
    begins = np.cumsum(dataset.episode_lengths) - dataset.episode_lengths
    return np.asarray(np.add.reduceat(dataset.rewards.astype(np.float64), begins))


def finished(dataset: TrajectoryDataset) -> Array:
    """
    Which episodes (E,) were recorded to their end, whether they were terminated or truncated there. Where the dataset
    does not tell: those whose return is among the metadata's, which are of finished episodes; all of them where the
    metadata tell no returns, as in data that were not collected here.

    :raises ValueError: when neither ends nor rewards are known
    """
    if dataset.terminated is not None and dataset.truncated is not None:
        return np.asarray(dataset.terminated | dataset.truncated)
    totals = episode_returns(dataset)
    parts = dataset.metadata.get("agents", [dataset.metadata])
    if not all("returns" in part for part in parts):
        return np.ones(len(totals), dtype=bool)
    told = np.sort([np.inf, *(value for part in parts for value in part["returns"])])
    places = np.searchsorted(told, totals)
    near = told[np.stack([np.maximum(places - 1, 0), places], axis=1)]  # the next lower and the next higher one
    return np.isclose(totals[:, None], near, rtol=SAME_RETURN, atol=SAME_RETURN).any(axis=1)


def terminals(dataset: TrajectoryDataset, time_limit: int | None) -> Array:
    """
    Rows (N,) after which an episode was over for good, as when a robot falls.

    Where the dataset does not tell how its episodes ended, this warns and takes those that are finished and shorter
    than the time limit.

    :param dataset: that tells how its episodes ended, or has the rewards of its environment
    :param time_limit: environment steps after which episodes are cut off; None: they never are. Not used where the
        dataset tells
    :raises ValueError: when neither ends nor rewards are known
    """
    if dataset.terminated is None:
        over = finished(dataset)
        if time_limit is not None:
            over &= dataset.episode_lengths < time_limit
        warnings.warn(_inferred(dataset, over, time_limit), category=RrpolicyWarning, stacklevel=2)
    else:
        over = dataset.terminated
    flags = np.zeros(len(dataset), dtype=bool)
    flags[np.cumsum(dataset.episode_lengths)[over] - 1] = True
    return flags


def _inferred(dataset: TrajectoryDataset, over: Array, time_limit: int | None) -> str:
    limit = "" if time_limit is None else f" and shorter than the time limit of {time_limit}"
    return (
        f"the dataset does not tell how its episodes ended (terminated, truncated): {int(over.sum())} of "
        f"{dataset.n_episodes}, recorded to their end{limit}, are taken as terminated"
    )


def transitions(dataset: TrajectoryDataset, over: Array) -> Transitions:
    """
    All rows of which it is known what followed: the last one of an episode only where nothing did.

    :param dataset: with rewards, of whatever kind
    :param over: (N,) bool, as :func:`terminals` gives it
    :raises ValueError: when there are no rewards, or no such row
    """
    if dataset.rewards is None:
        raise ValueError("dataset has no rewards, wanted one for each of its transitions")
    last = np.zeros(len(dataset), dtype=bool)
    last[np.cumsum(dataset.episode_lengths) - 1] = True
    rows = np.flatnonzero(~last | over)
    if not len(rows):
        raise ValueError(f"dataset has {len(dataset)} rows and of none is it known what followed, wanted at least one")
    following = np.where(over[rows], rows, rows + 1)
    return Transitions(
        dataset.observations[rows],
        dataset.actions[rows],
        dataset.rewards[rows],
        dataset.observations[following],
        over[rows],
    )
