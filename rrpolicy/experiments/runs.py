"""Folders that the command line writes: training runs that can be stopped and resumed, and data sets.

Every file is replaced in one step, so a reader never sees a part of one, and a second run leaves nothing of the first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger

from rrpolicy import experiments, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.computing import check_as_before
from rrpolicy.common.files import write_json
from rrpolicy.common.folders import check_space, scratch_folder, sole_use
from rrpolicy.common.learner import Learner
from rrpolicy.common.options import COMPUTING
from rrpolicy.common.processes import current
from rrpolicy.common.progress import LOSS_KEY, ProgressLog
from rrpolicy.common.schema import from_json, read_small
from rrpolicy.common.spaces import check_spaces, flattened_box
from rrpolicy.common.version import __version__
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.data.minari_head import METADATA_FILE
from rrpolicy.data.reference_scores import reference_score
from rrpolicy.data.writers import save_minari
from rrpolicy.evaluation import RESULTS_FILE, Row, write_results
from rrpolicy.experiments.recipes import Recipe
from rrpolicy.experiments.results import plain_row
from rrpolicy.experiments.task import Task

AGENT, CHECKPOINT, PROGRESS, RUN = "agent.zip", "checkpoint.zip", "progress.csv", "run.json"
LOG_INTERVAL = 100


@dataclass(frozen=True)
class TrainingRun:
    """
    One training of an agent in one folder.

    :param task: the environment that the agent is for
    :param data: what it imitates
    :param out: folder
    :param recipe: gives the agent's arguments
    :param seed: of weights and training
    :param total_timesteps: gradient steps; None: the recipe's, or when resuming the checkpoint's
    :param init_from: agent to fine-tune, as in ``zoo.load``; None trains from scratch
    :param checkpoint_freq: gradient steps between two checkpoints
    """

    task: Task
    data: Sequence[TrajectoryDataset]
    out: Path
    recipe: Recipe
    seed: int = 0
    total_timesteps: int | None = None
    init_from: str | None = None
    checkpoint_freq: int = 1000

    def run(self, resume: bool = False, progress_bar: bool = False) -> DiffusionAgent:
        """
        Train, or go on from the checkpoint; stopped and resumed gives the same agent, bit for bit.

        :param resume: go on from the folder's checkpoint; without one training begins
        :raises ValueError: when data do not fit the environment, the agent's card could not hold the task, or the
            checkpoint was made with other data
        """
        self.task.to_card()  # before the work, as it would fail when the agent is saved
        self._check_data()
        with sole_use(self.out):
            return self._run(resume, progress_bar)

    def _run(self, resume: bool, progress_bar: bool) -> DiffusionAgent:
        checkpoint, log = self.out / CHECKPOINT, ProgressLog(self.out / PROGRESS)
        resume = resume and checkpoint.exists()
        if resume:
            self._check_same()
            agent = DiffusionAgent.load(checkpoint)
            if compile := self._computing(agent).get("compile"):
                agent.compile_networks(compile)
            total = agent._total_timesteps if self.total_timesteps is None else self.total_timesteps
        else:
            agent, total = self._new_agent(), self._steps()
        writes = current().is_main
        if writes and resume:
            log.keep(agent.num_timesteps)
        elif writes:
            begin_anew(self.out, (AGENT, CHECKPOINT, PROGRESS, RESULTS_FILE), agent)
            write_json(self.out / RUN, self._facts)
        if (remaining := total - agent.num_timesteps) > 0:
            agent.set_logger(Logger(str(self.out), [log]))
            agent.learn(
                self.data,
                remaining,
                log_interval=min(LOG_INTERVAL, max(total // 10, 1)),
                reset_num_timesteps=not resume,
                progress_bar=progress_bar,
                checkpoint_path=checkpoint,
                checkpoint_freq=self.checkpoint_freq,
            )
        if writes:
            experiments.save_agent(agent, self.out / AGENT, {**self.task.to_card(), **self._facts})
            write_results(self._rows(agent, log), self.out)
        return agent

    @property
    def _part(self) -> str:
        return "base" if self.init_from is None else "expert"

    def _steps(self) -> int:
        given = self.total_timesteps
        return experiments.total_timesteps(self.recipe, self._part) if given is None else given

    def _new_agent(self) -> DiffusionAgent:
        if self.init_from is None:
            return experiments.new_agent(self.task, self.recipe, self.seed)
        start = zoo.load_agent(self._facts["init_from"])
        env = self.task.make()
        env.close()
        check_spaces(start.observation_space, start.action_space, env.observation_space, env.action_space)
        return experiments.fine_tuned(start, self.recipe, self.seed)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What the run is made from; of the hub, the revision that is read."""
        return {
            "data": [fingerprint(one) for one in self.data],
            "seed": self.seed,
            "init_from": None if self.init_from is None else zoo.hub.with_revision(self.init_from),
            "recipe": self.recipe.get("name"),
            "version": __version__,
        }

    def _check_data(self) -> None:
        env = self.task.make()
        env.close()
        for one in self.data:
            widths = (one.observation_dim, one.action_dim)
            wanted = tuple(
                flattened_box(space, name).shape[0]
                for name, space in (("observation", env.observation_space), ("action", env.action_space))
            )
            if widths != wanted:
                raise ValueError(
                    f"the dataset has observations and actions of widths {widths}, {self.task.env_id} has {wanted}"
                )
            home = one.metadata.get("env_id") or one.metadata.get("source")
            robots = [reference_score(name) for name in (home, self.task.env_id)]
            if None not in robots and robots[0] != robots[1]:  # widths do not distinguish HalfCheetah from Walker2d
                raise ValueError(f"the dataset was recorded in {home}, env is {self.task.env_id}")
            self.task.check_walls(one.metadata.get("maze"))

    def _check_same(self) -> None:
        """Check that the checkpoint was made from the same facts as this run."""
        path = self.out / RUN
        try:
            facts = dict(from_json(read_small(path)))
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read, so the run cannot be resumed: {error}") from error
        for key in ("data", "seed", "init_from"):
            if facts.get(key) != self._facts[key]:
                raise ValueError(
                    f"cannot resume {self.out}: it began with {key} {facts.get(key)}, now it is {self._facts[key]}"
                )

    def _computing(self, agent: DiffusionAgent) -> dict[str, Any]:
        """
        How the recipe says that it learns, or what was given in its place.

        :param agent: of the checkpoint, compared with it; archives hold all of it but ``compile``
        """
        sections = ("agent", "base") if self.init_from is None else ("expert",)
        entries = {key: value for name in sections for key, value in self.recipe.get(name, {}).items()}
        computing = {name: entries.get(name) for name in COMPUTING}
        try:
            check_as_before(agent, {**computing, "compile": None})
        except ValueError as error:
            raise ValueError(f"cannot resume {self.out}: {error}") from None
        return computing

    def _rows(self, agent: DiffusionAgent, log: ProgressLog) -> list[Row]:
        rows = [plain_row("agent", "total_timesteps", float(agent.num_timesteps))]
        losses = log.column(LOSS_KEY)
        return [*rows, plain_row("agent", "loss", losses[-1])] if losses else rows


