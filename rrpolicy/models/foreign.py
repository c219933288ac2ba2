"""A network that somebody else trained, as a score model.

`from_module` needs to know four things: the noise path, what the network predicts, the shape of an event, and how it is
called. Nothing else in the library knows that the model is not its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from rrpolicy.common.device import device_of
from rrpolicy.data.layout import TrajectoryLayout
from rrpolicy.data.normalizer import Normalizer
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.models.paths import NoisePath

Prediction = Literal["eps", "x0", "v", "score", "denoiser", "velocity"]
Call = Callable[..., Any]
"""(module, x, time) or, with a condition, (module, x, time, condition) -> what the module gives."""
Inputs = Callable[..., tuple[Any, ...]]
"""The arguments of a call of the module -> x and time, or x, time and condition."""


class ForeignModel:
    """
    A score model of any network; `from_module` is this class.

    With a condition of n numbers an event is flat, (event, condition), and the condition's entries are pinned.

    :param module: the network; it is put into evaluation mode and left where it is
    :param path: noise path, of `models.paths`: ``vp``, ``ve``, ``edm`` or ``flow``
    :param prediction: ``"eps"``; ``"x0"`` or ``"denoiser"``, the clean event; ``"v"`` (Salimans & Ho 2022);
        ``"score"``, ∇ log p at x; ``"velocity"``, dx/dtime
    :param event_shape: of what is noised, in the network's own (normalised) units
    :param call: how it is called, ``lambda module, x, time: module(x, time[:, None])``; None: ``module(x, time)``, and
        ``module(x, time, condition)`` with a condition
    :param n_condition: numbers of the condition, which follow the flattened event as pinned entries; 0: there is none
    :param negate: whether the network gives the negative of what ``prediction`` says
    :param pinned: bool ``event_shape``: entries that arrive clean in every x, such as an inpainted first state
    :param clip: largest magnitude of a clean entry, to which samplers clip
    :param name: part of the fingerprint: models of one normaliser should have one name
    :param inputs: the opposite of ``call``, for `steer`: x and time (and condition) of the arguments that the module is
        called with; None: the first two (three)
    :param layout: what the windows hold, where events are windows of rows ``[action, observation]``
    :param normalizer: from environment units to events
    :raises ValueError: for an unknown prediction, one that the path cannot have, or a pinned mask or a layout of
        another shape
    """

    def __init__(
        self,
        module: Callable[..., Any],
        path: NoisePath,
        prediction: Prediction,
        event_shape: Sequence[int],
        *,
        call: Call | None = None,
        n_condition: int = 0,
        negate: bool = False,
        pinned: Tensor | None = None,
        clip: float | None = None,
        name: str = "",
        inputs: Inputs | None = None,
        layout: TrajectoryLayout | None = None,
        normalizer: Normalizer | None = None,
    ) -> None:
        self.module = module.eval() if isinstance(module, nn.Module) else module
        self.path, self.prediction, self.negate, self.clip, self.name = path, prediction, negate, clip, name
        self._check_conventions()
        self.inner_shape = tuple(int(n) for n in event_shape)
        self.n_condition = n_condition
        self._call, self.inputs = call, inputs
        self.layout, self.normalizer = layout, normalizer
        self._pinned = torch.zeros(self.inner_shape, dtype=torch.bool) if pinned is None else pinned.bool()
        if tuple(self._pinned.shape) != self.inner_shape:
            raise ValueError(f"pinned has shape {tuple(self._pinned.shape)}, wanted event_shape, {self.inner_shape}")
        if layout is not None and tuple(layout.event_shape) != self.event_shape:
            raise ValueError(f"the layout has events of shape {layout.event_shape}, the model {self.event_shape}")

    # ------------------------------------------------------------------ what a score model has

    @property
    def levels(self) -> NoisePath:
        """The path of the events that :meth:`eps` takes."""
        return self.path

    @property
    def steerable(self) -> bool:
        """Whether events are what the network takes, so that `steer` can give it back."""
        return True

    @property
    def process(self) -> DiffusionProcess:
        """Noise levels."""
        return self.levels.process

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event; flat where there is a condition."""
        if not self.n_condition:
            return self.inner_shape
        return (int(torch.Size(self.inner_shape).numel()) + self.n_condition,)

    @property
    def pinned(self) -> Tensor:
        """Bool ``event_shape``: entries that arrive clean."""
        if not self.n_condition:
            return self._pinned.to(self.device)
        given = torch.ones(self.n_condition, dtype=torch.bool, device=self.device)
        return torch.cat([self._pinned.to(self.device).flatten(), given])

    @property
    def device(self) -> torch.device:
        """Where the network computes; the CPU for a function."""
        return device_of(self.module)

    @torch.no_grad()
    def eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """
        Predicted noise (B, *event_shape) for ``x_t`` (B, *event_shape) at levels ``t`` (B,).

        :raises ValueError: when the network gives another shape, or numbers that are not finite
        """
        event, condition = self.split(x_t)
        c = _shaped(self.path.to(t.device).c[t], event)
        x = torch.where(self._pinned.to(event.device), event, event * c)
        eps = self.eps_from_output(x, t, self._output(x, t, condition))
        return self.joined(eps, torch.zeros_like(condition))

    def with_conventions(
        self, path: NoisePath | None = None, prediction: Prediction | None = None, negate: bool | None = None
    ) -> Self:
        """
        The same network with some conventions changed.

        :param path: such as other levels, ``model.path.between(0.01, 100)``
        :param prediction: as in the constructor
        :param negate: as in the constructor
        :raises ValueError: for a prediction that the path cannot have
        """
        other = copy.copy(self)
        other.path = self.path if path is None else path
        other.prediction = self.prediction if prediction is None else prediction
        other.negate = self.negate if negate is None else negate
        other._check_conventions()
        return other

    def _check_conventions(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"prediction is {self.prediction!r}, wanted one of {', '.join(get_args(Prediction))}")
        if self.prediction == "velocity" and self.path.da is None:
            raise ValueError("a velocity is that of a path with known derivatives: models.paths.flow or ve")
        if self.prediction == "v" and self.path.kind != "vp":
            raise ValueError(f"prediction v is defined for variance-preserving paths, the path is {self.path.kind!r}")

    def fingerprint(self) -> str:
        """Equal for models that share name, event shape, condition and noise levels."""
        condition = f";condition={self.n_condition}" if self.n_condition else ""
        pinned = f";pinned={int(self._pinned.sum())}" if self._pinned.any() else ""
        units = "" if self.normalizer is None else f";normalizer={self.normalizer.fingerprint()}"
        event = f"event_shape={self.inner_shape}{condition}{pinned}{units}"
        return f"name={self.name};{event};schedule={self.process.schedule}"

    # ------------------------------------------------------------------ pieces that steering needs

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The event (B, *inner_shape) and its condition (B, n_condition)."""
        if not self.n_condition:
            return x, x.new_zeros((len(x), 0))
        return x[:, : -self.n_condition].reshape(len(x), *self.inner_shape), x[:, -self.n_condition :]

    def joined(self, event: Tensor, condition: Tensor) -> Tensor:
        """What :meth:`split` takes apart."""
        return torch.cat([event.flatten(1), condition], dim=1) if self.n_condition else event

    def eps_from_output(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """ε̂ from what the network gave at ``x`` = a·x0 + b·ε, in the path's own units."""
        a, b = (_shaped(table[t], x) for table in self._tables(t))
        if self.negate:
            output = -output
        if self.prediction == "eps":
            eps = output
        elif self.prediction in ("x0", "denoiser"):
            eps = (x - a * output) / b
        elif self.prediction == "score":
            eps = -b * output
        elif self.prediction == "v":
            eps = b * x + a * output
        else:
            da, db = self._derivatives(t, x)
            eps = (a * output - da * x) / (a * db - b * da)
        return torch.where(self._pinned.to(eps.device), 0.0, eps)

    def output_change(self, t: Tensor, eps_change: Tensor) -> Tensor:
        """By how much the network's output changes when ε̂ changes; every prediction is linear in ε̂."""
        a, b = (_shaped(table[t], eps_change) for table in self._tables(t))
        if self.prediction == "eps":
            change = eps_change
        elif self.prediction in ("x0", "denoiser"):
            change = -b / a * eps_change
        elif self.prediction == "score":
            change = -eps_change / b
        elif self.prediction == "v":
            change = eps_change / a
        else:
            da, db = self._derivatives(t, eps_change)
            change = (a * db - b * da) / a * eps_change
        return -change if self.negate else change

    def _derivatives(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        path = self.path.to(t.device)
        assert path.da is not None and path.db is not None
        return _shaped(path.da[t], like), _shaped(path.db[t], like)

    def _tables(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b of all levels, on the device of ``t``."""
        path = self.path.to(t.device)
        return path.a, path.b

    def _output(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        time = self.path.to(t.device).times[t]
        time = time.to(x.dtype) if time.is_floating_point() else time
        given = (x, time, condition) if self.n_condition else (x, time)
        output = self.module(*given) if self._call is None else self._call(self.module, *given)
        output = getattr(output, "sample", output)
        if not isinstance(output, Tensor):
            raise ValueError(f"the network gave a {type(output).__name__}, wanted a tensor: pass call=...")
        if output.shape != x.shape:
            raise ValueError(
                f"the network gave shape {tuple(output.shape)} for events of shape {tuple(x.shape)}: wanted the same"
            )
        if not bool(torch.isfinite(output).all()):
            raise ValueError(f"the network gave NaN or infinity at times {sorted(set(time.tolist()))[:5]}")
        return output.to(x.dtype)


def _shaped(table: Tensor, like: Tensor) -> Tensor:
    """Numbers (B,) that broadcast against (B, *event_shape)."""
    return table.to(like).view(-1, *(1,) * (like.ndim - 1))


from_module = ForeignModel
