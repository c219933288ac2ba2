"""Fills the zoo with an image pair as the image experiment makes it: base, expert, reward and the judge of samples.

Training is kept in the experiment's own folder; every number is measured on the archives as they are shipped, in half
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rrpolicy import zoo
from rrpolicy.common.files import write_text
from rrpolicy.common.stats import share
from rrpolicy.common.typing import Array
from rrpolicy.evaluation import Row
from rrpolicy.experiments import section
from rrpolicy.experiments.image_scores import FASHION_MNIST, estimate_row, judged_rows, rho_rows
from rrpolicy.experiments.images.units import FINE_TUNED, Unit
from rrpolicy.experiments.images.workshop import ArtifactStore
from rrpolicy.experiments.zoo_build import SCALES
from rrpolicy.experiments.zoo_entries import Entries, today
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.grid import write_grid
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.training import ImageDiffusion

RECIPE = "fashion_mnist"
REMOVED = ("trouser", "sneaker")
KINDS = {
    "base": ImageDiffusion.kind,
    "expert": ImageDiffusion.kind,
    "reward": ImageReward.kind,
    "judge": ImageClassifier.kind,
}
PICTURE, N_SHOWN = "samples.png", 128
NOISE_SEED = 2000  # is added to the unit's: samples come from other noise than those the reward was extracted at


def unit_of(seed: int) -> Unit:
    """The pair that the zoo has."""
    return Unit(REMOVED, FINE_TUNED, seed)


@dataclass(frozen=True)
class ImageZooBuild:
    """
    :param unit: classes that the expert has not seen, kind of expert, and seed
    :param store: makes base, expert, reward and judge, or has made them
    :param folder: the zoo
    :param date: of the cards, YYYY-MM-DD; default today
    :param n_samples: of each model; default the recipe's
    :param log: told what happens
    """

    unit: Unit
    store: ArtifactStore
    folder: Path = field(default_factory=zoo.folder)
    date: str = field(default_factory=today)
    n_samples: int | None = None
    log: Callable[[str], None] = lambda text: None

    def run(self, force: bool = False) -> list[dict[str, Any]]:
        """
        Build the four entries unless they are there, and the table.

        :param force: measure anew; what was trained is kept in the workshop's folder
        :return: the cards
        :raises FileNotFoundError: when there are no images to learn from or to measure on
        """
        entries = self._entries
        if not force and all(entries.finished(name, kind) for name, kind in KINDS.items()):
            self.log(f"{FASHION_MNIST}: there already")
        else:
            self.log(f"{FASHION_MNIST}: building")
            self._build(entries)
        write_text(self.folder / "README.md", zoo.table(self.folder))
        return [entries.card(name) for name in KINDS]

    def _build(self, entries: Entries) -> None:
        real = self._real_images()  # where there are none, nothing is begun
        for name, make in self._makers.items():
            self.log(f"  {name}")
            entries.begin(name)
            entries.ship(make(), name)
        base, expert = (entries.shipped(ImageDiffusion, name) for name in ("base", "expert"))
        reward, classifier = entries.shipped(ImageReward, "reward"), entries.shipped(ImageClassifier, "judge")
        rows = rho_rows(reward.predict(real.images), real, self.unit.removed)
        for scale in SCALES:
            drawn = self._sample(base, reward=reward, scale=scale)
            rows += self._judged(f"steered-{scale:g}", drawn, classifier)
        write_grid(drawn[:N_SHOWN], entries.place("reward") / PICTURE)  # steered at the last scale
        entries.finish(reward, "reward", None, rows, sampling=self.store.sampling, picture=PICTURE)
        for name, model in (("base", base), ("expert", expert)):
            drawn = self._sample(model)
            write_grid(drawn[:N_SHOWN], entries.place(name) / PICTURE)
            rows = self._judged("agent", drawn, classifier)
            entries.finish(model, name, None, rows, sampling=self.store.sampling, picture=PICTURE)
        right = estimate_row("judge", "accuracy", share(classifier.predict(real.images) == real.labels))
        entries.finish(classifier, "judge", None, [right], classes=list(classifier.class_names))

    # ------------------------------------------------------------------ helpers

    @property
    def _makers(self) -> Mapping[str, Callable[[], ImageDiffusion | ImageReward | ImageClassifier]]:
        store, unit = self.store, self.unit
        return {
            "base": lambda: store.base(unit.seed)[0],
            "expert": lambda: store.expert(unit)[0],
            "reward": lambda: store.reward(unit)[0],
            "judge": lambda: store.classifier()[0],
        }

    @property
    def _entries(self) -> Entries:
        unit = self.unit
        facts = {"case": unit.case, "unwanted": list(unit.removed)}
        return Entries(FASHION_MNIST, self.store.recipe, unit.seed, self.folder, self.date, facts)

    def _real_images(self) -> LabelledImages:
        """Held-out images, as many as the recipe wants, drawn by the unit's seed."""
        everything = self.store.test_images()
        order = np.random.default_rng(self.unit.seed).permutation(len(everything))
        return everything.take(order[: int(section(self.store.recipe, "evaluation")["n_test"])])

    def _sample(self, model: ImageDiffusion, **steering: Any) -> Array:
        n = self.n_samples or int(section(self.store.recipe, "evaluation")["n_steered"])
        return sample_images(model, n, seed=self.unit.seed + NOISE_SEED, **self.store.sampling, **steering)

    def _judged(self, agent: str, drawn: Array, classifier: ImageClassifier) -> list[Row]:
        rows = judged_rows(agent, drawn, classifier, self.unit.removed)
        self.log(f"  {agent}: {zoo.HARMFUL} {rows[0]['mean']:.3f}")
        return rows
