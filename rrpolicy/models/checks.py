"""A test of a score model's conventions on data: does it predict noise as well as a linear predictor could?

A wrong sign, a reversed time, ε taken for x0, or a normaliser that was forgotten extract without any complaint. All of
them make a model a worse predictor of noise than the linear one, which knows mean and covariance of the data alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from rrpolicy.common.device import device_of
from rrpolicy.common.noise import randn
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.diffusion.score_model import ScoreModel, check_compatible, check_models, pinned_mask
from rrpolicy.models.foreign import ForeignModel, Prediction
from rrpolicy.models.paths import NoisePath

N_EVENTS = 1024
N_LEVELS = 8
MAX_RATIO = 1.3  # of the error of a model that fits to that of the linear predictor, on average over levels
MAX_COVARIANCE = 1024  # entries of an event beyond which only their variances are used
SHRINKAGES = (0.0, 0.03, 0.1, 0.3)  # of a covariance to its diagonal, of which the best is taken


@dataclass(frozen=True)
class ScoreModelCheck:
    """
    What a check found.

    :param levels: noise levels t that were tried
    :param error: mean square of ε̂ - ε at each of them; 0 is perfect, 1 is that of ε̂ = 0
    :param linear: that of the best linear predictor
    """

    levels: tuple[int, ...]
    error: tuple[float, ...]
    linear: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Error in parts of the linear predictor's, on average over levels."""
        return sum(self.error) / sum(self.linear)

    @property
    def fits(self) -> bool:
        """Whether the model predicts noise about as well as the linear predictor, or better."""
        return self.ratio <= MAX_RATIO


@usual_torch()
def check_score_model(model: ScoreModel, events: Tensor, seed: int = 0) -> ScoreModelCheck:
    """
    Test a model's conventions on data.

    :param model: made by `from_module`, or any score model
    :param events: clean events (N, *event_shape) in the model's normalised units, at least 32, such as it learned from
    :param seed: of noise
    :return: errors at some levels
    :raises ValueError: when the model predicts noise worse than a linear predictor, naming the convention that fits
        best; for events of another shape
    """
    check_models(model, model)
    wanted = tuple(model.event_shape)
    if tuple(events.shape[1:]) != wanted or len(events) < 32:
        raise ValueError(f"events have shape {tuple(events.shape)}, wanted (N, {', '.join(map(str, wanted))}), N ≥ 32")
    if not bool(torch.isfinite(events).all()):
        raise ValueError("events hold NaN or infinity")
    generator = torch.Generator().manual_seed(seed)
    chosen = events.float().cpu()[torch.randperm(len(events), generator=generator)[:N_EVENTS]].to(device_of(model))
    found = _measure(model, chosen, seed)
    if found.fits:
        return found
    raise ValueError(
        f"the model predicts noise {found.ratio:.2g} times as badly as a linear predictor with the mean and covariance "
        f"of these events (at most {MAX_RATIO} is expected): {_advice(model, chosen, seed)}"
    )


