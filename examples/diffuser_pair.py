"""
The setting of Nuti et al. 2023 with models of Diffuser's kind: windows of 32 rows, 20 noise levels, a temporal U-Net.

Two planners learn walks in a square: those of the base lead anywhere, those of the expert, which starts from the base's
weights, to one goal. Their checkpoints have Diffuser's layout (``state_<step>.pt`` with groups ``model`` and ``ema``)
and are read again as data; a folder that holds some already is loaded and not trained. Then: bridge, check, extract,
steer, measure.

    python examples/diffuser_pair.py --out runs/diffuser_pair
    python examples/diffuser_pair.py --out runs/quick --quick
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rrpolicy import RewardExtractor
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.sampling import sample_model
from rrpolicy.models import check_pair, from_diffuser, load_diffuser, steer
from rrpolicy.models.conditional_unet import ConditionalUnet

HORIZON, N_LEVELS, ACTIONS, OBSERVATIONS = 32, 20, 2, 2
NAMES = ("base", "expert")
GOAL, REACHED = torch.tensor([0.6, 0.6]), 0.2  # the expert's, and how near to it a walk must end
Sizes = dict[str, Any]
FULL: Sizes = {
    "down_dims": (32, 64, 128),
    "base": 800,  # gradient steps
    "expert": 400,
    "extraction": 2000,
    "buffer": 6144,
    "samples": 256,
}
QUICK: Sizes = {"down_dims": (8, 16), "base": 4, "expert": 3, "extraction": 2, "buffer": 64, "samples": 8}


class TemporalUnet(nn.Module):
    """
    Diffuser's network, called with (x, cond, time): Diffusion Policy's without a condition, whose blocks the embedded
    time only shifts. Its weights have the names of the latter.
    """

    def __init__(self, down_dims: tuple[int, ...]) -> None:
        super().__init__()
        width = ACTIONS + OBSERVATIONS
        self.unet = ConditionalUnet(width, 0, down_dims, kernel_size=5, step_embed_dim=down_dims[0], scales=False)

    def forward(self, x: Tensor, cond: Any, time: Tensor) -> Tensor:
        return self.unet(x, time)


class GaussianDiffusion(nn.Module):
    """What Diffuser keeps beside its network."""

    horizon, observation_dim, action_dim = HORIZON, OBSERVATIONS, ACTIONS
    predict_epsilon, clip_denoised = True, True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        process, levels = DiffusionProcess(N_LEVELS, "cosine"), torch.arange(N_LEVELS)
        self.register_buffer("alphas_cumprod", process.alpha(levels) ** 2)

    def loss(self, x0: Tensor) -> Tensor:
        """Noise is predicted; the first observation is given and does not count."""
        t, noise = torch.randint(N_LEVELS, (len(x0),)), torch.randn_like(x0)
        alpha = self.alphas_cumprod[t].sqrt().view(-1, 1, 1)
        x = alpha * x0 + (1 - alpha**2).sqrt() * noise
        x[:, 0, ACTIONS:] = x0[:, 0, ACTIONS:]
        error = (self.model(x, {}, t) - noise) ** 2
        error[:, 0, ACTIONS:] = 0
        return error.mean()


def windows(n: int, name: str, generator: torch.Generator) -> Tensor:
    """Rows [action, observation] of n walks of the base or the expert from anywhere in the square ±1."""
    place, anywhere = (2 * torch.rand(2, n, 2, generator=generator) - 1).unbind()
    goal, rows = GOAL if name == "expert" else anywhere, []
    for _ in range(HORIZON):
        action = (0.5 * (goal - place) + 0.1 * torch.randn(n, 2, generator=generator)).clamp(-1, 1)
        rows.append(torch.cat([action, place], dim=1))
        place = (place + 0.3 * action).clamp(-1, 1)
    return torch.stack(rows, dim=1)


def planner(out: Path, name: str, sizes: Sizes, seed: int) -> GaussianDiffusion:
    """The base or the expert by its checkpoint, trained first where there is none."""
    torch.manual_seed(seed)
    diffusion = GaussianDiffusion(TemporalUnet(sizes["down_dims"]))
    if not (out / name).is_dir():
        if name == "expert":
            load_diffuser(diffusion, out / "base")
        train(diffusion, name, sizes[name], seed, out / name)
    return load_diffuser(diffusion, out / name)


def train(diffusion: GaussianDiffusion, name: str, n_steps: int, seed: int, folder: Path) -> None:
    """Train the base or the expert, with averaged weights beside its own, and write a checkpoint as Diffuser does."""
    generator = torch.Generator().manual_seed(seed)
    averaged = torch.optim.swa_utils.AveragedModel(
        diffusion, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
    )
    optimizer = torch.optim.Adam(diffusion.parameters(), 5e-4 if name == "expert" else 1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        diffusion.loss(windows(32, name, generator)).backward()
        optimizer.step()
        scheduler.step()
        averaged.update_parameters(diffusion)
    folder.mkdir(parents=True)
    state = {"step": n_steps, "model": diffusion.state_dict(), "ema": averaged.module.state_dict()}
    torch.save(state, folder / f"state_{n_steps}.pt")


def ends(diffusion: GaussianDiffusion, starts: Tensor, seed: int) -> Tensor:
    """Last places (n, 2) of plans, sampled as Diffuser does: all levels in turn, with new noise at each."""
    generator = torch.Generator().manual_seed(seed)
    model = from_diffuser(diffusion)
    plans = sample_model(model, clean=starts, generator=generator, n_sampling_steps=N_LEVELS, solver="ddpm")
    return plans[:, -1, ACTIONS:]


def energy_distance(one: Tensor, other: Tensor) -> float:
    """2 E‖X - Y‖ - E‖X - X'‖ - E‖Y - Y'‖ (Székely & Rizzo 2013); 0 for equal distributions."""
    own = sum(torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (one, other))
    return float(2 * torch.cdist(one, other).mean() - own)


def main(out: Path, seed: int = 0, quick: bool = False) -> dict[str, float]:
    """
    Train or load, extract, steer; prints and returns what was measured.

    :param out: folder of the checkpoints ``base`` and ``expert`` and of ``reward.zip``
    """
    sizes, begin = QUICK if quick else FULL, time.process_time()
    base, expert = (planner(out, name, sizes, seed + i) for i, name in enumerate(NAMES))
    generator = torch.Generator().manual_seed(seed + 2)
    data, held_out = ([windows(n, name, generator) for name in NAMES] for n in (sizes["buffer"], 128))
    models = from_diffuser(base), from_diffuser(expert)
    if not quick:
        check_pair(*models, *held_out)
    extractor = RewardExtractor(
        *models, heads=["window"], buffer_size=sizes["buffer"], value_coef=0.0, n_epochs=1000, batch_size=64, seed=seed
    ).learn(torch.cat(data), sizes["extraction"], log_interval=0)
    extractor.reward.save(out / "reward.zip")
    steering = {"n_events": min(64, sizes["samples"]), "n_sampling_steps": N_LEVELS, "solver": "ddpm"}
    check = extractor.check_steering(torch.cat(held_out), **steering)
    measured = {"R² at held-out data": check.recorded, "R² where the steered base goes": check.steered}

    starts = windows(sizes["samples"], "base", generator)
    wanted = ends(expert, starts, seed + 3)
    base_ends = ends(base, starts, seed + 4)
    base.model = steer(models[0], extractor.reward)  # what a user of Diffuser puts into its planner
    for name, places in (("base", base_ends), ("steered", ends(base, starts, seed + 4)), ("expert", wanted)):
        distance = (places - GOAL).norm(dim=1)
        measured[f"{name}: share at the goal"] = float((distance < REACHED).float().mean())
        measured[f"{name}: distance to the goal"] = float(distance.mean())
        if name != "expert":
            measured[f"{name}: energy distance to the expert"] = energy_distance(places, wanted)
    for name, value in measured.items():
        print(f"{name}: {value:.3f}")
    print(f"{time.process_time() - begin:.0f} CPU-seconds")
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/diffuser_pair"), help="folder of checkpoints and reward")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    arguments = parser.parse_args()
    main(arguments.out, arguments.seed, arguments.quick)
