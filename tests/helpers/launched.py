"""What several processes of `accelerate launch` do together in tests: learners of every kind, then commands.

Run as a script it does all of that; imported, the same learners learn in one process.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from helpers import idx
from helpers.agents import DATASET, EXPERT_DATASET, make_agent
from helpers.recipes import NETWORK
from rrpolicy import RewardExtractor
from rrpolicy.common import processes
from rrpolicy.images.codec import PixelCodec
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.discriminator import DiscriminatorReward

STEPS, STOPPED = 20, 7
IMAGE_STEPS = 5
BATCH = 15  # which two processes cannot halve
UNET = {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_head_dim": 4}


class StopFirst(BaseCallback):
    """Stops learning in the first process alone, or notes that this was not the last step."""

    def _on_step(self) -> bool:
        return not (processes.current().is_main and self.num_timesteps == STOPPED)


def learners(**options: Any) -> dict[str, Any]:
    """One learner of each kind, untrained, with further options; rewards compare two untrained agents."""
    base, expert = make_agent(seed=1), make_agent(seed=2)
    small = {"learning_rate": 1e-3, "batch_size": BATCH, "seed": 0, **options}
    extraction = {"buffer_size": 64, "n_epochs": 2, "window_kwargs": NETWORK, "step_kwargs": NETWORK}
    return {
        "agent": make_agent(controller="inverse-dynamics", controller_kwargs={"width": 16, "n_blocks": 1}, **small),
        "extractor": RewardExtractor(base, expert, **small, **extraction),
        "discriminator": DiscriminatorReward(base, expert, window_kwargs=NETWORK, **small),
        "images": ImageDiffusion(PixelCodec((1, 8, 8), 2), n_diffusion_steps=20, unet_kwargs=UNET, **small),
    }


def learn(name: str, learner: Any, steps: int = STEPS, **options: Any) -> Any:
    """Learn with the data that belong to a learner, those of agents and rewards with data held out."""
    if name == "images":
        return learner.learn(idx.images(32, size=8)[0], IMAGE_STEPS, **options)
    data, held_out = [DATASET, EXPERT_DATASET], [EXPERT_DATASET, DATASET]
    return learner.learn(data, steps, eval_dataset=held_out, eval_freq=5, patience=3, **options)


def learn_all(folder: Path) -> None:
    """Learn, one kind after another, and write checkpoints; agents are also stopped and go on."""
    for name, learner in learners().items():
        learn(name, learner, checkpoint_path=folder / f"{name}.zip", log_interval=5)
    agent = learn("agent", learners()["agent"], callback=StopFirst(), checkpoint_path=folder / "stopped.zip")
    if agent.num_timesteps != STOPPED:
        raise AssertionError(f"process {processes.current().rank} stopped after {agent.num_timesteps} steps")
    if not processes.current().is_main:
        learner.save(folder / "second.zip")  # to be compared with the first one's


def main() -> None:
    """Learn in this process and its siblings; then run commands, which leave their files in the current folder."""
    torch.set_num_threads(1)
    from rrpolicy.cli import main as program

    folder, commands = Path(sys.argv[1]), Path(sys.argv[2])
    processes.join()
    learn_all(folder)
    for line in commands.read_text(encoding="utf-8").splitlines():
        processes.current().wait()  # for what the command before has written
        try:
            program(shlex.split(line))
        except SystemExit as leaving:
            if leaving.code:
                raise
    (folder / f"rank-{processes.current().rank}-of-{processes.current().n}").touch()
    processes.current().wait()
    sys.stdout.flush()
    os._exit(0)  # what gloo does at the end takes seconds


if __name__ == "__main__":
    main()
