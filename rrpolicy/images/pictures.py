"""Untrusted pictures as viewers show them: a few formats that are detected by their content, of no more pixels than a
file's size can justify, and whatever the decoders raise becomes one error that names the file."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from rrpolicy.common.faults import FileFault, regular_size
from rrpolicy.common.schema import read_small

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")
PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff")  # names that are looked at
MAX_BYTES = 2**28
FREE_PIXELS = 12 * 2**20  # of a picture in a file of up to 1 MiB
_PIXELS_PER_BYTE = 16  # beyond
_MOST_SCANS = 32  # of a JPEG; each goes over the whole picture, and encoders make about ten
_SCAN = b"\xff\xda"
_APPLE_DOUBLE = b"\x00\x05\x16\x07"  # how the ._ files of macOS begin
_COUNTED = {"GIF": 2**24, "TIFF": 2**12}  # bytes up to which frames are counted; other formats store their number
_INVERTED, _SIGNED = 0, 2  # values of the tags below
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: Path, mode: str) -> Image.Image:
    """
    A picture as viewers show it, in 8 bits.

    | what a file may have | what becomes of it |
    |---|---|
    | an orientation in its EXIF | turned |
    | transparency, of any kind | laid on white |
    | 16 bits (TIFF: 12 as well), grey or colour | the high 8 bits |
    | floats (TIFF) | times 255 where all are in [0, 1], else refused |
    | signed or 32-bit whole numbers (TIFF) | refused |
    | CMYK | Pillow's conversion, without colour profiles |
    | several frames or pages | refused; of a JPEG with further views (MPO) the first, which viewers show |

    :param path: a regular file in one of :data:`FORMATS`, whatever its name
    :param mode: ``"L"`` or ``"RGB"``
    :raises FileNotFoundError: when there is no such file
    :raises ValueError: for what is no picture, damaged, refused above, or larger than such a file may be, naming it
    """
    regular_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that decoders can live with
            content = read_small(path, MAX_BYTES)  # decoders may read beyond the end of the file, but get no more
            if (webp := _webp_size(content)) is not None:  # Pillow takes a WEBP's memory when it opens the file
                _check_pixels(path, *webp, len(content))
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check(path, picture, content)
                picture.load()
                return _on_white(_in_8_bits(path, _turned(picture))).convert(mode)
    except FileFault:
        raise
    except UnidentifiedImageError as error:
        raise FileFault(path, f"is not a picture that can be read: {_instead(content)}") from error
    except Exception as error:  # decoders let through whatever their parsers happen to raise
        raise FileFault(path, f"is not a picture that can be read: {str(error) or type(error).__name__}") from error


def _instead(content: bytes) -> str:
    """What a file is that is no picture."""
    if not content:
        return "the file is empty"
    macos = content.startswith(_APPLE_DOUBLE)
    return "it holds macOS metadata" if macos else f"it is none of {', '.join(FORMATS)}, or a damaged one"


# ---------------------------------------------------------------------- what is refused before it is decoded


def _check(path: Path, picture: Image.Image, content: bytes) -> None:
    """Refuse what would take too long to decode or is no still picture, by its header."""
    _check_pixels(path, picture.width, picture.height, len(content))
    if picture.format in ("JPEG", "MPO") and content.count(_SCAN) > _MOST_SCANS:
        raise FileFault(path, f"is a JPEG of more than {_MOST_SCANS} scans")
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        counted = len(content) <= _COUNTED.get(picture.format or "", len(content))
        frames: Any = picture.n_frames if counted else "several"  # type: ignore[attr-defined]
        raise FileFault(path, f"has {frames} frames, wanted a still picture")
    if picture.format == "TIFF" and _SIGNED in _numbers(picture, _SAMPLE_FORMAT):
        raise FileFault(path, "holds signed numbers, wanted 8 or 16 bits without sign")


def _check_pixels(path: Path, width: int, height: int, size: int) -> None:
    most = FREE_PIXELS + _PIXELS_PER_BYTE * max(size - 2**20, 0)
    if width * height > most:
        raise FileFault(
            path, f"has {width}×{height} pixels in {size} bytes, wanted at most {most} pixels in a file of this size"
        )


def _webp_size(content: bytes) -> tuple[int, int] | None:
    """Width and height in the first chunk of a WEBP (RFC 9649), None for other files."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return None
    kind, number = content[12:16], int.from_bytes
    if kind == b"VP8X":
        return number(content[24:27], "little") + 1, number(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(content[26:28], "little") & 0x3FFF, number(content[28:30], "little") & 0x3FFF


# ---------------------------------------------------------------------- as viewers show it


def _turned(picture: Image.Image) -> Image.Image:
    """The picture upright; Pillow has turned a TIFF already."""
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata that cannot be read, which viewers pass over
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _in_8_bits(path: Path, picture: Image.Image) -> Image.Image:
    """Pictures of more bits, all of them grey, since Pillow keeps the high bits of colours."""
    if picture.mode == "I":
        raise FileFault(path, "holds whole numbers of 32 bits, wanted 8 or 16")
    if picture.mode == "F":
        values = np.asarray(picture)
        if not (values >= 0).all() or not (values <= 1).all():  # NaN is neither
            raise FileFault(path, "holds floats beyond [0, 1] or NaN, wanted 8 or 16 bits, or floats in [0, 1]")
        grey = (255 * values).round().astype(np.uint8)
    elif picture.mode.startswith("I;16"):
        grey = (np.asarray(picture) >> (next(iter(_numbers(picture, _BITS)), 16) - 8)).astype(np.uint8)
    else:
        return picture
    made = Image.fromarray(255 - grey if _INVERTED in _numbers(picture, _PHOTOMETRIC) else grey)
    if (clear := picture.info.get("transparency")) is not None:  # one of the 65 536 greys of a PNG
        made.putalpha(Image.fromarray(np.where(np.asarray(picture) == clear, 0, 255).astype(np.uint8)))
    return made


def _numbers(picture: Image.Image, tag: int) -> tuple[int, ...]:
    """What a TIFF has under a tag."""
    found = getattr(picture, "tag_v2", {}).get(tag, ())
    return found if isinstance(found, tuple) else (found,)


def _on_white(picture: Image.Image) -> Image.Image:
    """The picture without transparency; an opaque one as it is."""
    if not picture.has_transparency_data:
        return picture
    colours = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), colours).convert("RGB")
