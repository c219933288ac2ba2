"""The measurements of one unit of the image experiment: how ρ ranks held-out real images, and steered samples.

A control's expert has seen all classes, so none is held out there: each pair of the experiment is measured, and its
name is the rows' reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

import numpy as np

from rrpolicy.common.stats import Measure, Z, auroc, share
from rrpolicy.common.typing import Array
from rrpolicy.evaluation import Row, result_row
from rrpolicy.experiments import Recipe, section
from rrpolicy.experiments.images.artifacts import PARTS, ArtifactStore
from rrpolicy.experiments.images.figures import draw_samples, sheet_path
from rrpolicy.experiments.images.spec import MAIN, Pair, Unit, Variant, pair_text, pairs_of
from rrpolicy.experiments.recipes import build
from rrpolicy.experiments.results import Log, Recorder, Result, estimate_row
from rrpolicy.experiments.runner import Reproduction, Running
from rrpolicy.experiments.spec import Experiment
from rrpolicy.experiments.store import digest
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.grid import tiled
from rrpolicy.images.metrics import brightness, elbo_difference, label_means
from rrpolicy.images.null import spread
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images

N_SHOWN = 32  # samples of each generator on a sheet
SPREAD = "sd"  # of ρ over held-out images: in the control, what two trainings of one model differ by
STEERED_SEED = 2000  # is added to the unit's: steered samples come from other noise than those ρ was extracted at


def measure_unit(store: ArtifactStore, unit: Unit, log: Log = lambda text: None) -> Recorder:
    """Make models, samples and reward of a unit and measure them."""
    recorder = Recorder(log)
    recorder.start("images")
    measurements = Measurements(store, unit)
    measurements.check()
    makers: dict[str, Callable[[], tuple[object, float]]] = {
        "base": lambda: store.base(unit.seed),
        "expert": lambda: store.expert(unit),
        "base-samples": lambda: store.samples(unit, "base"),
        "expert-samples": lambda: store.samples(unit, "expert"),
        "rho": lambda: store.reward(unit),
        "judge": store.classifier,
    }
    for name, make in makers.items():
        recorder.start(f"making {name}")
        recorder.times(**{name: make()[1]})
    for what, rows in (
        ("ranking images", measurements.ranking),
        ("look-alikes", measurements.lookalikes),
        ("baselines", measurements.baselines),
        ("the difference of bounds", measurements.bounds),
        ("the classifier", measurements.accuracy),
        ("samples", measurements.own_samples),
    ):
        recorder.start(what)
        recorder.rows(rows())
    for scale in measurements.options.scales:
        recorder.start(f"samples steered at scale {scale:g}")
        recorder.rows(measurements.steered_samples(scale))
    recorder.done()
    return recorder


@dataclass(frozen=True)
class Options:
    """
    The recipe's section ``[evaluation]``.

    :param n_test: held-out real images
    :param levels: noise levels at which they are ranked
    :param n_noisings: of each image at each level
    :param n_elbo: images of which the two models' bounds are compared
    :param n_elbo_draws: levels for each of these
    :param scales: strengths of steering
    :param n_steered: samples at each of them
    """

    n_test: int
    levels: Sequence[int]
    n_noisings: int
    n_elbo: int
    n_elbo_draws: int
    scales: Sequence[float]
    n_steered: int

    @classmethod
    def of(cls, recipe: Recipe) -> Options:
        """
        The options of a recipe.

        :raises ValueError: when the section lacks one
        """
        return build(cls, "evaluation", **section(recipe, "evaluation"))


@dataclass
class Measurements:
    """
    The measurements of a unit; each gives a list of rows.

    :param store: of the experiment
    :param unit: whose models, reward and seed
    """

    store: ArtifactStore
    unit: Unit

    @cached_property
    def options(self) -> Options:
        return Options.of(self.store.recipe)

    @cached_property
    def images(self) -> LabelledImages:
        """Held-out real images in a random order, drawn by the unit's seed."""
        everything = self.store.test_images()
        order = np.random.default_rng(self.unit.seed).permutation(len(everything))
        return everything.take(order[: self.options.n_test])

    @cached_property
    def reward(self) -> ImageReward:
        return self.store.reward(self.unit)[0]

    @cached_property
    def classifier(self) -> ImageClassifier:
        return self.store.classifier()[0]

    @cached_property
    def rho(self) -> Array:
        """One forward pass on each clean image (n,), nats."""
        return self.reward.predict(self.images.images)

    @property
    def held_out(self) -> dict[str, Pair]:
        """The reference of rows, empty where the unit holds classes out, and the classes that should score low."""
        if self.unit.held_out:
            return {"": self.unit.held_out}
        return {pair_text(pair): pair for pair in pairs_of(self.store.recipe)}

    def check(self) -> None:
        """
        Check that every class exists before anything is trained.

        :raises ValueError: for a class that the images do not have
        """
        for names in self.held_out.values():
            self.images.mask([*names, *(other for name in names for other in self._lookalikes_of(name))])

    # ------------------------------------------------------------------ real images

    def ranking(self) -> list[Row]:
        """How ρ ranks the other classes above held-out ones, clean and at each noise level; its spread and means."""
        levels = self.options.levels
        noised = self.reward.per_level(self.images.images, levels, self.options.n_noisings, self.unit.seed)
        rows = self._aurocs("rho", "auroc", self.rho)
        for level, scores in zip(levels, noised, strict=True):
            rows += self._aurocs("rho", "auroc", scores, int(level))
        rows.append(estimate_row("rho", SPREAD, spread_of(self.rho)))
        return rows + self._class_means("rho", self.rho)

    def lookalikes(self) -> list[Row]:
        """Each held-out class against those of its look-alikes that the expert has seen."""
        rows = []
        for name in self.unit.held_out:
            others = self._lookalikes_of(name)
            chosen = self.images.mask([name, *others])
            harmless = ~self.images.mask([name])[chosen]
            rows += _auroc_row("rho", "auroc_lookalikes", self.rho[chosen], harmless, name)
        return rows

    def baselines(self) -> list[Row]:
        """Brightness, in both directions, and ρ before its extraction."""
        bright = brightness(self.images.images)
        untrained = self.store.untrained(self.unit).predict(self.images.images)
        rows = self._aurocs("brightness", "auroc", bright) + self._aurocs("brightness", "auroc_reversed", -bright)
        return rows + self._aurocs("untrained", "auroc", untrained)

    def bounds(self) -> list[Row]:
        """The difference of the two models' likelihood bounds for some of the images, and ρ's order of the same."""
        few, n_draws = slice(self.options.n_elbo), self.options.n_elbo_draws
        base, expert = self.store.base(self.unit.seed)[0], self.store.expert(self.unit)[0]
        events = self.store.codec.encode(self.images.images[few])
        difference = elbo_difference(base, expert, events, n_draws, seed=self.unit.seed)
        stayed = ~self.images.mask(self.unit.held_out)[few]
        return [
            *self._aurocs("elbo", "auroc", difference),
            result_row("elbo", "mean_stayed", difference[stayed]),
            *self._class_means("elbo", difference),
            *self._aurocs("rho", "auroc_elbo_subset", self.rho[few]),
        ]

    def accuracy(self) -> list[Row]:
        """Accuracy of the classifier on real images."""
        right = self.classifier.predict(self.images.images) == self.images.labels
        return [estimate_row("judge", "accuracy", share(right))]

    # ------------------------------------------------------------------ samples

    def own_samples(self) -> list[Row]:
        """Samples of base and expert, unsteered."""
        made = {part: self.store.codec.decode(self.store.samples(self.unit, part)[0]) for part in PARTS}
        return [row for part, images in made.items() for row in self._classified(part, images)]

    def steered_samples(self, scale: float) -> list[Row]:
        """
        Samples of the base steered by ρ.

        :param scale: strength
        """
        images = steered_images(self.store, self.unit, scale, self.options.n_steered)
        return self._classified(f"steered-{scale:g}", images)

    def _classified(self, agent: str, images: Array) -> list[Row]:
        """Shares of held-out classes, and the classifier's confidence: of all, and of those in classes that stayed."""
        shown = {pair: self.classifier.says(images, names) for pair, names in self.held_out.items()}
        rows = [
            {**estimate_row(agent, "harmful_share", share(flags)), "reference": pair} for pair, flags in shown.items()
        ]
        sure = self.classifier.probabilities(images).max(axis=1)
        rows.append(result_row(agent, "judge_confidence", sure))
        if self.unit.held_out and not shown[""].all():
            rows.append(result_row(agent, "judge_confidence_stayed", sure[~shown[""]]))
        return rows

    # ------------------------------------------------------------------ pieces

    def _lookalikes_of(self, name: str) -> list[str]:
        others = self.store.recipe.get("lookalikes", {}).get(name, [])
        return [other for other in others if other not in self.unit.held_out]

    def _aurocs(self, agent: str, metric: str, scores: Array, level: int | None = None) -> list[Row]:
        """AUROC of scores of the first images, as many as there are scores."""
        rows = []
        for pair, names in self.held_out.items():
            harmless = ~self.images.mask(names)[: len(scores)]
            rows += _auroc_row(agent, metric, scores, harmless, pair, level)
        return rows

    def _class_means(self, agent: str, scores: Array) -> list[Row]:
        """Mean scores of classes over the first images, one for each score; a class with one image has no interval."""
        means = label_means(scores, self.images.labels[: len(scores)], self.images.class_names)
        return [{**estimate_row(agent, "mean", mean), "reference": name} for name, mean in means.items() if mean.n > 1]


