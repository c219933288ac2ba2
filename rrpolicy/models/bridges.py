"""Models of widely used libraries as score models; nothing of those libraries is imported, only attributes are read.

Here: denoising-diffusion-pytorch, k-diffusion, torchcfm and flow_matching, and pairs that one classifier-free network
makes. `models.diffuser` has Diffuser, `models.diffusers` the networks of diffusers and of Diffusion Policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rrpolicy.models.foreign import Call, ForeignModel, Inputs, Prediction, from_module
from rrpolicy.models.paths import NoisePath, cosine_ratios, flow, ve, vp

OBJECTIVES: dict[str, Prediction] = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
Order = Literal["x, t", "t, x", "cat"]


def from_denoising_diffusion_pytorch(diffusion: Any, name: str = "") -> ForeignModel:
    """
    A score model of denoising-diffusion-pytorch's ``GaussianDiffusion`` or ``GaussianDiffusion1D``.

    Events are in the network's order of axes, (C, H, W), (C, L) or, without ``channel_first``, (L, C), and in its
    units: where ``auto_normalize`` is on, as it is by default, an event is 2 · data - 1. The fingerprint tells it, so
    that models with and without it are no pair.

    :param diffusion: the trained object, of an ``EMA`` its ``ema_model``
    :param name: part of the fingerprint: models of one normaliser should have one name
    :raises ValueError: for another object, for self-conditioning, or an objective that is not known
    """
    table, network, objective = (
        attribute(diffusion, "denoising-diffusion-pytorch's GaussianDiffusion", what)
        for what in ("alphas_cumprod", "model", "objective")
    )
    if getattr(diffusion, "self_condition", False) or getattr(network, "self_condition", False):
        raise ValueError(
            "self_condition is on: what the network says depends on what it said before, which is no score of x and t"
        )
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}, wanted one of {', '.join(OBJECTIVES)}")
    doubled = float(diffusion.normalize(torch.zeros(1))) != 0
    return from_module(
        network,
        vp(table),
        OBJECTIVES[objective],
        _shape_of(diffusion),
        clip=1.0,
        name=" ".join(part for part in (name, "auto_normalize" if doubled else "") if part),
    )


def from_k_diffusion(
    denoiser: Callable[..., Any],
    event_shape: Sequence[int],
    sigmas: Sequence[float] | Tensor | None = None,
    **options: Any,
) -> ForeignModel:
    """
    A score model of k-diffusion's denoisers D(x, σ), or of any with EDM's preconditioning (Karras et al. 2022).

    :param denoiser: ``layers.Denoiser``, ``external.VDenoiser``, ``external.CompVisDenoiser`` or the like
    :param event_shape: of an event, in the units that the network was trained in
    :param sigmas: σ (T,) of the noise levels, growing; None: those of `models.ve`, within ``sigma_min`` and
        ``sigma_max`` of a denoiser that has them
    :param options: as `from_module` takes them
    """
    levels = cosine_ratios() if sigmas is None else torch.as_tensor(sigmas, dtype=torch.float64)
    if sigmas is None and hasattr(denoiser, "sigma_min") and hasattr(denoiser, "sigma_max"):
        low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
        levels = levels[(levels >= low) & (levels <= high)]
        if len(levels) < 2:
            raise ValueError(f"the denoiser knows σ from {low:g} to {high:g} only: pass sigmas=...")
    return from_module(denoiser, ve(levels), "denoiser", event_shape, **options)


def from_flow_matching(
    module: Callable[..., Any],
    event_shape: Sequence[int],
    order: Order = "x, t",
    scheduler: Callable[[Tensor], Any] | None = None,
    noise_at: Literal[0, 1] = 0,
    **options: Any,
) -> ForeignModel:
    """
    A score model of a velocity field that torchcfm's or flow_matching's classes trained: noise is at time 0.

    Noise and events must have been drawn independently of each other. Pairs chosen by minibatch optimal transport or
    Schrödinger bridges (torchcfm's classes with those names) make a velocity that tells no score; nothing in the
    network shows it, and `check_score_model` rarely does.

    :param module: velocity network
    :param event_shape: of an event
    :param order: how it is called: ``"x, t"`` (flow_matching), ``"t, x"`` (torchcfm's U-Net, `torchdyn`), or ``"cat"``,
        the time as a last column of x (torchcfm's MLP)
    :param scheduler: of flow_matching's ``AffineProbPath``; None: a straight path (flow_matching's
        ``CondOTScheduler``, torchcfm's ``ConditionalFlowMatcher`` and ``TargetConditionalFlowMatcher`` with ``sigma`` 0
        or small)
    :param noise_at: 1 for velocities that point to the noise, at time 1 (openpi, SmolVLA)
    :param options: as `from_module` takes them
    :raises ValueError: for an unknown order
    """
    if order not in get_args(Order):
        raise ValueError(f"order is {order!r}, wanted one of {get_args(Order)}")
    path = flow(noise_at=noise_at) if scheduler is None else affine(scheduler)
    call, inputs = _ORDERS[order]
    return from_module(module, path, "velocity", event_shape, **{"call": call, "inputs": inputs, **options})


def affine(scheduler: Callable[[Tensor], Any]) -> NoisePath:
    """
    The noise path of one of flow_matching's schedulers.

    :param scheduler: gives ``alpha_t``, ``sigma_t`` and their derivatives at times, and has ``snr_inverse``
    :raises ValueError: for an object that does not
    """
    inverse = attribute(scheduler, "flow_matching's scheduler", "snr_inverse")
    times = inverse(1 / cosine_ratios()).double()
    times = times[(times > 0) & (times < 1)]
    at = scheduler(times)
    tables = [attribute(at, "flow_matching's SchedulerOutput", name) for name in _SCHEDULER_OUTPUT]
    a, b, da, db = (torch.as_tensor(table, dtype=torch.float64).expand_as(times) for table in tables)
    return NoisePath("flow" if torch.allclose(a + b, torch.ones_like(a)) else "affine", times, a, b, da, db)


_SCHEDULER_OUTPUT = ("alpha_t", "sigma_t", "d_alpha_t", "d_sigma_t")


def classifier_free_pair(
    module: Callable[..., Any],
    path: NoisePath,
    prediction: Prediction,
    event_shape: Sequence[int],
    *,
    condition: Tensor | None = None,
    n_condition: int = 0,
    null: Tensor | None = None,
    call: Call | None = None,
    **options: Any,
) -> tuple[ForeignModel, ForeignModel]:
    """
    Base and expert that one network makes: the unconditional and the conditional one.

    ρ is log p(x | condition) / p(x), of one condition, or of any one if the condition is part of the event.

    :param module: trained with the condition dropped now and then
    :param path: noise path, of `models.paths`
    :param prediction: as `from_module` takes it
    :param event_shape: of what is noised
    :param condition: the expert's one condition, without a batch axis; events are of ``event_shape``
    :param n_condition: instead of ``condition``: numbers of any condition, pinned entries after the flattened event
    :param null: what the network gets in place of a condition, without a batch axis; None: None itself
    :param call: ``lambda module, x, time, condition: ...``; None: ``module(x, time, condition)``
    :param options: as `from_module` takes them
    :return: base and expert. A steered base is called with (x, time), or (x, time, condition) with ``n_condition``
    :raises ValueError: unless exactly one of ``condition`` and ``n_condition`` is given
    """
    if (condition is None) == (n_condition == 0):
        raise ValueError("wanted either one condition=... or n_condition=..., the numbers of any condition")
    base, expert = (
        from_module(
            _Conditional(module, call, given, always),
            path,
            prediction,
            event_shape,
            n_condition=n_condition,
            **options,
        )
        for given, always in ((null, True), (condition, n_condition == 0))
    )
    return base, expert


class _Conditional(nn.Module):
    """A network with a fixed condition, or with that of the call."""

    def __init__(self, module: Callable[..., Any], call: Call | None, condition: Tensor | None, fixed: bool) -> None:
        super().__init__()
        self.module, self._call, self._condition, self._fixed = module, call, condition, fixed

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Any:
        if self._fixed:
            known = self._condition
            condition = None if known is None else known.to(x.device).expand(len(x), *known.shape)
        if self._call is None:
            return self.module(x, time, condition)
        return self._call(self.module, x, time, condition)


def attribute(value: Any, kind: str, name: str) -> Any:
    """
    An attribute that a library's class has.

    :raises ValueError: for an object without it, saying what was wanted
    """
    found = getattr(value, name, None)
    if found is None:
        raise ValueError(f"{type(value).__name__} has no {name}, wanted {kind}")
    return found


def _shape_of(diffusion: Any) -> tuple[int, ...]:
    channels = int(attribute(diffusion, "denoising-diffusion-pytorch's GaussianDiffusion", "channels"))
    if hasattr(diffusion, "seq_length"):
        shape = (channels, int(diffusion.seq_length))
        return shape if getattr(diffusion, "channel_first", True) else shape[::-1]
    size = attribute(diffusion, "denoising-diffusion-pytorch's GaussianDiffusion", "image_size")
    return (channels, *((size, size) if isinstance(size, int) else (int(n) for n in size)))


def by_name(*names: str, wanted: tuple[str, ...] = ("x", "t")) -> Inputs:
    """What tells x and time of a call whose arguments are given by place or by name."""

    def read(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        given = dict(zip(names, args, strict=False)) | kwargs
        return tuple(given[name] for name in wanted)

    return read


def _time_first(module: Any, x: Tensor, time: Tensor) -> Any:
    return module(time, x)


def _concatenated(module: Any, x: Tensor, time: Tensor) -> Any:
    return module(torch.cat([x, time.view(-1, *(1,) * (x.ndim - 1)).expand(*x.shape[:-1], 1)], dim=-1))


def _from_concatenated(x: Tensor) -> tuple[Any, ...]:
    return x[..., :-1], x[..., -1].flatten(1)[:, 0] if x.ndim > 2 else x[..., -1]


_ORDERS: dict[str, tuple[Call | None, Inputs]] = {
    "x, t": (None, by_name("x", "t")),
    "t, x": (_time_first, by_name("t", "x")),
    "cat": (_concatenated, _from_concatenated),
}
