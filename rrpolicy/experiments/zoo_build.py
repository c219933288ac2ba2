"""Builds of the zoo: mazes, robots and images go through one loop of make, ship, measure, finish.

What is measured is what is shipped. A card is written last, so a build that was stopped goes on with what has none;
training of robots and images is kept in the folder of their experiment and not repeated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rrpolicy import experiments, zoo
from rrpolicy.agents.diffusion_agent import DiffusionAgent
from rrpolicy.common.files import write_text
from rrpolicy.common.stats import share
from rrpolicy.common.typing import Array, Predictor
from rrpolicy.data.dataset import TrajectoryDataset
from rrpolicy.evaluation import Evaluation, Row, evaluate
from rrpolicy.experiments.images import ArtifactStore as ImageStore
from rrpolicy.experiments.images import Unit as ImageUnit
from rrpolicy.experiments.images.spec import FINE_TUNED
from rrpolicy.experiments.locomotion.artifacts import PARTS, Demonstrations, RobotStore, returns
from rrpolicy.experiments.locomotion.film import film
from rrpolicy.experiments.locomotion.measure_pair import comparisons, data_rows, run
from rrpolicy.experiments.locomotion.spec import RobotUnit, known_cases
from rrpolicy.experiments.recipes import Recipe, cases_of, section
from rrpolicy.experiments.results import Recorder, estimate_row, plain_row
from rrpolicy.experiments.scoring import with_episodes
from rrpolicy.experiments.spec import check_names
from rrpolicy.experiments.task import FASHION_MNIST, Task
from rrpolicy.experiments.zoo_entries import Entries, Made, today
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.grid import write_grid
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.training import ImageDiffusion
from rrpolicy.rewards.relative_reward import RelativeReward

SCALES = (1.0, 2.0)  # of steering, all of them measured
SEED = 0
VIDEO = "video.mp4"
REMOVED = ("trouser", "sneaker")
PICTURE, N_SHOWN = "samples.png", 128
NOISE_SEED = 2000  # is added to the unit's: samples come from other noise than those the reward was extracted at


@dataclass(frozen=True)
class Group:
    """
    Entries that are measured together.

    :param label: what the log calls them
    :param makers: name -> kind of the archive, and what makes it
    :param measure: measures the shipped archives and finishes the entries
    """

    label: str
    makers: Mapping[str, tuple[str, Callable[[], Made]]]
    measure: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class ZooBuild(ABC):
    """
    A build of some entries of the zoo.

    :param folder: the zoo
    :param date: of the cards, YYYY-MM-DD; default today
    :param log: called with what is being done
    """

    folder: Path = field(default_factory=zoo.folder)
    date: str = field(default_factory=today)
    log: Callable[[str], None] = lambda text: None

    @property
    @abstractmethod
    def entries(self) -> Entries:
        """The zoo's entries of the build."""

    @abstractmethod
    def groups(self) -> Sequence[Group]:
        """What is to be built, in this order."""

    def check(self) -> None:
        """Check for what the build needs before anything is begun."""
        return

    def complete(self) -> None:
        """Measure what needs all groups."""
        return

    def run(self, force: bool = False) -> list[dict[str, Any]]:
        """
        Build what is missing, and the table.

        :param force: build and measure everything anew; what was trained in an experiment's folder is kept
        :return: the cards
        """
        entries, groups = self.entries, self.groups()
        for group in groups:
            if not force and all(entries.finished(name, kind) for name, (kind, _) in group.makers.items()):
                self.log(f"{group.label}: there already")
                continue
            self.log(f"{group.label}: building")
            self.check()
            for name, (_, make) in group.makers.items():
                if len(group.makers) > 1:
                    self.log(f"  {name}")
                entries.begin(name)
                entries.ship(make(), name)
            group.measure()
        self.complete()
        write_text(self.folder / "README.md", zoo.table(self.folder))
        return [entries.card(name) for group in groups for name in group.makers]


# ---------------------------------------------------------------------- mazes