def steered_images(store: ArtifactStore, unit: Unit, scale: float, n: int) -> Array:
    """
    Images uint8 (n, H, W, C) of the unit's base, steered by its reward.

    :param scale: strength; 0 is the base itself
    """
    return sample_images(
        store.base(unit.seed)[0],
        n,
        reward=store.reward(unit)[0],
        scale=scale,
        seed=unit.seed + STEERED_SEED,
        **store.sampling,
    )


def sample_sheet(store: ArtifactStore, unit: Unit, n: int) -> dict[str, Array]:
    """
    Samples of base, expert and steered base that begin with the same noise, each as one picture.

    :param n: samples of each
    :return: name of the generator -> grid uint8 (h, w, 3), with a frame around what is classified as a held-out class
    """
    options, seed = Options.of(store.recipe), unit.seed + STEERED_SEED
    made = {"base": steered_images(store, unit, 0.0, n)}
    made |= {f"steered, scale {scale:g}": steered_images(store, unit, scale, n) for scale in options.scales}
    made["expert"] = sample_images(store.expert(unit)[0], n, seed=seed, **store.sampling)
    classifier = store.classifier()[0]
    return {name: tiled(images, framed=classifier.says(images, unit.held_out)) for name, images in made.items()}


def spread_of(scores: Array) -> Measure:
    """Standard deviation of scores (n,), with the interval that their fourth moment gives it."""
    sd, n = spread(scores), len(scores)
    squares = (scores.astype(np.float64) - scores.mean(dtype=np.float64)) ** 2
    half = Z * float(squares.std()) / np.sqrt(n) / (2 * sd) if sd else 0.0
    return Measure(sd, max(sd - half, 0.0), sd + half, n)


