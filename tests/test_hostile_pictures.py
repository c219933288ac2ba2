"""Pictures and idx files of strangers: whatever bytes they hold, they are read or refused in one line that names the
file, without unpacking to more than a file of that size can hold."""

import gzip
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import damage, idx
from PIL import Image

from rrpolicy.images.data import FREE_BYTES, load_images, read_idx
from rrpolicy.images.folders import find_pictures, read_picture, write_pictures
from rrpolicy.images.pictures import FORMATS, FREE_PIXELS, open_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def refused(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        open_picture(path, "RGB")
    damage.is_clear(str(caught.value), path)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(tmp_path: Path, kind: str, mode: str) -> None:
    for stored in ("RGB", "L", "1"):
        path = tmp_path / "picture.png"  # a name says nothing
        path.write_bytes(encoded(kind, "RGB" if (kind, stored) == ("JPEG", "1") else stored))
        with Image.open(path) as picture:
            wanted = np.asarray(picture.convert(mode))
        np.testing.assert_array_equal(np.asarray(open_picture(path, mode)), wanted)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_damaged_pictures_are_read_or_refused(tmp_path: Path, kind: str, options: dict[str, object]) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(kind, **options))

    def read(one: Path) -> None:
        assert read_picture(one, (3, 4, 4), resize=True).shape == (4, 4, 3)

    assert 0 < sum(damage.read_or_refused(path, path, 80, read)) < 80


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A grey PNG whose header says this size."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(content))]
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*parts, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pictures_of_more_pixels_than_a_file_can_justify(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    for width, height in ((2**16, 2**16), (FREE_PIXELS + 1, 1), (2**31 - 1, 2**31 - 1)):
        path.write_bytes(png(width, height))
        refused(path, f"has {width}×{height} pixels in .* wanted at most|exceeds limit")
    path.write_bytes(png(2**10, 2**10))
    refused(path, "is not a picture that can be read")  # few enough, but they are not there
    path.write_bytes(png(2, 1, b"\0\1\2") + bytes(2**21))  # more bytes, more pixels
    assert np.asarray(open_picture(path, "L")).tolist() == [[1, 2]]


def webp(**options: object) -> bytearray:
    file = io.BytesIO()
    Image.new("RGB", (37, 21)).save(file, "WEBP", **options)
    return bytearray(file.getvalue())


def test_sizes_of_webp_are_read_before_pillow_takes_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy, lossless = webp(), webp(lossless=True)
    moving = webp(save_all=True, append_images=[Image.new("RGB", (37, 21), "red")])
    for content in (lossy, lossless):
        (tmp_path / "p.webp").write_bytes(content)
        assert open_picture(tmp_path / "p.webp", "RGB").size == (37, 21)
    (tmp_path / "p.webp").write_bytes(moving)
    refused(tmp_path / "p.webp", "has 2 frames, wanted a still picture")
    lossy[26:30] = struct.pack("<HH", 16383, 16383)
    lossless[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    moving[24:30] = b"\xff\x3f\x00" * 2
    monkeypatch.setattr(Image, "open", None)
    for content, sides in ((lossy, "16383×16383"), (lossless, "16384×16384"), (moving, "16384×16384")):
        (tmp_path / "p.webp").write_bytes(content)
        with pytest.raises(ValueError, match=f"p.webp: has {sides} pixels"):
            open_picture(tmp_path / "p.webp", "RGB")


def test_jpegs_of_many_scans(tmp_path: Path) -> None:
    content = encoded("JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    (tmp_path / "picture.jpg").write_bytes(content[:start] + content[start:-2] * 100 + content[-2:])
    refused(tmp_path / "picture.jpg", "is a JPEG of more than 32 scans")


def test_other_formats_are_not_even_tried(tmp_path: Path) -> None:
    for kind in ("PPM", "ICO", "PCX", "TGA"):
        (tmp_path / "picture.png").write_bytes(encoded(kind))
        refused(tmp_path / "picture.png", "is not a picture that can be read")
    (tmp_path / "picture.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # a program
    refused(tmp_path / "picture.png", "is not a picture that can be read")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe, device = tmp_path / "cat" / "pipe.png", tmp_path / "cat" / "device.png"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        refused(path, "is not a regular file")
        with pytest.raises(FileNotFoundError, match="neither a picture nor a folder"):
            find_pictures([path])
    with pytest.raises(ValueError, match=r"device\.png: is not a regular file"):
        find_pictures([tmp_path])
    pipe.unlink()
    device.unlink()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        find_pictures([tmp_path])
    idx = tmp_path / "train-images-idx3-ubyte"
    os.mkfifo(idx)
    with pytest.raises(ValueError, match="is not a regular file"):
        read_idx(idx, 3)
    with pytest.raises(FileNotFoundError, match="no images"):
        load_images(tmp_path)


def test_a_name_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31mred.png"
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"\?\[31mred\.png: is not a picture") as caught:
        read_picture(path, (3, 4, 4))
    assert str(caught.value).isprintable()


def test_written_pictures_are_whole(tmp_path: Path) -> None:
    paths = write_pictures(PIXELS[None], tmp_path / "new", "sample")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sample-0000.png"]
    np.testing.assert_array_equal(read_picture(paths[0], (3, 6, 8)), PIXELS)


# ---------------------------------------------------------------------- idx files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files_are_read_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"images{suffix}"
    content = idx.encoded(np.arange(108, dtype=np.uint8).reshape(3, 6, 6))
    path.write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    assert 0 < sum(damage.read_or_refused(path, path, 80, lambda one: read_idx(one, 3))) < 80


def test_gzip_files_unpack_to_what_their_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, header = tmp_path / "images.gz", bytes((0, 0, 8, 3)) + struct.pack(">III", 2, 3, 4)
    unpacked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size=-1: unpacked.append(read(file, size)) or unpacked[-1])
    path.write_bytes(gzip.compress(header + bytes(2 * FREE_BYTES), 1))
    with pytest.raises(ValueError, match=r"images\.gz: holds more than 24 values, its header says 24"):
        read_idx(path, 3)
    assert sum(map(len, unpacked)) == 16 + 25
    size = FREE_BYTES // 2**14
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">III", size, 2**7, 2**8), 1))
    with pytest.raises(ValueError, match=f"its header says {2 * FREE_BYTES} values, wanted at most"):
        read_idx(path, 3)


