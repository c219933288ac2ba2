"""Folders of pictures of any size, read a few at a time: what is scored need not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rrpolicy.common.files import naming
from rrpolicy.common.folders import check_space, scratch_folder
from rrpolicy.common.messages import at
from rrpolicy.common.typing import Array
from rrpolicy.images.codec import MODES
from rrpolicy.images.data import PICTURES
from rrpolicy.images.pictures import read_picture


class Picture(NamedTuple):
    """A file, and the sub-folder it lies in, which is its label."""

    path: Path
    label: str | None


def find_pictures(places: Sequence[Path]) -> list[Picture]:
    """
    Pictures in some folders and files; those in sub-folders are labelled with the sub-folder's name.

    :raises FileNotFoundError: for a place that is not there, or without any picture
    :raises ValueError: for a name that is not UTF-8, which no table of scores could hold
    """
    found = []
    for place in places:
        if place.is_file():
            found.append(Picture(place, None))
            continue
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is neither a picture nor a folder")
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in PICTURES and path.is_file():
                label = path.parent.relative_to(place).as_posix()
                found.append(Picture(path, None if label == "." else label))
    if not found:
        raise FileNotFoundError(f"{', '.join(map(str, places))} holds no pictures ({', '.join(PICTURES)})")
    for picture in found:
        try:
            os.fspath(picture.path).encode()
        except UnicodeEncodeError:
            name = os.fsencode(picture.path).decode(errors="backslashreplace")
            raise ValueError(at(name, "the name of this picture is not UTF-8: rename the file or its folder")) from None
    return found


def read_pictures(paths: Sequence[Path], shape: tuple[int, int, int], resize: bool = False) -> Array:
    """
    Pictures uint8 (n, H, W, C).

    :param shape: wanted (C, H, W)
    :param resize: bring pictures of another size to it
    :raises ValueError: for a file that is no picture, or of another size, naming it
    """
    channels, height, width = shape
    images = []
    for path in paths:
        picture = read_picture(path, MODES[channels])
        if picture.size != (width, height):
            if not resize:
                found = f"{picture.width}×{picture.height}"
                raise ValueError(f"{path} is {found}, wanted {width}×{height}; the option --resize brings it there")
            picture = picture.resize((width, height), Image.Resampling.HAMMING)
        images.append(np.asarray(picture).reshape(height, width, channels))
    return np.stack(images)


def in_parts(pictures: Sequence[Picture], size: int) -> Iterator[Sequence[Picture]]:
    """Some pictures at a time."""
    return (pictures[i : i + size] for i in range(0, len(pictures), size))


def write_pictures(images: Array, folder: Path, prefix: str) -> list[Path]:
    """
    One PNG for each image uint8 (n, H, W, C); all of them or none.

    :raises OSError: naming folder or file when there is no room; what was there has not been changed
    """
    check_space(folder, images.nbytes)
    names = [f"{prefix}-{i:04d}.png" for i in range(len(images))]
    with scratch_folder(folder) as scratch:
        for name, image in zip(names, images, strict=True):
            with naming(folder / name, scratch):
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(scratch / name)
        for name in names:
            os.replace(scratch / name, folder / name)
    return [folder / name for name in names]