# ---------------------------------------------------------------------- data sets


def write_dataset(dataset: TrajectoryDataset, out: Path, task: Task) -> None:
    """
    Write a Minari folder, over one that is there.

    :raises ValueError: when ``out`` is a file
    :raises OSError: naming ``out`` when it cannot be written, as on a full disk; what was there stays then
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, wanted a folder")
    env = task.make()
    env.close()
    counts = {"n_transitions": dataset.n_transitions, "n_episodes": dataset.n_episodes}
    try:
        with scratch_folder(out) as scratch:
            save_minari(
                dataset,
                scratch,
                env_spec=env.spec if task.maze_map is None else None,
                observation_space=env.observation_space,
                action_space=env.action_space,
            )
            write_results([plain_row("dataset", metric, float(count)) for metric, count in counts.items()], scratch)
            # metadata.json goes first and comes last: a folder that has it has everything
            names = sorted((path.name for path in scratch.iterdir()), key=lambda name: name == METADATA_FILE)
            clear(out, (METADATA_FILE, RESULTS_FILE))
            for name in names:
                os.replace(scratch / name, out / name)
    except OSError as error:
        raise OSError(f"--out {out} could not be written: {error.strerror or error}") from error


def fingerprint(dataset: TrajectoryDataset) -> str:
    """A digest that is equal for data sets of equal content."""
    digest = hashlib.sha256()
    for array in (dataset.observations, dataset.actions, dataset.episode_lengths):
        digest.update(str(array.shape).encode() + array.tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------- files


def clear(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier run left under these names."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def begin_anew(folder: Path, names: Sequence[str], learner: Learner[Any]) -> None:
    """
    Remove an earlier run's files, unless there is no room for the new ones.

    :param names: of the files
    :param learner: what is to be saved: checkpoints, each beside the one before it, and the averaged weights
    :raises OSError: when the disk is too full; nothing has been removed
    """
    n_bytes = sum(value.numel() * value.element_size() for value in learner.module.state_dict().values())
    check_space(folder, 9 * n_bytes, instead_of=names)  # weights, their average and two moments, twice; an average
    clear(folder, names)