@pytest.mark.parametrize("compressed", [True, False])
def test_small_idx_files_of_many_images(tmp_path: Path, compressed: bool) -> None:
    n = 2**17
    for kind, shape in (("images-idx3", (n, 1, 1)), ("labels-idx1", (n,))):
        content = idx.encoded(np.zeros(shape, np.uint8))
        path = tmp_path / f"train-{kind}-ubyte{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=r"images.*: holds 131072 images, wanted at most 6.... in a file of its size"):
        load_images(tmp_path)


@pytest.mark.parametrize("place", [b"caf\xe9.png", b"caf\xe9/one.png"])
def test_names_that_no_table_can_hold_are_refused(place: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(place)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded("PNG"))
    for places in ([tmp_path], [path], [path.parent]):
        with pytest.raises(ValueError, match=r"caf\\xe9.*: the name of this picture is not UTF-8") as caught:
            find_pictures(places)
        assert str(caught.value).isprintable()
    (tmp_path / "fine").mkdir()
    (tmp_path / "fine" / "müde ♥.png").write_bytes(encoded("PNG"))
    assert [one.path.name for one in find_pictures([tmp_path / "fine"]).pictures] == ["müde ♥.png"]
    found = find_pictures([tmp_path])  # beside others it is left out
    assert [one.path.name for one in found.pictures] == ["müde ♥.png"]
    reason = "the name of this picture is not UTF-8: rename the file or its folder"
    assert found.left_out == [(path, reason)]
    with pytest.raises(ValueError, match=r"caf\\xe9.*: the name of this picture is not UTF-8"):
        find_pictures([tmp_path], strict=True)
