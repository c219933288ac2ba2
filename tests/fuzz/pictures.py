"""Surgery on pictures and idx files: sizes in headers that lie, other formats behind a name, gzip bombs."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from fuzz.hostile import Rng, outside, pick
from fuzz.mutate import INTERESTING, Mutation, anything, several

FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "WEBP",
    "GIF",
    "TIFF",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
    "JPEG2000",
    "DDS",
    "ICNS",
    "PDF",
    "EPS",
    "IM",
    "MSP",
    "SPIDER",
    "QOI",
    "AVIF",
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "RGBX", "La")
_PACKED = b"k\0\0" + zlib.compress(bytes(10**7))
_SIZES = (0, 1, 7, 100, 20_000, 65_535, 100_000, 2**31 - 1, 2**32 - 1)


def picture(form: str = "PNG", mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    """
    A picture of random pixels.

    :raises ValueError: where the format cannot hold it
    """
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    try:
        grey = mode in ("LA", "La", "I", "F", "I;16")
        Image.fromarray(pixels).convert("L" if grey else "RGB").convert(mode).save(buffer, form)
    except Exception as error:  # Pillow says it in many ways
        raise ValueError(f"{form} of {mode}: {error}") from error
    return buffer.getvalue()


def picture_file(content: bytes, rng: Rng) -> Mutation:
    """A picture damaged, of another kind, or with a size that is not its own."""
    kinds = ((1.5, anything), (1.0, _other), (1.0, _size), (0.5, _chunk), (0.3, _special), (0.5, _shown))
    return several(kinds, content, rng)


def _other(content: bytes, rng: Rng) -> Mutation:
    form, mode, size = pick(rng, FORMATS), pick(rng, MODES), pick(rng, ((8, 8), (1, 1), (7, 9), (3000, 2), (600, 600)))
    return picture(form, mode, size), f"a {form} of mode {mode}, {size[0]} × {size[1]}"


def _size(content: bytes, rng: Rng) -> Mutation:
    """Width and height in the headers of PNG (its checksum made right), GIF, BMP and TIFF."""
    form, (width, height) = pick(rng, ("PNG", "GIF", "BMP", "WEBP", "TIFF")), (pick(rng, _SIZES), pick(rng, _SIZES))
    changed = bytearray(picture(form))
    if form == "PNG":
        struct.pack_into(">II", changed, 16, width, height)
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    elif form == "GIF":
        struct.pack_into("<HH", changed, 6, width % 2**16, height % 2**16)
    elif form == "BMP":
        struct.pack_into("<II", changed, 18, width, height)
    else:  # anywhere in the head
        struct.pack_into("<I", changed, int(rng.integers(4, 60)), pick(rng, INTERESTING) % 2**32)
    return bytes(changed), f"a {form} that says it is {width} × {height}"


def _chunk(content: bytes, rng: Rng) -> Mutation:
    """A PNG with one more chunk: compressed texts, frames of an animation, profiles, metadata."""
    body = picture()
    name = pick(rng, b"zTXt iTXt tEXt iCCP eXIf acTL fcTL fdAT PLTE tRNS IEND IDAT".split())
    inner = pick(rng, (b"", _PACKED, rng.bytes(30), b"II*\0" + rng.bytes(30), bytes(26)))
    chunk = struct.pack(">I", len(inner)) + name + inner + struct.pack(">I", zlib.crc32(name + inner))
    return body[:33] + chunk * pick(rng, (1, 2, 500)) + body[33:], f"chunks {name.decode()} of {len(inner)} bytes"


def _shown(content: bytes, rng: Rng) -> Mutation:
    """What decides how a picture is shown: orientation, a transparent colour, frames; damaged or not."""
    form, mode = pick(rng, ("PNG", "JPEG", "WEBP", "TIFF", "GIF")), pick(rng, ("L", "P", "RGB", "I;16"))
    n = pick(rng, (1, 2, 9))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = pick(rng, (0, 1, 5, 8, 9, 65535))
    options = {"save_all": True, "append_images": [Image.new("L", (8, 8), i) for i in range(1, n)]} if n > 1 else {}
    clear = {} if mode in ("I;16", "RGB") else {"transparency": int(rng.integers(256))}
    try:
        Image.open(io.BytesIO(picture("PNG", mode))).save(buffer, form, exif=exif, **options, **clear)
    except Exception:  # Pillow's formats do not hold all of this
        return _chunk(content, rng)
    words = f"a {form} of mode {mode}, {n} frames, orientation {exif[0x0112]}"
    return (buffer.getvalue(), words) if rng.random() < 0.5 else anything(buffer.getvalue(), rng)


def _special(content: bytes, rng: Rng) -> Mutation:
    place = str(outside() / "secret.txt").encode()
    return pick(
        rng,
        (
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n(" + place + b") run\n%%EOF\n", "PostScript"),
            (b"SIMPLE  =                    T" + b" " * 50 + b"BITPIX  =   8" + b" " * 3000, "a FITS file"),
            (
                b"#define x_width 60000\n#define x_height 60000\nstatic char x_bits[] = {\n0x00};",
                "an XBM of 60000 × 60000",
            ),
            (b'/* XPM */\nstatic char *x[] = {"60000 60000 1 1", "a c #000000"', "an XPM"),
            (b"P6 60000 60000 255\n", "a PPM of 60000 × 60000"),
            (b"P3\n1 1\n255\n" + b"1 " * 10**5, "a long PPM"),
            (b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\xff\xff\0\0\xff\xff\0\x08\0\3" + bytes(100), "a PSD"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
            (b"", "nothing"),
        ),
    )


# ---------------------------------------------------------------------- idx


@cache
def gzip_bomb(n_members: int) -> bytes:
    """Ten million zeros for each ten thousand bytes, behind a header that says so or not."""
    return gzip.compress(bytes(10**7), 9) * n_members


def idx_file(content: bytes, rng: Rng) -> Mutation:
    """An idx file, or its gzip wrapping, changed."""
    packed = content[:2] == b"\x1f\x8b"
    kind = rng.random()
    if packed and kind < 0.15:
        n = pick(rng, (1, 10, 60))
        return gzip_bomb(n), f"{n} times ten million zeros, packed"
    if packed and (kind < 0.4 or len(content) > 9000):
        return anything(content, rng)
    inner = gzip.decompress(content) if packed else content
    changed, words = _idx(inner, rng)
    return (gzip.compress(changed, 1) if packed else changed), words


def _idx(content: bytes, rng: Rng) -> Mutation:
    kind, changed = rng.random(), bytearray(content)
    if kind < 0.3:
        return anything(content, rng)
    if kind < 0.5:
        changed[:4] = bytes((0, 0, pick(rng, (8, 9, 11, 12, 13, 14, 255)), pick(rng, (0, 1, 2, 3, 4, 255))))
        return bytes(changed), f"head {bytes(changed[:4])!r}"
    if kind < 0.8:
        field = 4 + 4 * int(rng.integers(changed[3] or 1))
        value = pick(rng, INTERESTING) % 2**32
        struct.pack_into(">I", changed, field, value)
        return bytes(changed), f"size at {field} = {value}"
    shape = pick(rng, ((2**16, 2**16, 0), (0, 2**32 - 1, 2**32 - 1), (2**32 - 1, 1, 0), (1, 1, 1), (10**6, 0, 1)))
    values = int(np.prod(shape, dtype=object))
    return bytes((0, 0, 8, 3)) + np.array(shape, ">u4").tobytes() + bytes(values), f"shape {shape}"
