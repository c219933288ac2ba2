"""
What a run of the paper's size needs, on paper: FLOPs counted, seconds measured on this CPU, hours on GPUs estimated.

Planner: 10^6 steps of a temporal U-Net on windows of 32 rows, and an extraction of 10^5 steps from two of them. Images:
4 703 prompts with 50 denoising steps of Stable Diffusion 1 (random weights) each, recorded without values, and the
extraction. Nothing is learned: a few steps of each are measured. The table is made from the CSV that this writes.

    python examples/paper_on_gpus.py --out docs/results/paper_on_gpus.csv
    python examples/paper_on_gpus.py --out runs/quick.csv --quick
    python examples/paper_on_gpus.py --table docs/results/paper_on_gpus.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rrpolicy import DiffusionAgent, Normalizer, RewardExtractor, TrajectoryDataset
from rrpolicy.diffusion.analytic import GaussianMixtureModel
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.diffusion.unet_encoder import import_diffusers

# Assumptions about the card: nothing of it was measured.
PEAK = 312e12  # FLOP/s in bfloat16, dense: NVIDIA's data sheet of the A100
SHARE = 0.25  # of the peak that a network reaches which fills the card
LAUNCH = 8e-6  # seconds from one operation to the next where a network does not

COPIES = 5  # float32 numbers for each weight: itself, gradient, two moments, average
N_PROMPTS, N_STEPS, N_CALLS = 4703, 50, 3  # a step asks for no prompt, the prompt, and the concept to avoid
TRAINING, EXTRACTION, IMAGE_EXTRACTION = 10**6, 10**5, 3000  # gradient steps
LATENTS, BYTES_PER_PAIR = 4 * 64 * 64, 2 * 4 * 64 * 64 * 2  # x_t and the difference, in half precision
FULL: dict[str, Any] = {
    "unet": {"width": 32, "multipliers": (1, 2, 4, 8)},
    "batch": 32,
    "rewards": 128,
    "images": 64,
    "size": 64,
    "channels": (320, 640, 1280, 1280),
    "steps": 16,
}
QUICK: dict[str, Any] = {
    "unet": {"width": 8, "multipliers": (1, 2)},
    "batch": 4,
    "rewards": 8,
    "images": 2,
    "size": 16,
    "channels": (32, 64),
    "steps": 4,
}


@dataclass(frozen=True)
class Part:
    """One part of the run. A unit of it is a gradient step, or a pair of predictions that is recorded."""

    name: str
    units: int
    parameters: int
    flops: float  # of a unit
    operations: float  # of a unit: calls of torch's operators
    cpu_seconds: float  # of a unit, one thread
    gpu_bytes: float  # of learning without what a step keeps for its backward pass
    disk_bytes: float
    date: str

    def hours(self, n_gpus: int) -> float:
        """Estimated. Cards share the arithmetic of a batch, but each launches all operations; prompts are divided."""
        launches = self.operations * LAUNCH / (n_gpus if "record" in self.name else 1)
        return self.units * max(self.flops / (PEAK * SHARE) / n_gpus, launches) / 3600


class Counting(TorchDispatchMode):
    """Counts operations, and their FLOPs by `torch.utils.flop_counter`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.flops = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def measured(name: str, learner: Any, learn: Callable[..., Any], units: int, steps: int) -> Part:
    """
    Measure some steps of a learner, and count as many more.

    :param learn: called with a number of steps and a callback
    :param steps: between two buffers of targets, where there are some
    """
    counts, stack, seconds = Counting(), ExitStack(), [0.0]

    def look(known: Any, _: Any) -> bool:
        step = known["self"].num_timesteps
        if step == 1:
            seconds[0] -= time.process_time()
        elif step == steps + 1:
            seconds[0] += time.process_time()
            stack.enter_context(counts)
        elif step == 2 * steps + 1:
            stack.close()
        return True

    learn(2 * steps + 1, look)
    n = sum(one.numel() for one in learner.module.parameters())
    return Part(
        name,
        units,
        n,
        counts.flops / steps,
        counts.operations / steps,
        seconds[0] / steps,
        4 * COPIES * n,
        4 * 4 * n,  # a checkpoint: weights, average, two moments
        datetime.date.today().isoformat(),
    )


def planners(sizes: dict[str, Any]) -> tuple[list[DiffusionAgent], TrajectoryDataset]:
    """Two untrained planners of Hopper's windows (32, 14), and random data."""
    rng = np.random.default_rng(0)
    data = TrajectoryDataset.from_arrays(
        rng.normal(size=(400, 11)), rng.uniform(-1, 1, (400, 3)), episode_lengths=[400]
    )
    agents = [
        DiffusionAgent(
            "UnetPolicy",
            gym.make("Hopper-v5"),
            horizon=32,
            batch_size=sizes["batch"],
            process=DiffusionProcess(20),
            policy_kwargs=sizes["unet"],
            normalizer=Normalizer.fit(data),
            seed=seed,
            device="cpu",
        )
        for seed in range(2)
    ]
    return agents, data


