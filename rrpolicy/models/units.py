"""Two models with different normalisers, or of different families: one asked in the other's units, where it is exact.

Model A noises u = (x - m_A) / s_A and model B v = (x - m_B) / s_B, each alike in all of its own columns. If s_B is
k · s_A for one number k, noise of ratio r in u is noise of ratio r / k in v, and B can be asked there; else at no
level do their noised densities speak of the same thing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rrpolicy.data.normalizer import Affine, Normalizer
from rrpolicy.models.foreign import ForeignModel
from rrpolicy.models.paths import NoisePath

Units = Normalizer | Affine
ALIKE = 1e-4  # largest relative difference of k from column to column
_REMEDY = (
    "their noises differ from column to column, so their scores cannot be subtracted at any level: train one of them "
    "for a few hundred steps in the other's units"
)


def in_units_of(
    model: ForeignModel, normaliser_of_model: Units, normaliser_wanted: Units, like: ForeignModel | None = None
) -> ForeignModel:
    """
    A model of the same density in another normaliser's units, at given noise levels.

    At each level the network is asked where its own ratio of noise to signal is 1 / k of that level's, k being by how
    much its units are larger. Paths in continuous time know such a level; a network of a table is told a time between
    two whole numbers (linear in the logarithm of the ratio), as samplers of diffusers and k-diffusion do.

    :param model: of `from_module` or a bridge
    :param normaliser_of_model: from environment units to the model's events, of the last axis of an event
    :param normaliser_wanted: from environment units to the events that are wanted
    :param like: the model with which it is to be a pair, of any family: its levels, name and normaliser are taken;
        None: the levels stay those of ``model``
    :return: a model that can be one of a pair with ``like``, which is the one that `steer` takes
    :raises ValueError: where scales differ by more than one factor, with the remedy; for levels beyond a table's range
    """
    if not isinstance(model, ForeignModel):
        raise ValueError(f"the model is a {type(model).__name__}, wanted one of models.from_module or a bridge")
    of, wanted = (_affine(model, units) for units in (normaliser_of_model, normaliser_wanted))
    if {of.width, wanted.width} != {model.inner_shape[-1]}:
        raise ValueError(
            f"the normalisers have {of.width} and {wanted.width} columns, the model's events {model.inner_shape[-1]}"
        )
    factor, shift = _factor_and_shift(of, wanted)
    levels = (model if like is None else like).path
    asked = model.with_conventions(at_ratios(model.path, levels.b / levels.a / factor))
    known = normaliser_wanted if isinstance(normaliser_wanted, Normalizer) else None
    name, known = (model.name, known) if like is None else (like.name, like.normalizer)
    return _Converted(asked, levels, factor, shift, name, known)


def at_ratios(path: NoisePath, ratios: Tensor) -> NoisePath:
    """
    The levels of a path at which noise to signal has given ratios.

    :param path: in continuous time, or a table, between whose times is interpolated
    :param ratios: b / a (T,), growing
    :raises ValueError: for ratios beyond a table's range
    """
    ratios = torch.as_tensor(ratios, dtype=torch.float64, device="cpu")
    if path.kind == "ve" and torch.equal(path.times.double(), path.b):
        return replace(
            path, times=ratios, a=torch.ones_like(ratios), b=ratios, da=0 * ratios, db=torch.ones_like(ratios)
        )
    if path.kind == "flow" and _is_straight(path):
        noise = ratios / (1 + ratios)
        da, db = (None if table is None else table[0].expand_as(noise) for table in (path.da, path.db))
        rising = path.times[-1] > path.times[0]
        unit = float((path.times[-1] - path.times[0]).abs() / (path.b[-1] - path.b[0]))
        return NoisePath("flow", unit * (noise if rising else 1 - noise), 1 - noise, noise, da, db)
    known = (path.b / path.a).log()
    wanted, slack = ratios.log(), 1e-9
    if float(wanted[0]) < float(known[0]) - slack or float(wanted[-1]) > float(known[-1]) + slack:
        low, high = float(known[0].exp()), float(known[-1].exp())
        raise ValueError(
            f"the model knows ratios of noise to signal from {low:.3g} to {high:.3g}, it would be asked at "
            f"{float(ratios[0]):.3g} to {float(ratios[-1]):.3g}: leave out the other's levels beyond, "
            "like=other.with_conventions(other.path.between(lowest, highest))"
        )
    times = _interpolated(known, path.times.double(), wanted)
    rates = (None if table is None else _interpolated(known, table, wanted) for table in (path.da, path.db))
    a = (1 + ratios**2).rsqrt() if path.kind == "vp" else _interpolated(known, path.a, wanted)
    return NoisePath(path.kind, times, a, ratios * a, *rates)


class _Converted(ForeignModel):
    """A model asked at other levels, for events in other units."""

    def __init__(
        self,
        asked: ForeignModel,
        levels: NoisePath,
        factor: float,
        shift: Tensor,
        name: str,
        normalizer: Normalizer | None,
    ) -> None:
        super().__init__(
            asked.module,
            asked.path,
            asked.prediction,
            asked.inner_shape,
            call=asked._call,
            n_condition=asked.n_condition,
            negate=asked.negate,
            pinned=asked._pinned,
            name=name,
            layout=asked.layout,
            normalizer=normalizer,
        )
        self._asked, self._levels, self._factor, self._shift = asked, levels, factor, shift

    @property
    def levels(self) -> NoisePath:
        return self._levels

    @property
    def steerable(self) -> bool:
        return False

    @torch.no_grad()
    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        event, condition = self.split(x_t)
        shift = self._shift.to(event)
        wanted, own = (process.levels(event, t)[0] for process in (self.process, self._asked.process))
        moved = torch.where(self._pinned, 1.0, own) * (event / torch.where(self._pinned, 1.0, wanted) / self._factor)
        moved = moved + torch.where(self._pinned, 1.0, own) * shift
        return self._asked.eps(self.joined(moved, condition), t)


def _affine(model: ForeignModel, units: Units) -> Affine:
    if isinstance(units, Affine):
        return units
    if model.layout is not None:
        return units.packed(model.layout)
    return Affine.concatenate([units.actions, units.observations])


def _factor_and_shift(of: Affine, wanted: Affine) -> tuple[float, Tensor]:
    """k = s_of / s_wanted, and what is added to u / k."""
    scales, others = of.scale.astype(np.float64), wanted.scale.astype(np.float64)
    offsets = wanted.offset.astype(np.float64) - of.offset.astype(np.float64)
    varies = scales > 0
    if not np.array_equal(varies, others > 0) or not varies.any():
        raise ValueError("a column is constant for one normaliser alone, or all are for both")
    factors = scales[varies] / others[varies]
    if factors.max() > factors.min() * (1 + ALIKE):
        raise ValueError(
            f"scales of the normalisers differ by factors from {factors.min():.4g} to {factors.max():.4g}: {_REMEDY}"
        )
    if (np.abs(offsets[~varies]) > ALIKE * np.abs(of.offset[~varies])).any():
        raise ValueError("a column is constant for both normalisers, with different values")
    return float(factors.mean()), torch.tensor(np.where(varies, offsets / np.where(varies, scales, 1.0), 0.0))


def _is_straight(path: NoisePath) -> bool:
    straight = torch.allclose(path.a + path.b, torch.ones_like(path.a))
    rates = path.times.double().diff() / path.b.diff()
    return straight and bool(torch.allclose(rates, rates[0].expand_as(rates), rtol=1e-6))


def _interpolated(known: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    return torch.from_numpy(np.interp(wanted.numpy(), known.numpy(), values.double().numpy()))
