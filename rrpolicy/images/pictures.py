"""Pictures of strangers: a few formats that are told by their content, of no more pixels than a file's size can
justify, and whatever the decoders raise becomes one error that names the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.schema import read_small

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
MAX_BYTES = 2**28
FREE_PIXELS = 12 * 2**20  # of a picture in a file of up to 1 MiB
_PIXELS_PER_BYTE = 16  # beyond
_MOST_SCANS = 32  # of a JPEG; each goes over the whole picture, and encoders make about ten
_SCAN = b"\xff\xda"


def read_picture(path: Path, mode: str) -> Image.Image:
    """
    A picture, decoded.

    :param path: a regular file in one of :data:`FORMATS`, whatever its name
    :param mode: Pillow's name of what its pixels become, such as ``"RGB"``
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for what is no picture, damaged, or larger than such a file may be, naming it
    """
    regular_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that decoders can live with
            content = read_small(path, MAX_BYTES)  # decoders may ask for more than the file has, but get no more
            if (webp := _webp_size(content)) is not None:  # Pillow takes a WEBP's memory when it opens the file
                _check_pixels(path, *webp, len(content))
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check(path, picture, content)
                picture.load()
                return picture if picture.mode == mode else picture.convert(mode)
    except FileFault:
        raise
    except Exception as error:  # decoders let through whatever their parsers happen to raise
        raise FileFault(path, f"is not a picture that can be read: {str(error) or type(error).__name__}") from error


def _check(path: Path, picture: Image.Image, content: bytes) -> None:
    """Refuse what would take too long to decode, by what its header says."""
    _check_pixels(path, picture.width, picture.height, len(content))
    if picture.format in ("JPEG", "MPO") and content.count(_SCAN) > _MOST_SCANS:
        raise FileFault(path, f"is a JPEG of more than {_MOST_SCANS} scans")


def _check_pixels(path: Path, width: int, height: int, size: int) -> None:
    most = FREE_PIXELS + _PIXELS_PER_BYTE * max(size - 2**20, 0)
    if width * height > most:
        raise FileFault(path, f"has {width}×{height} pixels in {size} bytes, wanted at most {most} pixels in a file of "
                              "this size")  # fmt: skip


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that the first chunk of a WEBP tells (RFC 9649), None for other files."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return None
    kind, number = content[12:16], int.from_bytes
    if kind == b"VP8X":
        return number(content[24:27], "little") + 1, number(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(content[26:28], "little") & 0x3FFF, number(content[28:30], "little") & 0x3FFF
