"""Labelled images from disk: Fashion-MNIST (Xiao, Rasul, Vollgraf 2017) or any other idx files, or folders of pictures.

Everything is made small and square once, when it is read, so that models, classifiers and tests use the same pixels.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.typing import Array
from rrpolicy.images.codec import MODES
from rrpolicy.images.pictures import PICTURES, open_picture

Split = Literal["train", "test"]

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FASHION_MNIST_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SIZE = 16
TEST_SHARE = 5  # of a folder that is not split, every so many-th picture of each class is kept for testing
_STEMS: dict[Split, str] = {"train": "train", "test": "t10k"}
_UINT8 = 0x08  # idx's code of unsigned bytes
FREE_BYTES, _BYTES_PER_BYTE = 64 * 2**20, 4  # what an idx file may hold: so much, and so many times its size
_FREE_IMAGES, _BYTES_PER_IMAGE = 2**16, 64


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """
    Images with one class each.

    :raises ValueError: when images and labels do not fit together
    """

    images: Array  # (N, H, W, C) uint8
    labels: Array  # (N,) int64, indices of class_names
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(f"images are {self.images.dtype} {self.images.shape}, wanted uint8 (N, H, W, C)")
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels has shape {self.labels.shape}, wanted ({len(self.images)},)")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            bounds = f"{self.labels.min()}..{self.labels.max()}"
            raise ValueError(f"labels lie in {bounds}, wanted 0..{len(self.class_names) - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def mask(self, names: Iterable[str]) -> Array:
        """
        Which images are of the named classes, bool (N,).

        :raises ValueError: for a name that is no class
        """
        return np.isin(self.labels, [self._index(name) for name in names])

    def without(self, names: Iterable[str]) -> LabelledImages:
        """All images but those of the named classes, with the same numbering of classes."""
        return self.take(~self.mask(names))

    def take(self, index: Array) -> LabelledImages:
        """Some of the images: a bool mask (N,) or indices."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def split(self, fraction: float, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
        """
        Two disjoint parts, drawn at random.

        :param fraction: share of the first part
        """
        order = np.random.default_rng(seed).permutation(len(self))
        n_first = round(fraction * len(self))
        return self.take(np.sort(order[:n_first])), self.take(np.sort(order[n_first:]))

    def _index(self, name: str) -> int:
        if name not in self.class_names:
            raise ValueError(f"{name!r} is no class, there are {', '.join(self.class_names)}")
        return self.class_names.index(name)


def load_images(
    folder: str | os.PathLike[str] | None = None,
    split: Split = "train",
    size: int = SIZE,
    channels: int = 1,
    class_names: Sequence[str] = FASHION_MNIST_CLASSES,
) -> LabelledImages:
    """
    Read one half of a labelled set of images.

    :param folder: holds idx files named as those of Fashion-MNIST (gzipped or not), or ``train`` and ``test`` with one
        sub-folder of pictures per class, or such sub-folders alone (every fifth picture then is for testing); None:
        Fashion-MNIST where Debian's package ``dataset-fashion-mnist`` puts it
    :param split: ``"train"`` or ``"test"``
    :param size: height and width that images are brought to
    :param channels: 1 for grey, 3 for colour
    :param class_names: of the labels 0, 1, ... of idx files; folders name their classes themselves
    :raises FileNotFoundError: when there are no images, saying how to get some
    :raises ValueError: for a file that is damaged or of another kind, naming it
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, it must be one of {get_args(Split)}")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}, it must be 1 (grey) or 3 (colour)")
    place = FASHION_MNIST_FOLDER if folder is None else Path(folder)
    if (images := _idx_file(place, split, "images-idx3")) is not None:
        labels = _idx_file(place, split, "labels-idx1")
        if labels is None:
            raise FileNotFoundError(f"{place}: there are images, but no {_STEMS[split]}-labels-idx1-ubyte(.gz)")
        return _read_idx_pair(images, labels, size, channels, class_names)
    if classes := _class_folders(place, split):
        return _read_class_folders(classes, split, size, channels)
    raise FileNotFoundError(
        f"{place}: no images; install Debian's package dataset-fashion-mnist, or name a folder of idx files or of one "
        "sub-folder of pictures per class (option --data)"
    )


def resized(image: Image.Image, size: int) -> Image.Image:
    """``image`` at size × size, each pixel the smoothed average of what it covers."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.HAMMING)


