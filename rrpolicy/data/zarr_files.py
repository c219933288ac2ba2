"""The files of a Zarr group: those of a folder, or the members of a zip file. Names are listed once."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rrpolicy.common.faults import FileFault, regular_size

MOST_FILES = 2**20
_MARKS = ("data/action/.zarray", "data/action/zarr.json")  # what tells where in a zip file the group stands
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others unpack without a bound


class GroupFiles(Protocol):
    """
    Files by their names, which are joined by slashes.

    :param place: the folder or the zip file
    :param sizes: bytes on the disk by name
    """

    place: Path
    sizes: dict[str, int]

    def read(self, name: str, most: int) -> bytes:
        """
        The content of a file.

        :param most: bytes that it may have
        :raises FileFault: when it is damaged, or longer
        """
        ...


class FolderFiles:
    """A folder."""

    def __init__(self, place: Path) -> None:
        self.place = place
        walked = (Path(root, file) for root, _, files in os.walk(place) for file in files)
        paths = list(itertools.islice(walked, MOST_FILES + 1))
        if len(paths) > MOST_FILES:
            raise FileFault(place, f"has more than {MOST_FILES} files")
        self.sizes = {path.relative_to(place).as_posix(): regular_size(path) for path in paths}

    def read(self, name: str, most: int) -> bytes:
        path = self.place / name
        with open(path, "rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise FileFault(path, f"is longer than {most} bytes")
        return content


class ZipFiles:
    """A zip file, whose group may stand in a folder of it."""

    def __init__(self, place: Path, archive: zipfile.ZipFile) -> None:
        infos = archive.infolist()
        if len(infos) > MOST_FILES:
            raise FileFault(place, f"has {len(infos)} members, wanted at most {MOST_FILES}")
        if sum(info.compress_size for info in infos) > regular_size(place):
            raise FileFault(place, "is a damaged zip file: its members are larger than itself")
        self.place, self._archive = place, archive
        self._infos = {info.filename: info for info in infos}
        self._above = next((name[: -len(end)] for name in self._infos for end in _MARKS if name.endswith(end)), "")
        self.sizes = {
            name.removeprefix(self._above): info.compress_size
            for name, info in self._infos.items()
            if name.startswith(self._above)
        }

    def read(self, name: str, most: int) -> bytes:
        info = self._infos[self._above + name]
        if info.compress_type not in _PACKED:
            raise FileFault(self.place / name, f"is compressed by method {info.compress_type}, wanted none or deflate")
        try:
            with self._archive.open(info) as member:
                content = member.read(most + 1)
        except Exception as error:  # damage shows as whatever zipfile and zlib happen to raise
            raise FileFault(self.place / name, f"is damaged: {str(error) or type(error).__name__}") from error
        if len(content) > most:
            raise FileFault(self.place / name, f"is longer than {most} bytes")
        return content


@contextmanager
def group_files(place: Path) -> Iterator[GroupFiles]:
    """
    The files of a Zarr group.

    :param place: a folder or a zip file
    :raises FileFault: for a zip file that cannot be read
    """
    if place.is_dir():
        yield FolderFiles(place)
        return
    regular_size(place)
    try:
        archive = zipfile.ZipFile(place)
    except Exception as error:  # as above
        raise FileFault(place, f"is not a readable zip file: {str(error) or type(error).__name__}") from error
    with archive:
        yield ZipFiles(place, archive)
