"""Labelled images: idx files and folders of pictures become the same small arrays, and what is wrong is named."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import idx
from PIL import Image

from rrpolicy.images import data
from rrpolicy.images.data import FASHION_MNIST_CLASSES, FASHION_MNIST_FOLDER, LabelledImages, load_images, read_idx


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return idx.write(tmp_path_factory.mktemp("idx"))


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_hold_both_splits(tmp_path: Path, compressed: bool) -> None:
    idx.write(tmp_path, compressed=compressed)
    train, test = load_images(tmp_path, size=28), load_images(tmp_path, "test", size=28)
    assert (len(train), len(test)) == (40, 12) and train.class_names == FASHION_MNIST_CLASSES
    pixels, labels = idx.images(40, seed=1)
    np.testing.assert_array_equal(train.images[..., 0], pixels)
    np.testing.assert_array_equal(train.labels, labels)
    assert train.labels.dtype == np.int64


def test_images_are_made_small_and_keep_their_brightness(folder: Path) -> None:
    small, colour = load_images(folder), load_images(folder, channels=3, size=4)
    whole = load_images(folder, size=28)
    assert small.images.shape == (40, 16, 16, 1) and colour.images.shape == (40, 4, 4, 3)
    np.testing.assert_allclose(small.images.mean(axis=(1, 2, 3)), whole.images.mean(axis=(1, 2, 3)), atol=2)
    assert (colour.images[..., 0] == colour.images[..., 2]).all()
    quarters = small.images.reshape(40, 2, 8, 2, 8).mean(axis=(2, 4)).reshape(40, 4)
    np.testing.assert_array_equal(quarters.argmax(axis=1), small.labels)


def test_classes_can_be_kept_and_left_out(folder: Path) -> None:
    images = load_images(folder)
    safe, held_out = images.without(["trouser"]), images.take(images.mask(["trouser"]))
    assert len(safe) + len(held_out) == 40 and set(held_out.labels) == {1} and 1 not in safe.labels
    assert safe.class_names == images.class_names
    with pytest.raises(ValueError, match="'hat' is no class, there are t-shirt"):
        images.mask(["hat"])


def test_a_split_is_disjoint_complete_and_repeatable(folder: Path) -> None:
    images = load_images(folder)
    numbered = LabelledImages(np.arange(40, dtype=np.uint8).reshape(-1, 1, 1, 1), images.labels, images.class_names)
    first, second = numbered.split(0.25, seed=3)
    assert (len(first), len(second)) == (10, 30)
    assert sorted([*first.images.ravel(), *second.images.ravel()]) == list(range(40))
    np.testing.assert_array_equal(first.images, numbered.split(0.25, seed=3)[0].images)
    assert set(first.images.ravel()) != set(numbered.split(0.25, seed=4)[0].images.ravel())


def picture(path: Path, grey: int, size: tuple[int, int] = (20, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (grey,) * len(mode) if len(mode) > 1 else grey).save(path)


def test_sub_folders_are_classes_and_every_fifth_picture_is_for_testing(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / "cat" / f"{i}.png", 10 * i)
    for i in range(5):
        picture(tmp_path / "dog" / f"{i}.PNG", 200 + i, mode="L")
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    train, test = load_images(tmp_path, size=2), load_images(tmp_path, "test", size=2, channels=3)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert sorted(test.images[:, 0, 0, 0].tolist()) == [40, 90, 204] and test.images.shape == (3, 2, 2, 3)
    assert len(train) == 12 and train.labels.tolist() == [0] * 8 + [1] * 4


def test_a_folder_may_bring_its_own_split(tmp_path: Path) -> None:
    for part, grey in (("train", 10), ("test", 250)):
        picture(tmp_path / part / "cat" / "a.png", grey)
    assert load_images(tmp_path).images.max() == 10 and load_images(tmp_path, "test").images.min() == 250


def test_too_few_pictures_and_broken_ones_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png", 0)
    with pytest.raises(ValueError, match=r"too few pictures for a test half, wanted 5 or more per class"):
        load_images(tmp_path, "test")
    (tmp_path / "cat" / "b.png").write_bytes((tmp_path / "cat" / "a.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"b\.png: is not a picture that can be read"):
        load_images(tmp_path)


def test_without_images_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION_MNIST_FOLDER", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError) as caught:
        load_images()
    message = str(caught.value)
    assert "nowhere: no images" in message and "dataset-fashion-mnist" in message and "--data" in message
    assert "\n" not in message
    with pytest.raises(FileNotFoundError, match="no images"):
        load_images(tmp_path)
    idx.write(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="there are images, but no train-labels"):
        load_images(tmp_path)


def compressed(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)  # a test is named by it


GOOD = idx.encoded(np.zeros((40, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (compressed(GOOD)[:-40], "is truncated or not a gzip file"),
        (b"no gzip", "is truncated or not a gzip file"),
        (compressed(b"\0" * 20), "is not an idx file of bytes with 3 dimensions"),
        (compressed(GOOD[:9]), "is not an idx file of bytes with 3 dimensions"),
        (compressed(GOOD[:-1]), "holds 31359 values, its header says 31360"),
        (compressed(GOOD[:4] + b"\xff" * 12), "its header says 79228162458924105385300197375"),
        (compressed(idx.encoded(np.zeros((0, 28, 28), np.uint8))), "holds no images"),
        (compressed(idx.encoded(np.zeros((39, 28, 28), np.uint8))), "holds 40 labels, .* holds 39 images"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, fault: str) -> None:
    path = idx.write(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=fault) as caught:
        load_images(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_labels_need_names(folder: Path) -> None:
    assert load_images(folder, class_names="abcd").class_names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match="holds the label 3, class_names has 3 names"):
        load_images(folder, class_names="abc")


@pytest.mark.parametrize(
    ("arguments", "fault"), [({"split": "all"}, "split is 'all'"), ({"channels": 2}, "channels is 2")]
)
def test_arguments_are_checked(folder: Path, arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        load_images(folder, **arguments)


@pytest.mark.parametrize(
    ("images", "labels", "fault"),
    [
        (np.zeros((2, 4, 4)), np.zeros(2, int), r"images are float64 \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), r"labels has shape \(3,\), wanted \(2,\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 2]), r"labels lie in 0\.\.2, wanted 0\.\.1"),
    ],
)
def test_images_and_labels_must_fit(images: np.ndarray, labels: np.ndarray, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        LabelledImages(images, labels, ("a", "b"))


@pytest.mark.skipif(not FASHION_MNIST_FOLDER.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_files_are_read() -> None:
    test = load_images(split="test")
    assert test.images.shape == (10_000, 16, 16, 1)
    np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)
    assert test.class_names[test.labels[0]] == "ankle boot"
    with pytest.raises(ValueError, match="with 1 dimensions"):
        read_idx(FASHION_MNIST_FOLDER / "t10k-images-idx3-ubyte.gz", 1)