@dataclass(frozen=True)
class MazeZooBuild(ZooBuild):
    """
    Base, experts and rewards of a maze, each measured in the real environment; see :class:`ZooBuild`, beside that:

    :param task: environment; its goal does not matter
    :param goals: (row, column) of each expert
    :param recipe: every number
    :param seed: of data, training and episodes
    :param n_episodes: for each measured number; default the recipe's
    :param progress_bar: show them
    :raises ValueError: in ``run``, for a goal that is not in a free cell, before anything is built
    """

    task: Task
    goals: Sequence[tuple[float, float]]
    recipe: Recipe
    seed: int = SEED
    n_episodes: int | None = None
    progress_bar: bool = False

    @property
    def entries(self) -> Entries:
        return Entries(self.task.env_id, self.recipe, self.seed, self.folder, self.date)

    def groups(self) -> list[Group]:
        groups = [self._group("base", "agent", self._make_base, self._finish_base)]
        for task in map(self.task.with_goal, self.goals):
            expert, reward = (zoo.goal_name(kind, task.goal or ()) for kind in ("expert", "reward"))
            groups += [
                self._group(expert, "agent", partial(self._make_expert, task), partial(self._measure_expert, task)),
                self._group(reward, "reward", partial(self._make_reward, task), partial(self._measure_reward, task)),
            ]
        return groups

    def _group(self, name: str, kind: str, make: Callable[[], Made], measure: Callable[[], None]) -> Group:
        return Group(f"{self.task.env_id}/{name}", {name: (kind, make)}, measure)

    def _make_base(self) -> DiffusionAgent:
        data = experiments.collect_base(self.task, self.recipe, self.seed)
        return experiments.train_base(self.task, self.recipe, data, self.seed, self.progress_bar)

    def _finish_base(self) -> None:
        self.entries.finish(self.entries.agent("base"), "base", self.task.with_goal(None), [])

    def _make_expert(self, task: Task) -> DiffusionAgent:
        base, data = self.entries.agent("base"), experiments.collect_expert(task, self.recipe, self.seed)
        return experiments.train_expert(base, self.recipe, data, self.seed, self.progress_bar)

    def _measure_expert(self, task: Task) -> None:
        name = zoo.goal_name("expert", task.goal or ())
        expert = self.entries.agent(name)
        self.entries.finish(expert, name, task, self._measure("agent", expert, task))

    def _make_reward(self, task: Task) -> RelativeReward:
        return experiments.extract(
            *self._pair(task), self._data(task)[0], self.recipe, self.seed, self.progress_bar
        ).reward

    def _measure_reward(self, task: Task) -> None:
        name = zoo.goal_name("reward", task.goal or ())
        (base, expert), reward = self._pair(task), self.entries.reward(name)
        train, held_out = self._data(task)
        other = experiments.discriminate(base, expert, train, self.recipe, self.seed, self.progress_bar)
        error = experiments.map_reward(reward, task.maze, self.recipe).goal_error_cells(task.goal)
        rows = [plain_row("reward", "goal_error_cells", error)]
        for scale in SCALES:
            steered = experiments.steer(base, reward, self.recipe, scale=scale)
            rows += self._measure(f"steered-{scale:g}", steered, task)
        rows += self._measure("discriminator", experiments.steer(base, other, self.recipe), task)
        rows += experiments.explained_rows(reward, base, expert, held_out, self.recipe, self.seed)
        self.entries.finish(reward, name, task, rows)

    def complete(self) -> None:
        """The base's success at every goal that has an expert; goals measured before keep their numbers."""
        rows = list(self.entries.card("base")["results"])
        measured = {row["agent"] for row in rows}
        tasks = {zoo.goal_name("base", goal): self.task.with_goal(goal) for goal in self.goals}
        missing = {name: task for name, task in tasks.items() if name not in measured}
        if not missing:
            return
        base = self.entries.agent("base")
        for name, task in missing.items():
            rows += self._measure(name, base, task)
        self.entries.finish(base, "base", self.task.with_goal(None), rows)

    def _pair(self, task: Task) -> tuple[DiffusionAgent, DiffusionAgent]:
        return self.entries.agent("base"), self.entries.agent(zoo.goal_name("expert", task.goal or ()))

    def _data(self, task: Task) -> tuple[list[TrajectoryDataset], list[TrajectoryDataset]]:
        both = [
            collect(task, self.recipe, self.seed) for collect in (experiments.collect_base, experiments.collect_expert)
        ]
        return experiments.split_data(both, self.seed, self.recipe)

    def _measure(self, name: str, agent: Predictor, task: Task) -> list[Row]:
        settings = section(with_episodes(self.recipe, self.n_episodes), "evaluation")
        rows = evaluate(agent, task.make, seed=self.seed, progress_bar=self.progress_bar, **settings).rows(name)
        self.log(f"  {name}: " + ", ".join(f"{row['metric']} {row['mean']:.3f}" for row in rows))
        return rows