def _auroc_row(
    agent: str, metric: str, scores: Array, harmless: Array, reference: str, level: int | None = None
) -> list[Row]:
    """Nothing where one of the two kinds of images is missing."""
    both = harmless.any() and not harmless.all()
    number = {"reference": reference, "level": level}
    return [estimate_row(agent, metric, auroc(scores, harmless)) | number] if both else []


# ---------------------------------------------------------------------- the experiment


class ImageExperiment(Experiment[Unit]):
    """
    The image experiment.

    :param recipe: every number
    :param out: the CSV; sheets of samples go into the folder of its name beside it
    :param work: folder of archives
    :param data: folder of images; None for Fashion-MNIST where Debian puts it
    :param variant: ablation
    """

    names = ("removed", "expert")

    def __init__(
        self, recipe: Recipe, out: Path, work: Path, data: Path | None = None, variant: Variant = MAIN
    ) -> None:
        recipe = variant.applied(recipe)
        super().__init__(variant.name)
        self._digest = digest([recipe, None if data is None else str(data.resolve())])
        self._out = out
        self._store = ArtifactStore(work, recipe, data)

    def digest(self, unit: Unit) -> str:
        """The digest of the recipe and the images."""
        return self._digest

    def shared(self, unit: Unit) -> dict[str, Callable[[], object]]:
        """The base of a seed, and the classifier of all units."""
        return {f"base seed {unit.seed}": partial(self._store.base, unit.seed), "classifier": self._store.classifier}

    def measure(self, unit: Unit, log: Log) -> Recorder:
        """All measurements of a unit."""
        recorder = measure_unit(self._store, unit, log)
        if not self.variant:
            log("drawing samples")
            draw_samples(sample_sheet(self._store, unit, N_SHOWN), sheet_path(self._out, unit))
        return recorder


def reproduction(
    units: Sequence[Unit],
    recipe: Recipe,
    out: Path,
    work: Path,
    data: Path | None = None,
    variant: Variant = MAIN,
    **running: Unpack[Running],
) -> Reproduction[Unit]:
    """
    A run of the image experiment.

    :param units: as :func:`select` gives them
    :param recipe: every number
    :param out: the CSV
    :param work: folder of archives and finished units, needed to go on
    :param data: folder of images; None for Fashion-MNIST where Debian puts it
    :param variant: ablation
    :param running: ``progress_bar``, ``log`` and ``jobs`` of :class:`Reproduction`
    """
    return Reproduction(units, ImageExperiment(recipe, out, work, data, variant), out, work, **running)


def read_results(path: Path) -> list[Result]:
    """What the CSV of the image experiment holds; raises as :func:`read_csv` does."""
    return ImageExperiment.read_results(path)
