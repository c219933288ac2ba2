"""Artifacts of the maze experiment: archives in the work folder; maps and learning curves beside the CSV.

Maps and curves are what figures need and a table of single numbers cannot hold, a few kilobytes each.
"""

from __future__ import annotations

import csv
import io
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rrpolicy import experiments
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import atomic_write
from rrpolicy.common.messages import printable
from rrpolicy.common.schema import read_small
from rrpolicy.common.tables import read_table
from rrpolicy.common.typing import Array
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.experiments.maze2d.spec import MAIN, MazeUnit, MazeVariant
from rrpolicy.experiments.recipes import build, section, total_timesteps, without_steps
from rrpolicy.experiments.store import ArtifactStore, load_or_create
from rrpolicy.rewards.extractor import RewardExtractor
from rrpolicy.rewards.maps import RewardMap
from rrpolicy.rewards.relative_reward import RelativeReward
from rrpolicy.rewards.targets import Targets

MAX_BYTES, MAX_UNPACKED_BYTES = 2**22, 2**25  # of a map
CURVE_COLUMNS = ("algorithm", "pay", "decisions", "return", "success_rate")
_LOGGED = ("time/total_timesteps", "rollout/ep_rew_mean", "rollout/success_rate")
Curves = Mapping[tuple[str, str], Array]
"""(algorithm, reward) -> (n, 3): decisions made, return and success rate of the latest training episodes."""

MAX_DATASETS = 3  # kept in memory: base, second base, expert


@dataclass
class MazeStore(ArtifactStore):
    """
    The archives of the maze experiment; see `store.ArtifactStore`, beside that:

    :param variant: what is made differently
    """

    variant: MazeVariant = MAIN
    _datasets: dict[MazeUnit, tuple[TrajectoryDataset, float]] = field(default_factory=dict)

    # ------------------------------------------------------------------ data

    def data(self, unit: MazeUnit) -> tuple[TrajectoryDataset, float]:
        """Demonstrations to the unit's goal, or between random goals, and the CPU-seconds they took."""
        if unit not in self._datasets:
            started = time.process_time()
            collect = experiments.collect_base if unit.goal is None else experiments.collect_expert
            dataset = collect(unit.task, self.recipe, unit.seed)
            while len(self._datasets) >= MAX_DATASETS:
                del self._datasets[next((key for key in self._datasets if key.goal), next(iter(self._datasets)))]
            self._datasets[unit] = dataset, time.process_time() - started
        return self._datasets[unit]

    def sources(self, unit: MazeUnit) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
        """What the pair learned from, base and expert, in disjoint episodes: to extract from and to score on."""
        units = {"tuned": unit, "scratch": unit, "second-base": self._next(unit), "base": self._base_of(unit)}
        pair = [self.data(self._base_of(unit))[0], self.data(units[self.variant.expert])[0]]
        return experiments.split_data(pair, unit.seed, self.recipe)

    # ------------------------------------------------------------------ agents

    def base(self, unit: MazeUnit) -> tuple[DiffusionAgent, float]:
        """The base of the unit's maze and seed, and its CPU-seconds."""
        unit = self._base_of(unit)

        def make() -> DiffusionAgent:
            return experiments.train_base(unit.task, self.recipe, self.data(unit)[0], unit.seed)

        path = self.base_path(unit)
        if not path.exists():
            self.data(unit)  # now, so that its time is not the training's
        return load_or_create(path, make, DiffusionAgent.load)

    def second_base(self, unit: MazeUnit) -> tuple[DiffusionAgent, float]:
        """The base of the next seed."""
        return self.base(self._next(unit))

    def expert(self, unit: MazeUnit) -> tuple[DiffusionAgent, float]:
        """The expert of the unit's goal as the variant wants it, and its CPU-seconds."""
        if self.variant.expert == "second-base":
            return self.second_base(unit)
        if self.variant.expert == "base":
            return self.base(unit)
        scratch = self.variant.expert == "scratch"
        start = self.base(unit)[0]
        self.data(unit)

        def make() -> DiffusionAgent:
            data, seed = self.data(unit)[0], unit.seed
            if not scratch:
                return experiments.train_expert(start, self.recipe, data, seed)
            agent = experiments.new_agent(unit.task, self.recipe, seed + 1)  # not even the base's first weights
            return agent.learn(data, total_timesteps(self.recipe, "base"), log_interval=0)

        name = "expert-from-scratch" if scratch else "expert"
        return load_or_create(self._path(unit, name, "data", "agent", "base", "expert"), make, DiffusionAgent.load)

    # ------------------------------------------------------------------ rewards

    def reward(self, unit: MazeUnit) -> tuple[RelativeReward, float]:
        """The extracted reward and its CPU-seconds; the same for all goals where the expert is."""
        unit = unit if self.variant.has_goal else self._base_of(unit)
        names = self.variant.sources
        train, _ = self.sources(unit)
        chosen = [data for name, data in zip(("base", "expert"), train, strict=True) if name in names]
        pair = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            if not self.variant.shuffled:
                n_rounds = self.variant.n_rounds
                return experiments.extract_on_policy(*pair, chosen, self.recipe, unit.seed, n_rounds).reward
            arguments = {**without_steps(section(self.recipe, "extraction")), "seed": unit.seed}
            extractor = build(ShuffledExtractor, "extraction", base=pair[0], expert=pair[1], **arguments)
            return extractor.learn(chosen, total_timesteps(self.recipe, "extraction"), log_interval=0).reward

        changes = [self.variant.expert, names, self.variant.shuffled, self.variant.n_rounds]
        path = self._path(unit, "reward", "data", "agent", "base", "expert", "extraction", extra=changes)
        return load_or_create(path, make, RelativeReward.load)

    def discriminator(self, unit: MazeUnit) -> tuple[RelativeReward, float]:
        """The baseline's reward and its CPU-seconds."""
        train, _ = self.sources(unit)
        pair = self.base(unit)[0], self.expert(unit)[0]

        def make() -> RelativeReward:
            return experiments.discriminate(*pair, train, self.recipe, unit.seed)

        parts = ("data", "agent", "base", "expert", "discriminator")
        return load_or_create(self._path(unit, "discriminator", *parts), make, RelativeReward.load)

    # ------------------------------------------------------------------ archives

    def base_path(self, unit: MazeUnit) -> Path:
        return self._path(self._base_of(unit), "base", "data", "agent", "base")

    def bases_of(self, unit: MazeUnit) -> list[MazeUnit]:
        """The bases that a unit needs: its own, and that of the next seed for variants with two."""
        two = self.variant.unseen_base or self.variant.expert == "second-base"
        return [self._base_of(unit), *([self._next(unit)] if two and unit.goal is not None else [])]

    def _path(self, unit: MazeUnit, name: str, *sections: str, extra: Any = None) -> Path:
        return self.path(unit.name, name, sections, extra)

    # ------------------------------------------------------------------ units

    @staticmethod
    def _base_of(unit: MazeUnit) -> MazeUnit:
        return MazeUnit(unit.maze, unit.seed)

    @staticmethod
    def _next(unit: MazeUnit) -> MazeUnit:
        return MazeUnit(unit.maze, unit.seed + 1)