# ---------------------------------------------------------------------- robots


@dataclass(frozen=True)
class RobotZooBuild(ZooBuild):
    """
    A robot's base, expert and reward as the locomotion experiment makes them, measured and filmed.

    :param unit: robot, kind of data and seed
    :param recipe: every number
    :param work: folder of the experiment's archives
    :param demonstrations: where data come from
    :param n_episodes: for each measured number; default the recipe's
    """

    unit: RobotUnit
    recipe: Recipe
    work: Path
    demonstrations: Demonstrations
    n_episodes: int | None = None

    @property
    def entries(self) -> Entries:
        unit = self.unit
        return Entries(unit.env_id, self.recipe, unit.seed, self.folder, self.date, {"case": unit.case})

    @property
    def store(self) -> RobotStore:
        return RobotStore(self.work, with_episodes(self.recipe, self.n_episodes), self.demonstrations)

    def groups(self) -> list[Group]:
        store, unit = self.store, self.unit
        makers: dict[str, tuple[str, Callable[[], Made]]] = {
            "base": ("agent", lambda: store.base(unit)[0]),
            "expert": ("agent", lambda: store.expert(unit)[0]),
            "reward": ("reward", lambda: store.reward(unit)[0]),
        }
        return [Group(unit.env_id, makers, partial(self._measure, store))]

    def _measure(self, store: RobotStore) -> None:
        entries, unit = self.entries, self.unit
        base, expert, reward = entries.agent("base"), entries.agent("expert"), entries.reward("reward")
        steered = experiments.steer(base, reward, self.recipe)
        agents: dict[str, Predictor] = {"base": base, "expert": expert, "steered": steered}
        for scale in SCALES:
            if scale != steered.scale:
                agents[f"steered-{scale:g}"] = experiments.steer(base, reward, self.recipe, scale=scale)
        agents["discriminator"] = experiments.steer(base, store.discriminator(unit)[0], self.recipe)
        results = run(store, unit, {"all": lambda: agents}, Recorder(lambda text: self.log(f"  {text}")))
        results |= {f"steered-{scale:g}": results["steered"] for scale in SCALES if scale == steered.scale}
        for name, actor in {"base": base, "expert": expert, "reward": steered}.items():
            film(actor, unit.task, entries.place(name) / VIDEO, seed=unit.seed)
        for name, agent, data in zip(PARTS, (base, expert), store.data(unit), strict=True):
            rows = results[name].rows("agent") + data_rows("data", unit, returns(data))
            entries.finish(agent, name, unit.task, rows, data=facts_of(data), video=VIDEO)
        rows = _reward_rows(results)
        held_out = store.sources(unit)[1]
        rows += experiments.explained_rows(reward, base, expert, held_out, self.recipe, unit.seed)
        steering = section(self.recipe, "steering")
        entries.finish(reward, "reward", unit.task, rows, steering=steering, video=VIDEO)


def robot_unit(env_id: str, recipe: Recipe, case: str | None = None, seed: int = SEED) -> RobotUnit:
    """
    The pair of an environment.

    :param recipe: of the environment, which defines how demonstrations are made
    :param case: a kind of demonstrations; None: the recipe's first
    :raises ValueError: when the recipe makes no demonstrations, or for a kind that is not known
    """
    cases = cases_of(recipe)
    if not cases:
        raise ValueError(f"recipe {recipe.get('name')!r} does not say how demonstrations in {env_id} are made: [data]")
    check_names("case", None if case is None else [case], known_cases(recipe))
    return RobotUnit(str(recipe.get("name", env_id)), case or cases[0], seed, env_id)


def facts_of(data: TrajectoryDataset) -> dict[str, Any]:
    """How data were collected, and how much; what every single episode returned is left out."""
    agents: Sequence[Mapping[str, Any]] = data.metadata.get("agents", [])
    told = {key: value for key, value in data.metadata.items() if key not in ("returns", "agents")}
    if agents:
        told["agents"] = [{key: value for key, value in one.items() if key != "returns"} for one in agents]
    return {"n_transitions": data.n_transitions, "n_episodes": data.n_episodes, **told}


