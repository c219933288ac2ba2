"""The command that writes an agent, a steered agent or a reward as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rrpolicy import zoo
from rrpolicy.cli import options
from rrpolicy.cli.agents import load_planner_for
from rrpolicy.cli.options import recipe_for, task_of
from rrpolicy.cli.program import echo
from rrpolicy.export import export_onnx, load_onnx
from rrpolicy.export.quantised import ERROR
from rrpolicy.rewards.algebra import CompositeReward
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rl.policies import Sb3Agent


def export(
    name: options.AgentName,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The .onnx file.", callback=options.file_for_results)
    ],
    reward: options.Reward = None,
    scale: options.Scale = None,
    n_candidates: options.Candidates = None,
    env: options.MaybeEnv = None,
    int8: Annotated[bool, typer.Option("--int8", help="Weights of 8 bits; their error is told.")] = False,
    scale_input: Annotated[
        bool, typer.Option("--scale-input", help="The scale of guidance is an input of the graph.")
    ] = False,
    recipe: options.RecipeFile = None,
    device: options.Device = "cpu",
) -> None:
    """
    Export an agent, steered where a reward is given, or a reward as one ONNX file, which needs no torch.

    \b
    Examples:
      rrpolicy export Hopper-v5/base --reward Hopper-v5/reward --out runs/hopper.onnx
      rrpolicy export Hopper-v5/reward --out runs/hopper-reward.onnx
      rrpolicy enjoy runs/hopper.onnx
    """
    loaded = zoo.load(name)
    if isinstance(loaded, CompositeReward):
        raise ValueError(f"{name!r} is a sum or an ensemble of rewards, wanted an agent to steer by it, or one reward")
    if isinstance(loaded, RelativeReward | Sb3Agent):
        if reward is not None or scale is not None or n_candidates is not None or scale_input:
            what = "a reward" if isinstance(loaded, RelativeReward) else "a policy without plans"
            raise ValueError(f"{name!r} is {what}, --reward, --scale, --scale-input and --n-candidates need an agent")
        path = export_onnx(loaded, out, card=zoo.card(name), int8=int8)
    else:
        task = task_of([reward, name] if reward else [name], env)
        planner = load_planner_for(name, task, recipe_for(task, recipe), reward, scale, n_candidates)
        facts = {"agent": name, "reward": reward, "scale": scale}
        path = export_onnx(planner, out, card={**task.to_card(), **facts}, int8=int8, scale_input=scale_input)
    echo(f"written: {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    if int8:
        error = load_onnx(path).file.about[ERROR]
        echo(f"largest difference by int8 at random inputs: {error:.3g}")