def check_pair(base: ScoreModel, expert: ScoreModel, base_events: Tensor, expert_events: Tensor, seed: int = 0) -> None:
    """
    Test two models, each on its own data, and that their scores can be subtracted.

    :raises ValueError: naming the model and what is wrong with it
    """
    check_models(base, expert)
    check_compatible(base, expert)
    for name, model, events in (("base", base, base_events), ("expert", expert, expert_events)):
        try:
            check_score_model(model, events, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _measure(model: ScoreModel, events: Tensor, seed: int, linear: _LinearPredictor | None = None) -> ScoreModelCheck:
    process, free = model.process, ~pinned_mask(model)
    n_levels = process.n_diffusion_steps
    levels = sorted({round(i * (n_levels - 1) / (N_LEVELS - 1)) for i in range(N_LEVELS)})
    generator = torch.Generator().manual_seed(seed)
    linear = linear or _LinearPredictor(events[:, free])
    errors, wanted = [], []
    for level in levels:
        t = torch.full((len(events),), level, dtype=torch.int64, device=events.device)
        noise = randn(events.shape, generator, events.device)
        x_t = torch.where(free, process.q_sample(events, t, noise), events)
        with torch.no_grad():
            error = (model.eps(x_t, t) - noise)[:, free]
        errors.append(float((error**2).mean().clamp(max=1e6)))
        wanted.append(linear.error(float(process.alpha(level)), float(process.sigma(level))))
    return ScoreModelCheck(tuple(levels), tuple(errors), tuple(wanted))


class _LinearPredictor:
    """
    The best linear predictor of ε, σ(α²C + σ²)⁻¹(x - αμ), as far as a finite number of events tells the covariance C.

    C is fitted to one half of the events, more or less shrunk to its diagonal, and the error is that on the other half:
    tr((1 - σ²M)² + σ²α² M C' M) / d with M = (α²C + σ²)⁻¹.
    """

    def __init__(self, events: Tensor) -> None:
        centred = (events - events.mean(dim=0)).double()
        self._variances = (centred**2).mean(dim=0)
        self._fits: list[tuple[Tensor, Tensor]] = []
        if centred.shape[1] > MAX_COVARIANCE:
            return
        fitted, other = (half.T @ half / len(half) for half in (centred[::2], centred[1::2]))
        for shrinkage in SHRINKAGES:
            values, vectors = torch.linalg.eigh((1 - shrinkage) * fitted + shrinkage * fitted.diagonal().diag())
            spread = ((vectors.T @ other) * vectors.T).sum(dim=1)
            self._fits.append((values.clamp(min=0), spread))

    def error(self, alpha: float, sigma: float) -> float:
        signal = alpha**2 * self._variances
        errors = [(signal / (signal + sigma**2)).mean()]
        for values, spread in self._fits:
            inverse = 1 / (alpha**2 * values + sigma**2)
            errors.append(((1 - sigma**2 * inverse) ** 2 + (sigma * alpha * inverse) ** 2 * spread).mean())
        return float(torch.stack(errors).min())


def _advice(model: ScoreModel, events: Tensor, seed: int) -> str:
    best, ratio = "", MAX_RATIO
    linear = _LinearPredictor(events[:, ~pinned_mask(model)])
    for name, other, changed in _alternatives(model, events):
        try:
            found = _measure(other, changed, seed, linear if changed is events else None).ratio
        except (ValueError, RuntimeError):
            continue
        if found < ratio:
            best, ratio = name, found
    if best:
        return f"{best} fits best, with {ratio:.2g}"
    return "no other convention fits either; is it trained on such events, in these units, and called as it should be?"


def _alternatives(model: ScoreModel, events: Tensor) -> Iterator[tuple[str, ScoreModel, Tensor]]:
    """Other conventions, from the simplest on: their names, a model that has them, and events in its units."""
    free = ~pinned_mask(model)
    for name, changed in _rescaled(events, free):
        yield name, model, changed
    if not isinstance(model, ForeignModel):
        return
    predictions: tuple[Prediction, ...] = get_args(Prediction)
    for path in (model.path, _backwards(model.path)):
        for negate in (model.negate, not model.negate):
            for prediction in dict.fromkeys((model.prediction, *predictions)):
                try:
                    other = model.with_conventions(path, prediction, negate)
                except ValueError:
                    continue
                parts = [f"prediction={prediction!r}"] if prediction != model.prediction else []
                parts += ["the opposite sign (negate)"] if negate != model.negate else []
                parts += ["time running the other way"] if path is not model.path else []
                if parts:
                    yield " with ".join(parts), other, events


def _rescaled(events: Tensor, free: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Events in the units of the usual normalisers, fitted to each entry, or to columns or channels of windows."""
    n = events.ndim
    kept = [(), (n - 1,), (1,)] if n > 2 else [()]  # axes along which a normaliser's numbers differ
    for axes in kept:
        over = tuple(axis for axis in range(n) if axis not in axes) if axes else (0,)
        mean, std = events.mean(dim=over, keepdim=True), events.std(dim=over, keepdim=True).clamp(min=1e-6)
        low, high = events.amin(dim=over, keepdim=True), events.amax(dim=over, keepdim=True)
        span = (high - low).clamp(min=1e-6)
        for name, scaled in (
            ("standardising the events", (events - mean) / std),
            ("scaling the events to [-1, 1]", 2 * (events - low) / span - 1),
        ):
            yield f"{name} (a normaliser was forgotten)", torch.where(free, scaled, events)


def _backwards(path: NoisePath) -> NoisePath:
    """The path of a network whose time runs the other way."""
    if path.kind == "flow" and path.da is not None and path.db is not None:
        unit = (path.times[-1] - path.times[0]).abs() / (path.b[-1] - path.b[0])
        return replace(path, times=unit - path.times, da=-path.da, db=-path.db)
    return replace(path, times=path.times.flip(0))
