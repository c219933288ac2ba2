"""Whether ``rrpolicy diff`` finds a planted change: one action dimension of a point in a maze, in one region.

    python examples/measure_planted.py --seeds 3

A point is pushed about by correlated random forces. The expert's data differ in one thing: where x > 0.5, the force in
y is larger by 0.4. Both agents learn the action; printed are, for each seed, the share of ρ's attribution on the force
in y, and the first question of the tree that says where the two differ. With ``--change 0`` nothing is planted.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from rrpolicy import Comparison, DiffusionAgent, Normalizer, PlanningOptions, TrajectoryDataset, diff
from rrpolicy.diffusion.process import DiffusionProcess
from rrpolicy.envs.maze import MazeGeometry
from rrpolicy.envs.simulator import PointMazeSimulator

MAZE = ("#######", "#.....#", "#.....#", "#.....#", "#######")  # that of the environment
ENV_ID, BORDER, CHANGE = "PointMaze_Open-v3", 0.5, 0.4
N_BALLS, N_STEPS, REPEAT = 256, 100, 5
NAMES = ("x", "y", "x velocity", "y velocity", "x force", "y force")


def collected(change: float, seed: int) -> TrajectoryDataset:
    """Walks of many balls; ``change`` is added to the force in y where x is beyond the border."""
    maze, rng = MazeGeometry.parse(MAZE), np.random.default_rng(seed)
    simulator = PointMazeSimulator(maze)
    cells = maze.free_cells[rng.integers(len(maze.free_cells), size=N_BALLS)]
    states = np.concatenate([maze.cell_to_xy(cells), np.zeros((N_BALLS, 2))], axis=1)
    force, rows = np.zeros((N_BALLS, 2)), []
    for _ in range(N_STEPS):
        force = 0.8 * force + 0.15 * rng.normal(size=force.shape)
        moved = np.stack([np.zeros(N_BALLS), change * (states[:, 0] > BORDER)], axis=1)
        action = np.clip(force + moved, -1, 1)  # hardly ever beyond
        rows.append((states.copy(), action))
        for _ in range(REPEAT):
            states = simulator.step(states, action)
    observations, actions = (
        np.stack(parts, axis=1).reshape(N_BALLS * N_STEPS, -1) for parts in zip(*rows, strict=True)
    )
    return TrajectoryDataset.from_arrays(observations, actions, episode_lengths=[N_STEPS] * N_BALLS)


def compared(
    seed: int, horizon: int, base_steps: int, expert_steps: int, steps: int, n_samples: int, change: float = CHANGE
) -> Comparison:
    """Both agents trained, and their difference."""
    data = [collected(0.0, seed), collected(change, 100 + seed)]
    agent = DiffusionAgent(
        "MlpPolicy",
        ENV_ID,
        horizon=horizon,
        normalizer=Normalizer.fit(data, mode="gaussian"),
        process=DiffusionProcess(20),
        planning=PlanningOptions(clip=None, n_action_steps=1, n_sampling_steps=5),
        policy_kwargs={"width": 64, "n_blocks": 2, "n_fourier_features": 0},
        seed=seed,
    )
    base = agent.learn(data[0], base_steps, log_interval=0)
    expert = DiffusionAgent(
        "MlpPolicy",
        ENV_ID,
        horizon=horizon,
        normalizer=agent.normalizer,
        process=DiffusionProcess(20),
        planning=PlanningOptions(clip=None, n_action_steps=1, n_sampling_steps=5),
        policy_kwargs={"width": 64, "n_blocks": 2, "n_fourier_features": 0},
        seed=seed,
    )
    weights = base.averaged.state_dict()
    expert.set_parameters({"policy": weights, "averaged": weights}, exact_match=False)
    expert.learn(data[1], expert_steps, log_interval=0)
    small = {"width": 64, "n_blocks": 2, "n_fourier_features": 0}
    return diff(
        base,
        expert,
        data,
        feature_names=NAMES,
        n_samples=n_samples,
        n_null=8,
        total_timesteps=steps,
        extraction={"window_kwargs": small},
        seed=seed,
    )


def main() -> None:
    """Print what is found for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--change", type=float, default=CHANGE, help="0: the expert learns from more data of the base's kind"
    )
    parser.add_argument("--horizon", type=int, default=1)
    parser.add_argument("--base-steps", type=int, default=3000)
    parser.add_argument("--expert-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--n-samples", type=int, default=1024)
    parser.add_argument("--out", help="folder for a page of each seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        trained = (options.horizon, options.base_steps, options.expert_steps)
        found = compared(seed, *trained, options.steps, options.n_samples, options.change)
        if options.out:
            found.write(f"{options.out}/{seed}")
        assert found.attribution is not None and found.regions is not None and found.fit is not None
        share = found.attribution.by_column()[found.features.columns.index("y force")]
        root, names = found.regions.root, found.regions.names
        numbers = {
            "KL": f"{found.forward.total.value:.2f}",
            "times that of equal trainings": f"{found.null.times_null:.1f}",
            "p": f"{found.null.p_value:.4f}",
            "share of the attribution on the y force": f"{share:.2f}",
            f"asked first of {'nothing' if root.feature is None else names[root.feature]}": f"{root.threshold:.2f}",
            "fidelity of the tree": f"{found.regions.fidelity:.2f}",
            "R²": f"{found.fit.r2_held_out:.2f}",
        }
        for name, number in numbers.items():
            print(f"change {options.change:g} seed {seed}: {name}: {number}", flush=True)


if __name__ == "__main__":
    main()
