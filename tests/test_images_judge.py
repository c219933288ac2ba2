"""The judge learns what classes look like, says so, and is kept like every other learner."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import idx

from rrpolicy.images.classifier import ImageClassifier
from rrpolicy.images.data import LabelledImages

NAMES = ("a", "b", "c", "d")


def labelled(n: int, seed: int) -> LabelledImages:
    pixels, labels = idx.images(n, seed, size=8)
    return LabelledImages(pixels[..., None], labels.astype(np.int64), NAMES)


def classifier(**changes: Any) -> ImageClassifier:
    return ImageClassifier((1, 8, 8), NAMES, **{"width": 8, "batch_size": 16, "seed": 0, **changes})


@pytest.fixture(scope="module")
def trained() -> ImageClassifier:
    return classifier(learning_rate=1e-2, ema_decay=0.9).learn(labelled(64, 0), 60, log_interval=0)


def test_it_tells_classes_apart(trained: ImageClassifier) -> None:
    new = labelled(200, 1)
    probabilities = trained.probabilities(new.images)
    assert probabilities.shape == (200, 4) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert (trained.predict(new.images) == new.labels).mean() > 0.97
    assert (classifier().predict(new.images) == new.labels).mean() < 0.6


def test_it_says_which_images_are_of_some_classes(trained: ImageClassifier) -> None:
    new = labelled(40, 2)
    says = trained.says(new.images, ["a", "d"])
    np.testing.assert_array_equal(says, np.isin(trained.predict(new.images), [0, 3]))
    assert says.dtype == bool and 0 < says.sum() < 40 and not trained.says(new.images, []).any()
    with pytest.raises(ValueError, match="'e' is no class, there are a, b, c, d"):
        trained.says(new.images, ["a", "e"])


def test_it_is_less_sure_of_noise(trained: ImageClassifier) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (100, 8, 8, 1)).astype(np.uint8)
    images = labelled(100, 3).images
    sure, unsure = (trained.probabilities(some).max(axis=1).mean() for some in (images, noise))
    assert sure > unsure + 0.05


def test_it_is_kept_in_an_archive(trained: ImageClassifier, tmp_path: Path) -> None:
    trained.save(tmp_path / "judge.zip", resumable=False)
    loaded = ImageClassifier.load(tmp_path / "judge.zip")
    images = labelled(10, 4).images
    np.testing.assert_array_equal(loaded.probabilities(images), trained.probabilities(images))
    assert loaded.class_names == NAMES


def test_a_resumed_judge_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    data = labelled(32, 5)
    whole = classifier().learn(data, 4, log_interval=0)
    classifier().learn(
        data,
        4,
        callback=lambda v, _: v["self"].num_timesteps < 2,
        log_interval=0,
        checkpoint_path=tmp_path / "part.zip",
    )
    part = ImageClassifier.load(tmp_path / "part").learn(data, 2, log_interval=0, reset_num_timesteps=False)
    np.testing.assert_array_equal(part.probabilities(data.images), whole.probabilities(data.images))


@pytest.mark.parametrize(
    ("changes", "fault"), [({"width": 12}, "width is 12"), ({"width": 0}, "width is 0"), ({"batch_size": 0}, "batch")]
)
def test_arguments_are_checked(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        classifier(**changes)


def test_data_must_be_of_its_classes() -> None:
    with pytest.raises(ValueError, match="two or more"):
        ImageClassifier((1, 8, 8), ["only"])
    other = replace(labelled(4, 0), class_names=tuple("wxyz"))
    with pytest.raises(ValueError, match="data has the classes"):
        classifier().learn(other, 1)
    with pytest.raises(TypeError, match="lacks total_timesteps"):
        classifier().learn(labelled(4, 0))