# ---------------------------------------------------------------------- idx files


def read_idx(path: Path, n_dimensions: int) -> Array:
    """
    An array of unsigned bytes in the idx format: two zero bytes, type, number of dimensions, sizes, values.

    :param path: the file; gzipped if its name ends with .gz
    :raises ValueError: naming the file and its fault; of a gzip file that unpacks to more than :data:`FREE_BYTES` and
        4 times its size as well
    """
    size = regular_size(path)
    most = FREE_BYTES + _BYTES_PER_BYTE * size
    start = 4 + 4 * n_dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(start)
            if header[:4] != bytes((0, 0, _UINT8, n_dimensions)) or len(header) < start:
                raise FileFault(path, f"is not an idx file of bytes with {n_dimensions} dimensions")
            shape = tuple(int(part) for part in np.frombuffer(header[4:], dtype=">u4"))
            wanted = math.prod(shape)
            if wanted > most or max(shape) > most:
                raise FileFault(path, f"its header says {wanted} values, wanted at most {most} in {size} bytes")
            values = file.read(wanted + 1)  # no more, whatever a gzip file unpacks to
    except (OSError, EOFError, zlib.error) as error:
        raise FileFault(path, f"is truncated or not a gzip file ({error})") from error
    if len(values) != wanted:
        held = f"more than {wanted}" if len(values) > wanted else len(values)
        raise FileFault(path, f"holds {held} values, its header says {wanted}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _idx_file(folder: Path, split: Split, kind: str) -> Path | None:
    names = (f"{_STEMS[split]}-{kind}-ubyte{suffix}" for suffix in (".gz", ""))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_idx_pair(images: Path, labels: Path, size: int, channels: int, class_names: Sequence[str]) -> LabelledImages:
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if not pixels.size:
        raise ValueError(f"{images}: holds no images")
    most = _FREE_IMAGES + regular_size(images) // _BYTES_PER_IMAGE  # each takes time, however few its pixels
    if len(pixels) > most:
        raise FileFault(images, f"holds {len(pixels)} images, wanted at most {most} in a file of its size")
    if len(pixels) != len(classes):
        raise ValueError(f"{labels}: holds {len(classes)} labels, {images.name} holds {len(pixels)} images")
    if classes.max() >= len(class_names):
        raise ValueError(f"{labels}: holds the label {classes.max()}, class_names has {len(class_names)} names")
    small = np.stack([np.asarray(resized(Image.fromarray(image), size)) for image in pixels])
    return LabelledImages(np.repeat(small[..., None], channels, axis=-1), classes.astype(np.int64), tuple(class_names))


# ---------------------------------------------------------------------- folders of pictures


def _class_folders(folder: Path, split: Split) -> dict[str, tuple[Path, bool]]:
    """Class name -> its folder and whether that holds this split alone; empty when there are none."""
    is_split = all((folder / part).is_dir() for part in get_args(Split))
    place = folder / split if is_split else folder
    if not place.is_dir():
        return {}
    classes = sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {path.name: (path, is_split) for path in classes if _pictures(path)}


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.is_file())


def _read_class_folders(
    classes: dict[str, tuple[Path, bool]], split: Split, size: int, channels: int
) -> LabelledImages:
    wanted: Callable[[int], bool] = lambda i: (i % TEST_SHARE == TEST_SHARE - 1) == (split == "test")  # noqa: E731
    images, labels = [], []
    for label, (folder, is_split) in enumerate(classes.values()):
        for i, path in enumerate(_pictures(folder)):
            if is_split or wanted(i):
                images.append(_read_picture(path, size, channels))
                labels.append(label)
    if not images:
        raise ValueError(f"{folder.parent}: too few pictures for a {split} half, wanted {TEST_SHARE} or more per class")
    return LabelledImages(np.stack(images), np.array(labels, dtype=np.int64), tuple(classes))


def _read_picture(path: Path, size: int, channels: int) -> Array:
    picture = resized(open_picture(path, MODES[channels]), size)
    return np.asarray(picture).reshape(size, size, channels)
