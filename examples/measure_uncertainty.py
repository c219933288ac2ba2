"""How often intervals of ρ hold the exact ρ, where it is known: pairs of Gaussian mixtures with exact scores.

    python examples/measure_uncertainty.py

For each width and seed there are five extractions by small networks. Compared are the intervals of their ensemble and
those of the last layer of the first one, as the posterior has them and tempered. Coverage is over noised events of both
models at all noise levels, and over events at random places of a box, most of which neither model makes.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch

from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.rewards import Ensemble, LaplaceReward, RewardExtractor, UncertainReward

VARIANCE, BOX, N_LEVELS = 0.1, 3.0, 20
N_MEMBERS, N_EVENTS = 5, 2048
LEVELS, WORST = (0.5, 0.8, 0.95), "coverage of 95% intervals"
NETWORK = {"width": 32, "n_blocks": 2}


def pair(width: int, seed: int) -> tuple[GaussianMixtureModel, GaussianMixtureModel]:
    """Two mixtures of three components, whose modes and weights differ."""
    generator = torch.Generator().manual_seed(seed)
    process = DiffusionProcess(N_LEVELS)
    means = torch.randn(3, width, generator=generator)
    moved = means + 0.3 * torch.randn(3, width, generator=generator)
    weights = torch.tensor([0.5, 0.3, 0.2])
    return (
        GaussianMixtureModel(means, VARIANCE, weights, process),
        GaussianMixtureModel(moved, VARIANCE, weights.flip(0), process),
    )


def events(
    base: GaussianMixtureModel, expert: GaussianMixtureModel, n: int, seed: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Noised events at random levels: of both models, and of random places."""
    generator = torch.Generator().manual_seed(1000 + seed)
    known = torch.cat([model.sample(n // 2, generator) for model in (base, expert)])
    anywhere = BOX * (2 * torch.rand(len(known), *base.event_shape, generator=generator) - 1)
    found = {}
    for name, x0 in (("events of the models", known), ("events anywhere", anywhere)):
        t = torch.randint(N_LEVELS, (len(x0),), generator=generator)
        found[name] = base.process.q_sample(x0, t, torch.randn(x0.shape, generator=generator)), t
    return found


def estimates(
    base: GaussianMixtureModel, expert: GaussianMixtureModel, seed: int, steps: int, n_members: int = N_MEMBERS
) -> dict[str, UncertainReward]:
    """The rewards whose intervals are measured."""
    rewards = []
    for member in range(n_members):
        extractor = RewardExtractor(
            base, expert, buffer_size=4096, window_kwargs=NETWORK, seed=100 * seed + member, learning_rate=5e-3
        )
        rewards.append(extractor.learn(None, steps, log_interval=0).reward)
    return {
        f"ensemble of {n_members}": Ensemble(rewards),
        "last layer tempered": LaplaceReward.fit(rewards[0], base, expert, seed=seed),
        "last layer alone": LaplaceReward.fit(rewards[0], base, expert, seed=seed, tempered=False),
    }


def measured(
    reward: UncertainReward, models: tuple[GaussianMixtureModel, ...], x_t: torch.Tensor, t: torch.Tensor
) -> dict[str, float]:
    """Coverage of the intervals, the error of ρ, and how large the reward says that it is."""
    base, expert = models
    exact = expert.log_prob(x_t, t) - base.log_prob(x_t, t)
    numbers = {}
    for level in LEVELS:
        low, high = reward.interval(x_t, t, level)
        numbers[f"coverage of {level:.0%} intervals"] = float(((low <= exact) & (exact <= high)).float().mean())
    error, spread = reward.middle()(x_t, t) - exact, reward.spread(x_t, t)
    numbers["RMS error"] = float(error.square().mean().sqrt())
    numbers["RMS standard deviation"] = float(spread.square().mean().sqrt())
    numbers["rank correlation of error and standard deviation"] = _rank_correlation(error.abs(), spread)
    return numbers


def _rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    ranks = torch.stack([one.argsort().argsort().double() for one in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def main() -> None:
    """Print the mean over seeds of every number, and the range of coverage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--n-events", type=int, default=N_EVENTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    for width in options.widths:
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for seed in range(options.seeds):
            models = pair(width, seed)
            places = events(*models, options.n_events, seed)
            for name, reward in estimates(*models, seed, options.steps).items():
                for where, (x_t, t) in places.items():
                    for metric, number in measured(reward, models, x_t, t).items():
                        found[f"{name} in {width} dimensions at {where}", metric].append(number)
        for (agent, metric), numbers in found.items():
            mean = sum(numbers) / len(numbers)
            print(f"{agent}: {metric}: {mean:.2f}", flush=True)
            if metric == WORST:
                print(f"{agent}: lowest {metric} of a seed: {min(numbers):.2f}", flush=True)
    print(f"\n{options.seeds} seeds, {time.process_time() - began:.0f} CPU-seconds.")


if __name__ == "__main__":
    main()