class ShuffledExtractor(RewardExtractor):
    """A control: every event gets the target of another one at its noise level, so only their mean can be learned."""

    def _draw_targets(self) -> Targets:
        targets = super()._draw_targets()
        mixed = torch.randperm(len(targets), generator=torch.Generator().manual_seed(self.seed or 0))
        order = torch.empty_like(mixed)
        order[targets.t.argsort(stable=True)] = mixed[targets.t[mixed].argsort(stable=True)]
        value = None if targets.value is None else targets.value[order]
        return replace(targets, eps_difference=targets.eps_difference[order], value=value)


# ---------------------------------------------------------------------- maps


def map_path(out: Path, unit: MazeUnit, variant: str = "") -> Path:
    """Where the map of a unit lies."""
    return out.with_suffix("") / "maps" / f"{f'{variant}_' if variant else ''}{unit.name}.npz"


def write_map(path: Path, drawn: RewardMap) -> None:
    """Keep what a picture needs: the grid below its highest value, in half precision, and where that is."""
    with atomic_write(path) as unfinished:
        highest = drawn.values.max()
        np.savez_compressed(unfinished, grid=(drawn.grid - highest).astype(np.float16), maximum=drawn.maximum)


def read_map(path: Path, unit: MazeUnit) -> RewardMap:
    """
    What :func:`write_map` kept, ready to be drawn.

    :raises ValueError: when there is no such file or it is damaged
    """
    try:
        content = io.BytesIO(read_small(path, MAX_BYTES))
        with zipfile.ZipFile(content) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to {size} bytes, wanted at most {MAX_UNPACKED_BYTES}")
        with np.load(content, allow_pickle=False) as kept:
            grid, maximum = (np.asarray(kept[name], dtype=np.float64) for name in ("grid", "maximum"))
    except Exception as error:  # NumPy and the zip format raise what damage makes of them
        raise FileFault(path, f"is no map: {error}") from None
    if grid.ndim != 2 or maximum.shape != (2,) or not np.isfinite(maximum).all() or np.isposinf(grid).any():
        raise FileFault(path, f"is no map: grid {grid.shape} and maximum {maximum.shape}, wanted (n, m) and (2,)")
    return RewardMap(unit.task.maze, maximum[None], np.zeros(1), grid)


# ---------------------------------------------------------------------- learning curves


def curve_path(folder: Path, unit: MazeUnit) -> Path:
    """Where the curves of a unit lie."""
    return folder / f"{unit.name}.csv"


def read_progress(path: Path) -> Array:
    """
    Read a learning curve.

    :param path: ``progress.csv`` of Stable-Baselines3's logger
    :return: a curve (n, 3); rows of the log from before the first episode's end are left out
    """
    heading, *lines = read_table(path) or [[]]
    found = [dict(zip(heading, line, strict=False)) for line in lines]
    rows = [[row.get(name, "") for name in _LOGGED] for row in found]
    return np.array([row for row in rows if all(row)], dtype=np.float64).reshape(-1, len(_LOGGED))


def write_curves(path: Path, curves: Curves) -> None:
    """Keep a unit's curves, in as many digits as a picture needs."""
    with atomic_write(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVE_COLUMNS)
        for names, curve in curves.items():
            writer.writerows([*names, *(f"{value:.6g}" for value in point)] for point in curve)


def read_curves(path: Path) -> dict[tuple[str, str], Array]:
    """
    What :func:`write_curves` kept.

    :raises ValueError: when there is no such file or it is something else
    """
    curves: dict[tuple[str, str], list[list[float]]] = {}
    try:
        head, *lines = read_table(path)
        if tuple(head) != CURVE_COLUMNS:
            raise ValueError(f"its columns are {printable(head)}, wanted {', '.join(CURVE_COLUMNS)}")
        for algorithm, pay, decisions, total, rate in lines:
            curves.setdefault((algorithm, pay), []).append([float(decisions), float(total), float(rate)])
        drawn = {names: np.array(points) for names, points in curves.items()}
        if not all(np.isfinite(points).all() for points in drawn.values()):
            raise ValueError("it holds numbers that are not finite")
    except (OSError, ValueError) as error:
        raise FileFault(path, f"holds no learning curves: {error}") from None
    return drawn
