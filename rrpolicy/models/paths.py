"""Noise paths: how much of an event and how much noise there is at each time that a network knows.

Every Gaussian path x = a·x0 + b·ε becomes variance preserving when it is divided by c = √(a² + b²): ᾱ = a²/c², and ε
stays what it is, so log density ratios stay what they are. A path therefore is a `DiffusionProcess` together with the
times that its network is called with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rrpolicy.common.device import precise
from rrpolicy.diffusion.process import DiffusionProcess

N_LEVELS = 50  # of a path in continuous time, spread as those of the cosine schedule


@dataclass(frozen=True, eq=False)
class NoisePath:
    """
    A Gaussian path x = a·x0 + b·ε at some noise levels, cleanest first.

    :param kind: ``"vp"`` where a² + b² = 1, ``"ve"`` where a = 1, ``"flow"`` where a + b = 1, else ``"affine"``
    :param times: (T,) what the network is told at each level; integers stay integers
    :param a: (T,) share of the clean event
    :param b: (T,) share of the noise
    :param da: (T,) derivative of ``a`` with respect to the time, for velocities; None where it is not known
    :param db: (T,) that of ``b``
    :raises ValueError: for tables of different lengths, or levels whose noise does not grow
    """

    kind: str
    times: Tensor
    a: Tensor
    b: Tensor
    da: Tensor | None = None
    db: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {tuple(table.shape) for table in (self.times, self.a, self.b, self.da, self.db) if table is not None}
        if len(shapes) != 1 or len(self.times.shape) != 1 or len(self.times) < 2:
            raise ValueError(
                f"a path's tables have shapes {sorted(shapes)}, wanted one shape (T,) of at least two levels"
            )
        if not bool(((self.a > 0) & (self.b > 0)).all()):
            raise ValueError("a path's levels must hold something of the event and of the noise: a > 0 and b > 0")
        if not bool(self.times.diff().gt(0).all() or self.times.diff().lt(0).all()):
            raise ValueError("a path's times must grow from level to level, or fall")
        if not bool((self.b / self.a).diff().gt(0).all()):
            raise ValueError("a path's levels must be given from the cleanest to the noisiest: b / a must grow")

    def __len__(self) -> int:
        return len(self.times)

    @cached_property
    def c(self) -> Tensor:
        """√(a² + b²) (T,), by which the path is divided."""
        return (self.a**2 + self.b**2).sqrt()

    @cached_property
    def process(self) -> DiffusionProcess:
        """The variance-preserving process of the same ε."""
        table = (self.a / self.c) ** 2
        return DiffusionProcess.from_alphas_cumprod(table.tolist(), "eps")

    def to(self, device: torch.device) -> NoisePath:
        """The same path with its tables on a device, made once for each."""
        if device == self.a.device:
            return self
        if device not in self._elsewhere:
            tables = (self.times, self.a, self.b, self.da, self.db)
            self._elsewhere[device] = NoisePath(self.kind, *(_moved(table, device) for table in tables))  # type: ignore[arg-type]
        return self._elsewhere[device]

    @cached_property
    def _elsewhere(self) -> dict[torch.device, NoisePath]:
        return {}

    @cached_property
    def _rises(self) -> bool:
        return bool(self.times[-1] > self.times[0])

    def between(self, lowest: float, highest: float) -> NoisePath:
        """
        The levels whose ratios of noise to signal b / a lie within bounds.

        :param lowest: least ratio
        :param highest: largest one
        :raises ValueError: where fewer than two are left
        """
        kept = (self.b / self.a >= lowest) & (self.b / self.a <= highest)
        tables = (self.times, self.a, self.b, self.da, self.db)
        return NoisePath(self.kind, *(None if table is None else table[kept] for table in tables))  # type: ignore[arg-type]

    def at(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """
        Levels between which times lie, and how far: for networks that are called at times between the levels.

        :param time: (B,) as the network is told
        :return: a level (B,) int64 and the share (B,) of the way to the next one, in time; where ``time`` is
        """
        here = self.to(time.device)
        known, wanted = here.times.to(precise(time.device)), time.detach().to(precise(time.device))
        rising, wanted = (known, wanted) if self._rises else (-known, -wanted)
        level = (torch.searchsorted(rising, wanted.contiguous(), right=True) - 1).clamp(0, len(self) - 2)
        share = (wanted - rising[level]) / (rising[level + 1] - rising[level])
        return level, share.clamp(0, 1)


def _moved(table: Tensor | None, device: torch.device) -> Tensor | None:
    if table is None:
        return None
    return table.to(device, precise(device)) if table.is_floating_point() else table.to(device)


def vp(alphas_cumprod: Sequence[float] | Tensor, times: Sequence[float] | Tensor | None = None) -> NoisePath:
    """
    A variance-preserving path (DDPM, Diffuser, Diffusion Policy, Stable Diffusion).

    :param alphas_cumprod: ᾱ (T,) of each level, falling
    :param times: what the network is told; None: 0 ... T - 1
    """
    table = _double(alphas_cumprod)
    known = torch.arange(len(table)) if times is None else torch.as_tensor(times)
    return NoisePath("vp", known, table.sqrt(), (1 - table).sqrt())


def ve(sigmas: Sequence[float] | Tensor | None = None, times: Sequence[float] | Tensor | None = None) -> NoisePath:
    """
    A variance-exploding path x = x0 + σ·ε (score networks, EDM, k-diffusion).

    :param sigmas: σ (T,) of each level, growing; None: `N_LEVELS` levels with the cosine schedule's ratios of noise to
        signal, at which extraction works best
    :param times: what the network is told; None: σ itself
    """
    levels = cosine_ratios() if sigmas is None else _double(sigmas)
    ones = torch.ones_like(levels)
    known = levels if times is None else torch.as_tensor(times)
    return NoisePath("ve", known, ones, levels, torch.zeros_like(levels), ones)


def edm(n_levels: int = 40, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoisePath:
    """
    The levels that EDM's sampler visits (Karras et al. 2022, eq. 5).

    :param n_levels: T
    :param sigma_min: least noise
    :param sigma_max: most noise
    :param rho: exponent by which levels are spread
    """
    share = torch.linspace(0, 1, n_levels, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return ve((low + share * (high - low)) ** rho)


def flow(times: Sequence[float] | Tensor | None = None, noise_at: Literal[0, 1] = 1) -> NoisePath:
    """
    A straight path between events and noise (rectified flow, conditional flow matching).

    :param times: (T,) within (0, 1), in any order; None: `N_LEVELS` with the cosine schedule's ratios of noise to
        signal
    :param noise_at: 1: x = (1 - time)·x0 + time·ε, velocity ε - x0 (Stable Diffusion 3, Flux); 0: x = time·x0 +
        (1 - time)·ε, velocity x0 - ε (torchcfm, flow_matching)
    :raises ValueError: for times outside (0, 1)
    """
    if noise_at not in (0, 1):
        raise ValueError(f"noise_at is {noise_at!r}, wanted 0 or 1")
    if times is None:
        ratios = cosine_ratios()
        noise = ratios / (1 + ratios)
    else:
        noise = _double(times) if noise_at == 1 else 1 - _double(times)
        if not bool(((noise > 0) & (noise < 1)).all()):
            raise ValueError("the times of a flow must lie within (0, 1): at the ends there is no noise, or no event")
        noise = noise.sort().values
    ones = torch.ones_like(noise)
    if noise_at == 1:
        return NoisePath("flow", noise, 1 - noise, noise, -ones, ones)
    return NoisePath("flow", 1 - noise, 1 - noise, noise, ones, -ones)


def cosine_ratios(n_levels: int = N_LEVELS) -> Tensor:
    """Noise to signal σ / α (T,) of the cosine schedule (Nichol & Dhariwal 2021), float64, without its last level."""
    process, t = DiffusionProcess(n_levels + 1, "cosine"), torch.arange(n_levels)
    return (process.sigma(t) / process.alpha(t)).double()


def _double(values: Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")
