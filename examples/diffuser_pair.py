"""
The setting of Nuti et al. 2023 with models of Diffuser's kind: windows of 32 rows, 20 noise levels, a temporal U-Net.

Two planners learn to walk to one of two goals: the base mostly to the first, the expert mostly to the second. Their
checkpoints have Diffuser's layout (``state_<step>.pt`` with groups ``model`` and ``ema``) and are read again as data;
a folder that holds some already is loaded and not trained. Then: bridge, check, extract, steer, measure.

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
GOALS = torch.tensor([[-0.8, 0.6], [0.8, 0.6]])
SHARES = {"base": 0.25, "expert": 0.75}  # of walks to the second goal
Sizes = dict[str, Any]
FULL: Sizes = {"down_dims": (32, 64, 128, 256), "training": 800, "extraction": 960, "buffer": 6144, "samples": 200}
QUICK: Sizes = {"down_dims": (8, 16), "training": 4, "extraction": 2, "buffer": 64, "samples": 8}


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


def windows(n: int, share: float, generator: torch.Generator) -> Tensor:
    """Rows [action, observation] of n walks from anywhere at the bottom to a goal, within ±1."""
    goal = GOALS[(torch.rand(n, generator=generator) < share).long()]
    place = torch.stack([2 * torch.rand(n, generator=generator) - 1, -torch.rand(n, generator=generator)], dim=1)
    rows = []
    for _ in range(HORIZON):
        action = (0.5 * (goal - place) + 0.1 * torch.randn(n, 2, generator=generator)).clamp(-1, 1)
        rows.append(torch.cat([action, place], dim=1))
        place = (place + 0.3 * action).clamp(-1, 1)
    return torch.stack(rows, dim=1)


def planner(folder: Path, share: float, sizes: Sizes, seed: int) -> GaussianDiffusion:
    """The checkpoint of a folder, trained first where there is none."""
    torch.manual_seed(seed)
    diffusion = GaussianDiffusion(TemporalUnet(sizes["down_dims"]))
    if not folder.is_dir():
        generator = torch.Generator().manual_seed(seed)
        averaged = torch.optim.swa_utils.AveragedModel(
            diffusion, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )
        optimizer = torch.optim.Adam(diffusion.parameters(), 1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, sizes["training"])
        for _ in range(sizes["training"]):
            optimizer.zero_grad()
            diffusion.loss(windows(32, share, generator)).backward()
            optimizer.step()
            scheduler.step()
            averaged.update_parameters(diffusion)
        folder.mkdir(parents=True)
        state = {"step": sizes["training"], "model": diffusion.state_dict(), "ema": averaged.module.state_dict()}
        torch.save(state, folder / f"state_{sizes['training']}.pt")
    return load_diffuser(diffusion, folder)


def ends(diffusion: GaussianDiffusion, starts: Tensor, seed: int) -> Tensor:
    """Last places (n, 2) of plans, by all levels in turn."""
    plans = sample_model(
        from_diffuser(diffusion), clean=starts, generator=torch.Generator().manual_seed(seed), n_sampling_steps=N_LEVELS
    )
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
    base, expert = (planner(out / name, share, sizes, seed + i) for i, (name, share) in enumerate(SHARES.items()))
    generator = torch.Generator().manual_seed(seed + 2)
    data, held_out = (
        [windows(n, share, generator) for share in SHARES.values()] for n in (max(sizes["buffer"], 64), 128)
    )
    models = from_diffuser(base), from_diffuser(expert)
    if not quick:
        check_pair(*models, *held_out)
    extractor = RewardExtractor(
        *models, heads=["window"], buffer_size=sizes["buffer"], n_value_draws=1, n_epochs=10, batch_size=64, seed=seed
    ).learn(torch.cat(data), sizes["extraction"], log_interval=0)
    extractor.reward.save(out / "reward.zip")
    check = extractor.check_steering(torch.cat(held_out), n_events=min(64, sizes["samples"]), n_sampling_steps=N_LEVELS)
    measured = {"R² at held-out data": check.recorded, "R² where the steered base goes": check.steered}

    starts = windows(sizes["samples"], 0.5, generator)
    wanted = ends(expert, starts, seed + 3)
    base_ends = ends(base, starts, seed + 4)
    base.model = steer(models[0], extractor.reward)  # what a user of Diffuser puts into its planner
    for name, places in (("base", base_ends), ("steered", ends(base, starts, seed + 4)), ("expert", wanted)):
        measured[f"{name}: share at the second goal"] = float((places[:, 0] > 0).float().mean())
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
