"""Diffuser's planners (Janner et al. 2022) as score models: their diffusion, normalisers and checkpoints.

Nothing of theirs is imported: the objects come from their code, and a checkpoint's weights are read as data. Their
pickled configurations are programs, which are never run here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.messages import at
from rrpolicy.common.torch_files import read_weights
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.models.bridges import attribute, by_name
from rrpolicy.models.foreign import ForeignModel, from_module
from rrpolicy.models.paths import vp

_KIND = "Diffuser's GaussianDiffusion"
_EXACT = "GaussianNormalizer, LimitsNormalizer, SafeLimitsNormalizer, DebugNormalizer"


def from_diffuser(
    diffusion: Any, normalizer: Any = None, conditioned: Sequence[int] = (0,), stride: int = 1, name: str = ""
) -> ForeignModel:
    """
    A score model of Diffuser's ``GaussianDiffusion`` around a ``TemporalUnet``: windows of rows [action, observation].

    :param diffusion: the trained object, usually the trainer's ``ema_model``
    :param normalizer: their ``DatasetNormalizer``, or a `Normalizer`; None: events have no other units
    :param conditioned: rows whose observations are given, as the keys of their ``cond``: ``(0,)``, or ``(0, -1)`` for
        goals; they are pinned
    :param stride: environment steps from row to row
    :param name: part of the fingerprint
    :raises ValueError: for another object, a value function, or a normaliser that is not affine
    """
    table, network, horizon, n_observations, n_actions, noise = (
        attribute(diffusion, _KIND, what)
        for what in ("alphas_cumprod", "model", "horizon", "observation_dim", "action_dim", "predict_epsilon")
    )
    if hasattr(network, "final_block") or type(diffusion).__name__ == "ValueDiffusion":
        raise ValueError("it is a ValueDiffusion, which predicts returns and no noise")
    if not all(-horizon <= row < horizon for row in conditioned):
        raise ValueError(f"conditioned is {tuple(conditioned)}, wanted rows of the horizon, {horizon}")
    rows = sorted({row % horizon for row in conditioned})
    pinned = torch.zeros(horizon, n_actions + n_observations, dtype=torch.bool)
    pinned[rows, n_actions:] = True
    known = normalizer if normalizer is None or isinstance(normalizer, Normalizer) else diffuser_normalizer(normalizer)

    def call(module: Any, x: Tensor, time: Tensor) -> Any:
        return module(x, {row: x[:, row, n_actions:] for row in rows}, time)

    return from_module(
        network,
        vp(table),
        "eps" if noise else "x0",
        tuple(pinned.shape),
        call=call,
        inputs=by_name("x", "cond", "time", wanted=("x", "time")),
        pinned=pinned,
        clip=1.0 if getattr(diffusion, "clip_denoised", False) else None,
        layout=TrajectoryLayout(n_observations, n_actions, horizon, stride) if rows == [0] and n_actions else None,
        normalizer=known,
        name=name,
    )


def diffuser_normalizer(normalizer: Any) -> Normalizer:
    """
    The `Normalizer` that maps as a ``DatasetNormalizer`` of Diffuser does.

    :param normalizer: theirs, with normalisers of ``observations`` and ``actions``
    :raises ValueError: for one that is not affine, such as ``CDFNormalizer``
    """
    fields = attribute(normalizer, "Diffuser's DatasetNormalizer", "normalizers")
    if not isinstance(fields, Mapping) or not {"observations", "actions"} <= set(fields):
        raise ValueError("the normaliser lacks observations or actions, wanted Diffuser's DatasetNormalizer")
    observations, actions = (_affine(name, fields[name]) for name in ("observations", "actions"))
    gaussian = hasattr(fields["observations"], "means")
    return Normalizer(observations, actions, "gaussian" if gaussian else "limits")


def _affine(field: str, theirs: Any) -> Affine:
    kind = type(theirs).__name__
    if hasattr(theirs, "means") and hasattr(theirs, "stds"):
        return Affine(theirs.means, theirs.stds)
    if hasattr(theirs, "mins") and kind == "DebugNormalizer":
        return Affine(np.zeros_like(theirs.mins), np.ones_like(theirs.mins))
    if hasattr(theirs, "mins") and hasattr(theirs, "maxs") and kind in ("LimitsNormalizer", "SafeLimitsNormalizer"):
        low, high = np.asarray(theirs.mins, dtype=np.float64), np.asarray(theirs.maxs, dtype=np.float64)
        return Affine((low + high) / 2, (high - low) / 2)
    raise ValueError(
        f"{field} have a {kind}, which is not affine or not known: noise in its units is no noise in ours. "
        f"Wanted one of {_EXACT}: train the model again with one of them"
    )


def load_diffuser(diffusion: Any, path: str | Path, ema: bool = True) -> Any:
    """
    Diffuser's ``GaussianDiffusion`` with the weights of a checkpoint, which are read as data.

    :param diffusion: built by their code, with the sizes of the checkpoint
    :param path: ``state_<step>.pt``, or the folder of a run, of which the last one is taken
    :param ema: the averaged weights, with which they plan; False: the others
    :return: ``diffusion``
    :raises ValueError: naming the file, for one that is missing, holds anything but named tensors or other sizes
    """
    file = _checkpoint(Path(path))
    try:
        weights = read_weights(file.read_bytes(), "ema" if ema else "model")
        diffusion.load_state_dict(weights)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(at(file, " ".join(str(error).split())[:500])) from error
    return diffusion


def _checkpoint(path: Path) -> Path:
    if path.is_dir():
        matches = ((re.fullmatch(r"state_(\d+)\.pt", file.name), file) for file in path.iterdir())
        steps = {int(match[1]): file for match, file in matches if match}
        if not steps:
            raise ValueError(at(path, "holds no state_<step>.pt"))
        return steps[max(steps)]
    if path.suffix == ".pkl":
        raise ValueError(
            at(path, "is a pickled configuration, which is code: build the diffusion, and give state_*.pt")
        )
    return path