def planner_parts(sizes: dict[str, Any]) -> list[Part]:
    (agent, expert), data = planners(sizes)

    def learn(steps: int, callback: Any) -> None:
        agent.learn(data, steps, callback, log_interval=0)

    training = measured("planner: training", agent, learn, TRAINING, sizes["steps"])
    batch = sizes["rewards"]
    extractor = RewardExtractor(agent, expert, ["window"], batch_size=batch, buffer_size=sizes["steps"] * batch // 4)

    def extract(steps: int, callback: Any) -> None:
        extractor.learn(data, steps, callback, log_interval=0)

    return [training, measured("planner: extraction", extractor, extract, EXTRACTION, sizes["steps"])]


def image_parts(sizes: dict[str, Any]) -> list[Part]:
    side, process = sizes["size"], DiffusionProcess(1000, "linear", "eps")
    models = [GaussianMixtureModel(torch.full((1, 4, side, side), mean), process=process) for mean in (-0.1, 0.1)]
    network, batch = {"network": "conv"}, sizes["images"]
    options: dict[str, Any] = {"batch_size": batch, "buffer_size": batch, "value_coef": 0.0, "window_kwargs": network}
    extractor = RewardExtractor(*models, ["window"], **options, n_epochs=9, device="cpu")

    def extract(steps: int, callback: Any) -> None:
        extractor.learn(torch.zeros(batch, 4, side, side), steps, callback, log_interval=0)

    return [recording(sizes), measured("images: extraction", extractor, extract, IMAGE_EXTRACTION, 2)]


@torch.no_grad()
def recording(sizes: dict[str, Any]) -> Part:
    """One call of Stable Diffusion 1's network at one latent, times those of a pair."""
    channels, side = sizes["channels"], sizes["size"]
    from diffusers.models.attention_processor import AttnProcessor

    config = {
        "sample_size": side,
        "cross_attention_dim": 768,
        "block_out_channels": channels,
        "down_block_types": (*["CrossAttnDownBlock2D"] * (len(channels) - 1), "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * (len(channels) - 1)),
    }
    unet = import_diffusers().UNet2DConditionModel(**config).eval()
    arguments = torch.randn(1, 4, side, side), torch.tensor([500]), torch.randn(1, 77, 768)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    unet(*arguments)
    seconds = time.process_time() - begin
    used = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    shadow = unet.to("meta")  # counts without computing
    shadow.set_attn_processor(AttnProcessor())  # attention as matrix products, which are counted
    with Counting() as counts:
        shadow(*(one.to("meta") for one in arguments))
    n = sum(one.numel() for one in unet.parameters())
    return Part(
        "images: recording",
        N_PROMPTS * N_STEPS,
        n,
        N_CALLS * counts.flops,
        counts.operations,  # the three are one call
        N_CALLS * seconds,
        2 * n + N_CALLS * used / 2,
        N_PROMPTS * N_STEPS * BYTES_PER_PAIR,
        datetime.date.today().isoformat(),
    )


def table(parts: list[Part]) -> str:
    """The parts as a Markdown table."""
    heading = ["part", "units", "parameters", "FLOPs a unit", "operations a unit", "CPU seconds a unit", "memory (GB)"]
    heading += ["disk (GB)", "CPU hours, one thread", "hours, one GPU", "hours, eight GPUs"]
    lines = [heading, ["---"] * len(heading)]
    for part in parts:
        numbers = [f"{part.units:,}", f"{part.parameters / 1e6:.2f} M", f"{part.flops / 1e9:,.2f} G"]
        numbers += [f"{part.operations:,.0f}", f"{part.cpu_seconds:.3g}", f"{part.gpu_bytes / 1e9:.2f}"]
        on_cpu = part.units * part.cpu_seconds / 3600
        numbers += [f"{part.disk_bytes / 1e9:.2f}", f"{on_cpu:,.0f}", f"{part.hours(1):.2g}", f"{part.hours(8):.2g}"]
        lines.append([part.name, *numbers])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read(path: Path) -> list[Part]:
    """The parts that a CSV holds."""
    kinds: dict[str, Any] = {"name": str, "date": str, "units": int, "parameters": int}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [Part(**{name: kinds.get(name, float)(value) for name, value in row.items()}) for row in rows]


def main(out: Path, quick: bool = False) -> list[Part]:
    """
    Measure, write and print.

    :param out: CSV, a row for each part
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = QUICK if quick else FULL
    parts = [*planner_parts(sizes), *image_parts(sizes)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Part)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in asdict(one).items()} for one in parts
        )
    print(table(parts))
    return parts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper_on_gpus.csv"))
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--table", type=Path, help="print the table of a CSV and measure nothing")
    given = parser.parse_args()
    if given.table is not None:
        print(table(read(given.table)))
    else:
        main(given.out, given.quick)
