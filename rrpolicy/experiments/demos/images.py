"""The demo with images: two models of the zoo, the reward extracted from them, and the base steered with it.

A classifier counts samples of held-out classes; the reward, extracted without labels, scores each image by one forward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rrpolicy import experiments, zoo
from rrpolicy.common.typing import Array
from rrpolicy.evaluation import RESULTS_FILE, Row, table, write_results
from rrpolicy.evaluation.plots import FAINT, INK
from rrpolicy.experiments.demos.stage import timed
from rrpolicy.experiments.report import save_figure
from rrpolicy.experiments.runs import clear
from rrpolicy.experiments.task import FASHION_MNIST
from rrpolicy.images.audit import PAGE_FILE, write_audit
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages, load_images
from rrpolicy.images.grid import tiled
from rrpolicy.images.reward import ImageReward
from rrpolicy.images.sampling import sample_images
from rrpolicy.images.training import ImageDiffusion

NAMES = ("base", "expert", "reward", "judge")
SAMPLES = "samples.png"
PRODUCTS = (RESULTS_FILE, SAMPLES, PAGE_FILE)
SCALES = (1.0, 2.0)
N_SCORED = 2000  # real images at most
N_SAMPLES = 512
N_SHOWN = 64  # samples of each model in the picture


@dataclass(frozen=True)
class ImagesDemo:
    """
    The demo with images: samples of base, steered base and expert, and scores of real images.

    :param out: folder, made if missing; what an earlier demo left there is replaced
    :param seed: of the samples, and of the choice of real images
    :param data: folder of real images of the classifier's classes; None: Fashion-MNIST where it is installed, else the
        base's own samples are scored, labelled by the classifier
    :param n_samples: of each model, all from the same noise
    :param log: called with a line of text at each step
    """

    out: Path
    seed: int = 0
    data: Path | None = None
    n_samples: int = N_SAMPLES
    log: Callable[[str], None] = lambda text: None

    def run(self) -> list[Row]:
        """
        Run the demo.

        :return: the rows of ``results.json``
        :raises FileNotFoundError: when ``data`` holds no images
        :raises ValueError: when the zoo lacks an entry, without the extra ``images``, or for images of other classes;
            before anything is removed
        """
        if self.n_samples < 1:
            raise ValueError(f"n_samples is {self.n_samples}, it must be at least 1")
        base, expert, reward, classifier = _from_the_zoo()
        card = zoo.info(f"{FASHION_MNIST}/reward")
        real = self._real_images(classifier)
        self.out.mkdir(parents=True, exist_ok=True)
        clear(self.out, PRODUCTS)
        self.log(f"base, expert, reward and classifier from the zoo: {FASHION_MNIST}; seed {self.seed}")
        self.log(f"the expert has never seen {' and '.join(card['unwanted'])}; their share of samples: {zoo.HARMFUL}")
        steered = {f"steered-{scale:g}": (base, {"reward": reward, "scale": scale}) for scale in SCALES}
        models: dict[str, tuple[ImageDiffusion, dict[str, Any]]]
        models = {"base": (base, {}), **steered, "expert": (expert, {})}
        samples, rows = self._sample(models, classifier, card)
        if real is None:
            scored, whose = _labelled(samples["base"], classifier), "samples of the base, labelled by the classifier"
        else:
            scored, whose = real, "held-out real images"
        with timed(f"one forward pass on each of {len(scored)} {whose}", self.log):
            rho = reward.predict(scored.images)
        rows += experiments.separation_rows(rho, scored, card["unwanted"])
        write_results(rows, self.out)
        self._show(scored, rho, rows, samples, classifier, card["unwanted"])
        written = ", ".join(sorted(PRODUCTS))
        self.log(f"\n{table(rows)}\n\nρ has scored {len(scored)} {whose}.\nEverything is in {self.out}: {written}")
        return rows

    def _sample(
        self,
        models: Mapping[str, tuple[ImageDiffusion, Mapping[str, Any]]],
        classifier: ImageClassifier,
        card: Mapping[str, Any],
    ) -> tuple[dict[str, Array], list[Row]]:
        """Samples of every model, with what steers it, from the same noise; what is done is in ``results.json``."""
        samples: dict[str, Array] = {}
        rows: list[Row] = []
        for name, (model, steering) in models.items():
            with timed(f"{self.n_samples} samples of {name}", self.log):
                samples[name] = sample_images(model, self.n_samples, seed=self.seed, **card["sampling"], **steering)
            rows += experiments.sample_rows(name, samples[name], classifier, card["unwanted"])
            write_results(rows, self.out)
        return samples, rows

    def _show(
        self,
        scored: LabelledImages,
        rho: Array,
        rows: Sequence[Row],
        samples: Mapping[str, Array],
        classifier: ImageClassifier,
        held_out: Sequence[str],
    ) -> None:
        """The audit page and the picture."""
        labels = [scored.class_names[label] for label in scored.labels]
        with timed("audit page and picture", self.log):
            write_audit(
                self.out,
                scored.images,
                rho,
                labels=labels,
                unwanted=sorted(set(held_out) & set(labels)),
                samples={_called(name): drawn for name, drawn in samples.items()},
                title="What the expert prefers: Fashion-MNIST",
            )
            plot_samples(samples, rows, classifier, held_out, self.out / SAMPLES)

    def _real_images(self, classifier: ImageClassifier) -> LabelledImages | None:
        """Held-out real images of the classifier's classes, some if there are many; None where there are none."""
        channels, size, _ = classifier.codec.image_shape
        try:
            found = load_images(self.data, "test", size, channels, classifier.class_names)
        except FileNotFoundError:
            if self.data is not None:
                raise
            self.log("Fashion-MNIST is not installed (Debian's dataset-fashion-mnist, or --data)")
            return None
        if found.class_names != classifier.class_names:
            classes = ", ".join(found.class_names)
            raise ValueError(f"data has the classes {classes}, the classifier has {', '.join(classifier.class_names)}")
        chosen = np.random.default_rng(self.seed).permutation(len(found))[:N_SCORED]
        return found.take(np.sort(chosen))


