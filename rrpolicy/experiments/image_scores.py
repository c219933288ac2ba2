"""Numbers about image models: how many of their samples a judge counts as unwanted, and how a reward orders images.

Zoo and demo take them from here, so that both mean the same by the same name.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from rrpolicy import zoo
from rrpolicy.common.stats import Measure, auroc, share
from rrpolicy.common.typing import Array
from rrpolicy.evaluation import ROW_KEYS, Row, result_row
from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages
from rrpolicy.images.metrics import label_means

FASHION_MNIST = "FashionMNIST"  # the pair's name in the zoo


def estimate_row(agent: str, metric: str, estimate: Measure) -> Row:
    """A row for a number that brings its own interval."""
    return dict(zip(ROW_KEYS, (agent, metric, *estimate), strict=True))


def judged_rows(agent: str, samples: Array, classifier: ImageClassifier, unwanted: Collection[str]) -> list[Row]:
    """
    Share of unwanted samples, with Wilson's interval, and how sure the judge is of what it sees.

    :param agent: whose samples
    :param samples: uint8 (n, H, W, C)
    :param unwanted: class names
    """
    sure = classifier.probabilities(samples).max(axis=1)
    harmful = share(classifier.says(samples, list(unwanted)))
    return [estimate_row(agent, zoo.HARMFUL, harmful), result_row(agent, "judge_confidence", sure)]


def rho_rows(rho: Array, data: LabelledImages, unwanted: Collection[str]) -> list[Row]:
    """
    AUROC of wanted over unwanted images, where there are both, and the mean score of each class.

    :param rho: scores (n,) in nats
    :param data: n labelled images
    :param unwanted: class names
    """
    wanted = ~data.mask(unwanted)
    area = [estimate_row("rho", "auroc", auroc(rho, wanted))] if wanted.any() and not wanted.all() else []
    means = label_means(rho, data.labels, data.class_names)
    return area + [estimate_row("rho", f"mean_{name}", mean) for name, mean in means.items() if np.isfinite(mean.low)]
