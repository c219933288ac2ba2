"""Zip files of strangers: only stored members are read, counted before the directory is parsed.

What is read can therefore never exceed the file: a small file stays small in memory, whatever it declares.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import BinaryIO

from rrpolicy.common.messages import printable

MAX_NAME_BYTES = 512  # of a member in the directory, its name and extra fields
# two records in front of it in files for more than 4 GiB, which torch writes always: counts, size and place of the
# directory, and the place of that record
_END_64 = struct.Struct("<4sQ2H2L4Q4s16s")
_END = struct.Struct("<4s4H2LH")  # the last record: counts, size and place of the directory, length of a comment
# all that the standard library raises on damaged structures around stored members
_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def read_members(
    file: BinaryIO,
    max_members: int,
    wanted: Callable[[str], bool] = lambda name: True,
    refused: Callable[[Sequence[zipfile.ZipInfo]], str | None] = lambda infos: None,
) -> dict[str, bytes]:
    """
    Members of a zip file by name.

    :param file: open for reading, seekable
    :param max_members: largest number of members
    :param wanted: which names to read
    :param refused: what else is wrong with the directory, None for nothing; asked before anything is read
    :raises ValueError: saying what is wrong: damaged, too many members, a name that stands twice, compressed members,
        or more bytes than the file has
    """
    file.seek(0, 2)
    size = file.tell()
    if fault := _end_fault(file, size, max_members):
        raise ValueError(fault)
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            fault = refused(infos) or _directory_fault(infos, size, max_members)
            members = {} if fault else {info.filename: archive.read(info) for info in infos if wanted(info.filename)}
    except _ERRORS as error:
        raise ValueError(f"is a truncated or damaged zip file ({printable(error)})") from error
    if fault:
        raise ValueError(fault)
    return members


def member_names(file: BinaryIO, max_members: int) -> list[str]:
    """
    The names in a zip file's directory.

    :param file: open for reading, seekable
    :param max_members: largest number of members
    :raises ValueError: for a damaged file, or too many members
    """
    names: list[str] = []

    def note(infos: Sequence[zipfile.ZipInfo]) -> str | None:
        names.extend(info.filename for info in infos)
        return None

    read_members(file, max_members, lambda name: False, note)
    return names


def _end_fault(file: BinaryIO, size: int, max_members: int) -> str | None:
    """What is wrong with the first bytes, and with the last record, which says how much the directory holds."""
    file.seek(0)
    if file.read(2) != b"PK":
        return "is not a zip file"
    file.seek(max(size - _END.size, 0))
    tail = file.read()
    if len(tail) < _END.size or not tail.startswith(b"PK\x05\x06"):
        return "is a truncated or damaged zip file (its last record is not the end of a directory)"
    _, _, _, _, count, directory_bytes, directory, _ = _END.unpack(tail)
    end = size - _END.size
    file.seek(max(end - _END_64.size, 0))
    found = _END_64.unpack(file.read(_END_64.size)) if end >= _END_64.size else (b"",) * 12
    if found[0] == b"PK\x06\x06" and found[10] == b"PK\x06\x07":  # these counts are the ones that are followed
        count, directory_bytes, directory, end = max(found[6], found[7]), found[8], found[9], end - _END_64.size
    if directory + directory_bytes != end:
        return "is a damaged zip file (its directory does not lie where the last record says)"
    if count > max_members:
        return f"has {count} members, at most {max_members} are read"
    if directory_bytes > max_members * MAX_NAME_BYTES:
        return f"has a directory of {directory_bytes} bytes, at most {max_members * MAX_NAME_BYTES} are read"
    file.seek(0)
    return None


def _directory_fault(infos: Sequence[zipfile.ZipInfo], size: int, max_members: int) -> str | None:
    names = [info.filename for info in infos]
    if len(set(names)) < len(names):
        return f"has duplicate members in {printable(sorted(names))}"
    if len(names) > max_members:
        return f"has {len(names)} members, at most {max_members} are read"
    declared = sum(info.file_size for info in infos)
    if declared > size:
        return f"declares {declared} uncompressed bytes in a file of {size}, too large: a compressed zip bomb?"
    packed = [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]
    return f"member {printable(packed[0])} is compressed, wanted stored members only" if packed else None
