"""Folders of pictures of any size, read a few at a time: what is scored need not fit into memory, and what cannot be
read is left out and listed."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from PIL import Image

from rrpolicy.common.faults import FileFault
from rrpolicy.common.files import naming
from rrpolicy.common.folders import check_space, scratch_folder
from rrpolicy.common.messages import printable
from rrpolicy.common.typing import Array
from rrpolicy.images.codec import MODES
from rrpolicy.images.pictures import PICTURES, open_picture

CHUNK = 64  # pictures in memory at once, fewer of large ones
_CHUNK_VALUES = 2**23
NO_SUFFIX = "without a suffix"


class Picture(NamedTuple):
    """A file, and the sub-folder it lies in, which is its label."""

    path: Path
    label: str | None


class LeftOut(NamedTuple):
    """A file that is named as a picture, or a folder, and why it is not read."""

    path: Path
    reason: str


class Found(NamedTuple):
    """What lies in some places: pictures, what is named as one and is none, and how many files have other suffixes."""

    pictures: list[Picture]
    left_out: list[LeftOut]
    others: dict[str, int]


class Part(NamedTuple):
    """Some pictures, uint8 (n, H, W, C), and those between them that could not be read; either may be none."""

    pictures: list[Picture]
    images: Array
    left_out: list[LeftOut]


def find_pictures(places: Sequence[Path], strict: bool = False) -> Found:
    """
    Pictures in some folders and files; those in sub-folders are labelled with the sub-folder's name.

    :param places: folders are searched for the suffixes of `images.pictures`; files are taken whatever their suffix
    :param strict: refuse what would be left out
    :raises FileNotFoundError: for a place that is not there, or without any picture
    :raises ValueError: when all that there is would be left out, or with ``strict`` the first of it
    """
    pictures: list[Picture] = []
    left_out: list[LeftOut] = []
    others = Counter[str]()
    for place in places:
        if not place.is_dir():
            if not place.is_file():
                raise FileNotFoundError(f"{path_text(place)} is neither a picture nor a folder")
            candidates = [(place, "")]
        else:
            candidates = []
            files, unread = _files(place)
            left_out += unread
            for path in files:
                if path.suffix.lower() in PICTURES:
                    label = path.parent.relative_to(place).as_posix()
                    candidates.append((path, "" if label == "." else label))
                else:
                    others[path.suffix.lower() or NO_SUFFIX] += 1
        for path, label in candidates:
            if (reason := _unfit(path)) is None:
                pictures.append(Picture(path, label or None))
            else:
                left_out.append(LeftOut(path, reason))
    if left_out and (strict or not pictures):
        raise FileFault(path_text(left_out[0].path), left_out[0].reason)
    if not pictures:
        there = f"; there are {counted(others)}" if others else ""
        raise FileNotFoundError(f"{', '.join(map(path_text, places))} holds no pictures ({', '.join(PICTURES)}){there}")
    return Found(pictures, left_out, dict(others))


def _files(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """All files below a folder, and the folders that are not entered."""
    files: list[Path] = []
    links: list[Path] = []
    errors: list[OSError] = []
    for place, folders, names in os.walk(folder, onerror=errors.append):
        files += [Path(place) / name for name in names]
        links += [path for name in folders if (path := Path(place) / name).is_symlink()]
    unread = [LeftOut(Path(error.filename), f"cannot be looked into: {error.strerror}") for error in errors]
    return sorted(files), unread + [LeftOut(path, "is a link to a folder, which is not followed") for path in links]


def _unfit(path: Path) -> str | None:
    """Why a file cannot be a picture, by its name and kind alone."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return "the name of this picture is not UTF-8: rename the file or its folder"
    return None if path.is_file() else "is not a regular file"


def path_text(path: Path) -> str:
    """A path as text that any file can hold: what is not UTF-8 stands as ``\\xe9``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def counted(others: Mapping[str, int]) -> str:
    """Numbers of files by suffix, the most frequent first: ``12 .avif, 1 without a suffix``."""
    return ", ".join(f"{n:,} {printable(suffix, 20)}" for suffix, n in sorted(others.items(), key=lambda one: -one[1]))


# ---------------------------------------------------------------------- pixels


def read_picture(path: Path, shape: tuple[int, int, int], resize: bool = False) -> Array:
    """
    A picture uint8 (H, W, C).

    :param shape: wanted (C, H, W)
    :param resize: bring a picture of another size to it
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for a file that is no picture, or of another size, naming it
    """
    channels, height, width = shape
    picture = open_picture(path, MODES[channels])
    if picture.size != (width, height):
        if not resize:
            found = f"{picture.width}×{picture.height}"
            raise FileFault(path, f"is {found}, wanted {width}×{height}; the option --resize brings it there")
        picture = picture.resize((width, height), Image.Resampling.HAMMING)
    return np.asarray(picture).reshape(height, width, channels)


def read_in_parts(
    pictures: Sequence[Picture], shape: tuple[int, int, int], resize: bool = False, strict: bool = False
) -> Iterator[Part]:
    """
    The pixels of many pictures, as many at a time as fit into little memory.

    :param shape: wanted (C, H, W)
    :param resize: bring pictures of another size to it
    :param strict: refuse the first picture that cannot be read, instead of leaving it out
    :raises ValueError: with ``strict``, or when no picture could be read, naming the first
    """
    size = min(CHUNK, max(1, _CHUNK_VALUES // math.prod(shape)))
    first: LeftOut | None = None
    any_read = False
    for start in range(0, len(pictures), size):
        part = _read_part(pictures[start : start + size], shape, resize)
        first = first or next(iter(part.left_out), None)
        any_read = any_read or bool(part.pictures)
        if strict and first is not None:
            break
        yield part
    if first is not None and (strict or not any_read):
        also = f" (and none of the other {len(pictures) - 1} can be read)" if len(pictures) > 1 and not strict else ""
        raise FileFault(first.path, first.reason + also)


def _read_part(pictures: Sequence[Picture], shape: tuple[int, int, int], resize: bool) -> Part:
    channels, height, width = shape
    images = np.empty((len(pictures), height, width, channels), dtype=np.uint8)
    read: list[Picture] = []
    left_out = []
    for one in pictures:
        try:
            images[len(read)] = read_picture(one.path, shape, resize)
            read.append(one)
        except FileFault as fault:
            left_out.append(LeftOut(one.path, fault.words))
        except FileNotFoundError:
            left_out.append(LeftOut(one.path, "is no longer there"))
    return Part(read, images[: len(read)], left_out)


class ReadAgain(Sequence[Array]):
    """
    Pictures uint8 (H, W, C) that are read at each access, for pages that show a few of many.

    :param pictures: such as could be read before
    :param shape: wanted (C, H, W)
    :param resize: bring pictures of another size to it
    """

    def __init__(self, pictures: Sequence[Picture], shape: tuple[int, int, int], resize: bool = False) -> None:
        self._pictures = pictures
        self._how = (shape, resize)

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, i: int) -> Array: ...
    @overload
    def __getitem__(self, i: slice) -> ReadAgain: ...
    def __getitem__(self, i: int | slice) -> Array | ReadAgain:
        if isinstance(i, slice):
            return ReadAgain(self._pictures[i], *self._how)
        return read_picture(self._pictures[i].path, *self._how)


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
