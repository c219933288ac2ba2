"""How right the numbers of ``rrpolicy diff`` are where the answer is known: mixtures of Gaussians with exact scores.

    python examples/measure_diff.py

Errors and coverage are of KL(expert‖base) against the mean log ratio of 200 000 exact events. p-values are of pairs
whose mixtures were fitted to samples, each with four further fits of the base as equal trainings.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from rrpolicy import diff
from rrpolicy.comparison import divergence, draw_samples
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess

VARIANCE, N_COMPONENTS, N_EXACT = 0.1, 4, 200_000
N_FITTED = 4000  # events that a mixture is fitted to
N_NULL = 4
FINE = DiffusionProcess(1000)  # at its level 0 hardly any noise is left
SETTINGS = [(width, n_levels) for width in (2, 8, 32) for n_levels in (20, 100, 1000)]


def means(width: int, seed: int) -> torch.Tensor:
    """Means (K, width) a length of 1.5 from the centre."""
    drawn = torch.randn(N_COMPONENTS, width, generator=torch.Generator().manual_seed(seed))
    return 1.5 * drawn / drawn.norm(dim=1, keepdim=True)


def shift(width: int, nats: float, seed: int) -> torch.Tensor:
    """A shift (width,) that alone makes this KL."""
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(1000 + seed))
    return drawn / drawn.norm() * (2 * VARIANCE * nats) ** 0.5


def pair(width: int, process: DiffusionProcess, seed: int) -> list[GaussianMixtureModel]:
    """A base, and an expert whose modes are moved and weighted the other way round."""
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    moved = means(width, seed) + shift(width, 0.5, seed)
    return [
        GaussianMixtureModel(means(width, seed), VARIANCE, weights, process),
        GaussianMixtureModel(moved, VARIANCE, weights.flip(0), process),
    ]


def exact_kl(width: int, seed: int) -> float:
    """KL(expert‖base) from exact events and densities."""
    base, expert = pair(width, FINE, seed)
    x0 = expert.sample(N_EXACT, torch.Generator().manual_seed(seed))
    t = torch.zeros(N_EXACT, dtype=torch.int64)
    return float((expert.log_prob(x0, t) - base.log_prob(x0, t)).mean())


def fitted(centre: torch.Tensor, seed: int, process: DiffusionProcess) -> GaussianMixtureModel:
    """A mixture whose means are those of `N_FITTED` events: a training that saw other data."""
    noise = torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed))
    return GaussianMixtureModel(centre + noise * (VARIANCE * N_COMPONENTS / N_FITTED) ** 0.5, VARIANCE, process=process)


def errors_and_coverage(width: int, n_levels: int, n_draws: int, n_samples: int) -> str:
    """One row: KL, its error, and how often intervals hold it, at exact events and at sampled ones."""
    base, expert = pair(width, DiffusionProcess(n_levels), width)
    wanted, cells = exact_kl(width, width), []
    for sampled in (False, True):
        found = []
        for draw in range(n_draws):
            generator = torch.Generator().manual_seed(draw)
            x0 = (
                draw_samples(base, expert, n_samples, seed=draw).expert
                if sampled
                else expert.sample(n_samples, generator)
            )
            found.append(divergence(expert, base, x0, draw).total)
        error = np.mean([one.value for one in found]) / wanted - 1
        covered = np.mean([one.low <= wanted <= one.high for one in found])
        cells += [f"{error:+.1%}", f"{covered:.0%}"]
    return f"| {width} | {n_levels} | {wanted:.3f} | {' | '.join(cells)} |"


def p_values(width: int, nats: float, n_pairs: int, n_samples: int) -> list[float]:
    """p of pairs whose expert is a fit of the base moved by this KL."""
    process, found = DiffusionProcess(20), []
    for i in range(n_pairs):
        seed, centre = 10_000 * width + 100 * i, means(width, i)
        base, *null = (fitted(centre, seed + k, process) for k in range(1 + N_NULL))
        expert = fitted(centre + shift(width, nats, i), seed + 50, process)
        arguments = {"n_samples": n_samples, "n_rewards": 0, "seed": i}  # all events are sampled alike
        found.append(diff(base, expert, null=null, **arguments).null.p_value)
    return found


def print_errors(n_draws: int, n_samples: int) -> None:
    """Print the first table."""
    print(f"KL(expert‖base) of {n_draws} draws of {n_samples} events; seeds 0 to {n_draws - 1}.\n")
    print("| D | T | exact KL | error, exact events | coverage | error, sampled events | coverage |")
    print("|---|---|---|---|---|---|---|")
    for width, n_levels in SETTINGS:
        print(errors_and_coverage(width, n_levels, n_draws, n_samples), flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-draws", type=int, default=40)
    parser.add_argument("--n-samples", type=int, default=512)
    parser.add_argument("--only-p", action="store_true", help="the second table alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.only_p:
        print_errors(options.n_draws, options.n_samples)
    print(f"\nPairs of fitted mixtures, {N_NULL} equal trainings each; pair i has seed i.\n")
    print("| D | difference | p < .01 | p < .05 | largest p |")
    print("|---|---|---|---|---|")
    for width in (2, 8, 32):
        for nats, n in ((0.0, 4 * options.n_draws), (0.2, options.n_draws)):
            p = np.array(p_values(width, nats, n, options.n_samples // 2))
            counts = f"{int((p < 0.01).sum())} of {n} | {int((p < 0.05).sum())} of {n}"
            print(f"| {width} | {nats:g} nats | {counts} | {p.max():.2g} |", flush=True)


if __name__ == "__main__":
    main()
