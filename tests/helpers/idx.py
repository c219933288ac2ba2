"""Made-up idx files in the places of Fashion-MNIST: images whose class is the quarter that is lit."""

import gzip
from pathlib import Path

import numpy as np

NAMES = ("t10k", "train")


def images(n: int, seed: int = 0, size: int = 28, n_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (n, size, size) and labels (n,): the class says which quarter is bright."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    pixels = rng.integers(0, 40, (n, size, size))
    half = size // 2
    for i, label in enumerate(labels):
        row, column = divmod(int(label), 2)
        pixels[i, row * half : (row + 1) * half, column * half : (column + 1) * half] += 150
    return pixels.astype(np.uint8), labels.astype(np.uint8)


def encoded(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, dtype=">u4").tobytes() + values.tobytes()


def write(folder: Path, n_train: int = 40, n_test: int = 12, compressed: bool = True) -> Path:
    """Both splits, four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (stem, n) in enumerate(zip(NAMES, (n_test, n_train), strict=True)):
        for kind, values in zip(("images-idx3", "labels-idx1"), images(n, seed), strict=True):
            content = encoded(values)
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content, 1) if compressed else content)
    return folder