def _reward_rows(results: Mapping[str, Evaluation]) -> list[Row]:
    """Rows of the steered agents, with differences from the base and shares of the gap to the expert."""
    rows = [row for name, result in results.items() if name not in PARTS for row in result.rows(name)]
    return rows + [row for row in comparisons(results, *PARTS) if np.isfinite(row["mean"])]


# ---------------------------------------------------------------------- images


@dataclass(frozen=True)
class ImageZooBuild(ZooBuild):
    """
    An image pair as the image experiment makes it: base, expert, reward and the classifier of samples.

    :param unit: classes that the expert has not seen, kind of expert, and seed
    :param store: makes or loads base, expert, reward and classifier
    :param n_samples: of each model; default the recipe's
    :raises FileNotFoundError: in ``run``, when there are no images to learn from or to measure on
    """

    unit: ImageUnit
    store: ImageStore
    n_samples: int | None = None

    group_name: ClassVar[str] = FASHION_MNIST

    @property
    def entries(self) -> Entries:
        unit = self.unit
        facts = {"case": unit.case, "unwanted": list(unit.held_out)}
        return Entries(self.group_name, self.store.recipe, unit.seed, self.folder, self.date, facts)

    def check(self) -> None:
        """Where there are no real images, nothing is begun."""
        self._real_images()

    def groups(self) -> list[Group]:
        store, unit = self.store, self.unit
        makers: dict[str, tuple[str, Callable[[], Made]]] = {
            "base": (ImageDiffusion.kind, lambda: store.base(unit.seed)[0]),
            "expert": (ImageDiffusion.kind, lambda: store.expert(unit)[0]),
            "reward": (ImageReward.kind, lambda: store.reward(unit)[0]),
            "judge": (ImageClassifier.kind, lambda: store.classifier()[0]),
        }
        return [Group(self.group_name, makers, self._measure)]

    def _measure(self) -> None:
        entries, real, sampling = self.entries, self._real_images(), self.store.sampling
        base, expert = (entries.shipped(ImageDiffusion, name) for name in ("base", "expert"))
        reward, classifier = entries.shipped(ImageReward, "reward"), entries.shipped(ImageClassifier, "judge")
        rows = experiments.separation_rows(reward.predict(real.images), real, self.unit.held_out)
        for scale in SCALES:
            drawn = self._sample(base, reward=reward, scale=scale)
            rows += self._classified(f"steered-{scale:g}", drawn, classifier)
        write_grid(drawn[:N_SHOWN], entries.place("reward") / PICTURE)  # steered at the last scale
        entries.finish(reward, "reward", None, rows, sampling=sampling, picture=PICTURE)
        for name, model in (("base", base), ("expert", expert)):
            drawn = self._sample(model)
            write_grid(drawn[:N_SHOWN], entries.place(name) / PICTURE)
            rows = self._classified("agent", drawn, classifier)
            entries.finish(model, name, None, rows, sampling=sampling, picture=PICTURE)
        right = estimate_row("judge", "accuracy", share(classifier.predict(real.images) == real.labels))
        entries.finish(classifier, "judge", None, [right], classes=list(classifier.class_names))

    def _real_images(self) -> LabelledImages:
        """Held-out images, as many as the recipe wants, drawn by the unit's seed."""
        everything = self.store.test_images()
        order = np.random.default_rng(self.unit.seed).permutation(len(everything))
        return everything.take(order[: int(section(self.store.recipe, "evaluation")["n_test"])])

    def _sample(self, model: ImageDiffusion, **steering: Any) -> Array:
        n = self.n_samples or int(section(self.store.recipe, "evaluation")["n_steered"])
        return sample_images(model, n, seed=self.unit.seed + NOISE_SEED, **self.store.sampling, **steering)

    def _classified(self, agent: str, drawn: Array, classifier: ImageClassifier) -> list[Row]:
        rows = experiments.sample_rows(agent, drawn, classifier, self.unit.held_out)
        self.log(f"  {agent}: {zoo.HARMFUL} {rows[0]['mean']:.3f}")
        return rows


def image_unit(seed: int) -> ImageUnit:
    """The image pair that the zoo has."""
    return ImageUnit(REMOVED, FINE_TUNED, seed)