def _from_the_zoo() -> tuple[ImageDiffusion, ImageDiffusion, ImageReward, ImageClassifier]:
    base, expert, reward, classifier = (zoo.find(f"{FASHION_MNIST}/{name}") for name in NAMES)
    return (
        ImageDiffusion.load(base),
        ImageDiffusion.load(expert),
        ImageReward.load(reward),
        ImageClassifier.load(classifier),
    )


def _labelled(samples: Array, classifier: ImageClassifier) -> LabelledImages:
    return LabelledImages(samples, classifier.predict(samples).astype(np.int64), classifier.class_names)


def _called(name: str) -> str:
    """A name for display: ``steered-2`` -> ``base steered, scale 2``."""
    return name.replace("steered-", "base steered, scale ")


def plot_samples(
    samples: Mapping[str, Array], rows: Sequence[Row], classifier: ImageClassifier, held_out: Sequence[str], path: Path
) -> Figure:
    """
    Write the picture: a panel for each model, with its samples of held-out classes framed.

    :param samples: of each model uint8 (n, H, W, C)
    :param rows: with the share of these
    :param path: where it is written
    :return: the figure
    """
    shares = {row["agent"]: row for row in rows if row["metric"] == zoo.HARMFUL}
    figure = Figure(figsize=(3.2 * len(samples), 3.9), layout="constrained")
    for axes, (name, drawn) in zip(figure.subplots(1, len(samples)), samples.items(), strict=True):
        shown = drawn[:N_SHOWN]
        axes.imshow(tiled(shown, framed=classifier.says(shown, held_out)), interpolation="nearest")
        axes.axis("off")
        axes.set_title(f"{_called(name)}: {shares[name]['mean']:.1%} unwanted", fontsize=11, color=INK)
    figure.supxlabel(
        f"equal places start from equal noise; framed: classified as {' or '.join(held_out)}", fontsize=9, color=FAINT
    )
    save_figure(figure, path)
    return figure
