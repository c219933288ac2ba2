"""How far apart two score models are: relative entropies from the differences of their scores along the diffusion.

KL(p‖q) = ½ ∫ E_p |∇ log p_t - ∇ log q_t|² d(-ln ᾱ_t) (Song, Durkan, Murray, Ermon 2021, theorems 1 and 2). The right
side is the divergence of the two denoising processes: it equals that of the events when both models are exact scores
of noised densities, and is an upper bound for the events that ancestral sampling makes otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rrpolicy.common.stats import Measure, clustered_mean
from rrpolicy.common.torch_mode import usual_torch
from rrpolicy.common.typing import Array
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.score_model import ScoreModel
from rrpolicy.rewards.targets import eps_difference, noised

MAX_LEVELS = 64  # noise levels at which scores are compared
CHUNK = 2048  # events per model call
N_NODES = 4  # of each cubic
MOMENTS = np.array([2.0, 0.0, 2 / 3, 0.0])  # ∫ sᵏ ds over [-1, 1]
MAX_UNEVEN = 2.0  # ratio of neighbouring steps up to which cubics are used


@dataclass(frozen=True, eq=False)
class Divergence:
    """
    KL(first‖second) at events of the first model, nats.

    :param levels: noise levels at which scores were compared (L,), cleanest first
    :param parts: (N, L), what each event and level adds; level 0 also stands for what lies below it
    :param entries: ``event_shape``, what each entry adds, mean over events
    :param groups: (N,) which events belong together, such as those of one episode; None: all are independent
    """

    levels: tuple[int, ...]
    parts: Array
    entries: Array
    groups: Array | None = None

    @property
    def of_events(self) -> Array:
        """What each event adds (N,); their mean is the divergence."""
        return np.asarray(self.parts.sum(axis=1))

    @property
    def total(self) -> Measure:
        """The divergence with its 95 % bootstrap interval over events, or groups of them."""
        return clustered_mean(self.of_events, self.groups)

    def by_level(self) -> list[Measure]:
        """What each level adds, with intervals as :attr:`total`."""
        return [clustered_mean(column, self.groups, n_resamples=200) for column in self.parts.T]


@usual_torch()
def divergence(
    first: ScoreModel,
    second: ScoreModel,
    x0: Tensor,
    seed: int = 0,
    groups: Array | None = None,
    max_levels: int = MAX_LEVELS,
) -> Divergence:
    """
    KL(first‖second) per event.

    :param first: the model whose events ``x0`` are
    :param second: the other model, in the same space
    :param x0: clean events (N, *event_shape) of the first model, normalised
    :param seed: of the noise
    :param groups: (N,) numbers of what belongs together, see `Divergence`
    :param max_levels: noise levels at which scores are compared; of more, they are spread evenly over log SNR
    :raises ValueError: for events of another shape
    """
    if x0.ndim != len(first.event_shape) + 1 or tuple(x0.shape[1:]) != tuple(first.event_shape) or not len(x0):
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, wanted (N, {', '.join(map(str, first.event_shape))})")
    generator = torch.Generator().manual_seed(seed)
    levels = compared_levels(first.process, max_levels)
    weights = level_weights(first.process, levels)
    parts = np.zeros((len(x0), len(levels)))
    entries = torch.zeros(first.event_shape, dtype=torch.float64, device=x0.device)
    for j, (level, weight) in enumerate(zip(levels, weights, strict=True)):
        factor = 0.5 * weight / float(first.process.sigma(level)) ** 2
        for begin in range(0, len(x0), CHUNK):
            clean = x0[begin : begin + CHUNK]
            t = torch.full((len(clean),), level, dtype=torch.int64, device=clean.device)
            squares = factor * eps_difference(first, second, noised(first, clean, t, generator), t).double() ** 2
            parts[begin : begin + CHUNK, j] = squares.flatten(1).sum(dim=1).cpu().numpy()
            entries += squares.sum(dim=0)
    return Divergence(levels, parts, (entries / len(x0)).cpu().numpy(), groups)


def compared_levels(process: DiffusionProcess, max_levels: int = MAX_LEVELS) -> tuple[int, ...]:
    """
    Noise levels at which scores are compared: all, or, of more than ``max_levels``, some evenly spread over log SNR.

    :param max_levels: at least 2
    """
    n = process.n_diffusion_steps
    if max_levels < 2:
        raise ValueError(f"max_levels is {max_levels}, wanted at least 2")
    if n <= max_levels:
        return tuple(range(n))
    every = torch.arange(n)
    log_snr = (2 * (process.alpha(every).double() / process.sigma(every).double()).log()).numpy()
    wanted = np.linspace(log_snr[0], log_snr[-1], max_levels)
    return tuple(sorted({int(np.abs(log_snr - one).argmin()) for one in wanted}))


def level_weights(process: DiffusionProcess, levels: tuple[int, ...]) -> Array:
    """
    Weights (L,) of the levels in ∫ F d(-ln ᾱ) from clean events to pure noise.

    With ᾱ = cos² φ this is ∫ 2 F tan φ dφ over [0, π/2], a smooth function of φ that is 0 at both ends, where F is
    finite and falls as ᾱ. It is integrated by cubics through four neighbouring levels, the two ends included; where
    levels are too unevenly spaced for that, by straight lines.
    """
    chosen = torch.tensor(levels)
    angles = np.arctan2(process.sigma(chosen).double().numpy(), process.alpha(chosen).double().numpy())
    nodes = np.concatenate([[0.0], angles, [np.pi / 2]])
    weights, n = np.zeros(len(nodes)), len(nodes)
    for i in range(n - 1):
        first = min(max(i - 1, 0), n - N_NODES)
        near = nodes[first : first + N_NODES]
        middle, half = (nodes[i] + nodes[i + 1]) / 2, (nodes[i + 1] - nodes[i]) / 2
        steps = np.diff(near)
        if steps.max() > MAX_UNEVEN * steps.min():
            weights[i : i + 2] += half
            continue
        powers = np.vander((near - middle) / half, N_NODES, increasing=True)
        weights[first : first + N_NODES] += np.linalg.solve(powers.T, half * MOMENTS)
    return np.asarray(2 * np.maximum(weights[1:-1], 0.0) * np.tan(angles))


def total_variation_bound(nats: float) -> float:
    """
    An upper bound of the total variation of two distributions from their divergence: the smaller of Pinsker's
    √(KL/2) and Bretagnolle and Huber's (1979) √(1 - e^-KL).

    :param nats: KL of one from the other, at least 0
    :return: in [0, 1]
    """
    nats = max(float(nats), 0.0)
    return min(math.sqrt(nats / 2), math.sqrt(-math.expm1(-nats)), 1.0)
