"""Pictures are what viewers show: turned, in 8 bits, on white; and folders are read whole or it is said what not."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rrpolicy.images.folders import Found, ReadAgain, counted, find_pictures, read_in_parts, read_picture
from rrpolicy.images.pictures import open_picture

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def pixels(path: Path, mode: str = "L") -> np.ndarray:
    return np.asarray(open_picture(path, mode))


def refused(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        open_picture(path, "RGB")
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and "0x" not in str(caught.value)


# ---------------------------------------------------------------------- upright

UPRIGHT = (
    GREY,
    GREY[:, ::-1],
    GREY[::-1, ::-1],
    GREY[::-1],
    GREY.T,
    np.rot90(GREY, -1),
    GREY[::-1, ::-1].T,
    np.rot90(GREY),
)  # what EXIF's orientations 1 to 8 make of the stored rows


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_metadata_say(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    Image.fromarray(GREY).save(tmp_path / "p", kind, exif=exif, **options)
    found, wanted = pixels(tmp_path / "p").astype(int), UPRIGHT[orientation - 1].astype(int)
    assert found.shape == wanted.shape and np.abs(found - wanted).max() <= (3 if kind == "JPEG" else 0)


def test_metadata_that_cannot_be_read_turn_nothing(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "p.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x07" * 9)
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), GREY)


# ---------------------------------------------------------------------- 8 bits


def png(header: bytes, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 3 × 1 pixels: bits and colour type, the bytes of its row, other chunks."""
    parts = [
        (b"IHDR", struct.pack(">II", 3, 1) + header + b"\0\0\0"),
        *chunks,
        (b"IDAT", zlib.compress(b"\0" + rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


@pytest.mark.parametrize(("values", "wanted"), [((0, 0x80FF, 0xFFFF), [0, 128, 255]), ((257, 514, 51400), [1, 2, 200])])
def test_16_bits_become_8(values: tuple[int, ...], wanted: list[int], tmp_path: Path) -> None:
    row = struct.pack(">3H", *values)
    (tmp_path / "grey.png").write_bytes(png(b"\x10\0", row))
    assert pixels(tmp_path / "grey.png").tolist() == [wanted]
    colours = b"".join(row[i : i + 2] * 3 for i in (0, 2, 4))
    (tmp_path / "colour.png").write_bytes(png(b"\x10\2", colours))
    assert pixels(tmp_path / "colour.png", "RGB").tolist() == [[[value] * 3 for value in wanted]]
    for name, kind in (("little.tif", "<u2"), ("big.tif", ">u2")):
        Image.fromarray(np.array([values], kind)).save(tmp_path / name)
        assert pixels(tmp_path / name).tolist() == [wanted]


def tiff(bits: int, kind: int, row: bytes, white_is_zero: bool = False) -> bytes:
    """A grey TIFF of 2 × 1 pixels; kind is its sample format: 1 whole, 2 signed, 3 float."""
    tags = (
        (256, 2),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, 0 if white_is_zero else 1),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(row)),
        (339, kind),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(row) + len(row) % 2)
    return head + row + bytes(len(row) % 2) + struct.pack("<H", 10) + entries + bytes(4)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (tiff(16, 1, struct.pack("<2H", 0x1234, 0xFF00)), [0x12, 0xFF]),
        (tiff(16, 1, struct.pack("<2H", 0x1234, 0xFF00), white_is_zero=True), [255 - 0x12, 0]),
        (tiff(12, 1, b"\x80\x0f\xff"), [0x80, 0xFF]),
        (tiff(32, 3, struct.pack("<2f", 0.5, 1)), [128, 255]),
        (tiff(32, 3, struct.pack("<2f", 0, 1), white_is_zero=True), [255, 0]),
    ],
)
def test_greys_of_tiff(content: bytes, wanted: list[int], tmp_path: Path) -> None:
    (tmp_path / "p.tif").write_bytes(content)
    assert pixels(tmp_path / "p.tif").tolist() == [wanted]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(32, 3, struct.pack("<2f", 0, 1.5)), r"holds floats beyond \[0, 1\] or NaN"),
        (tiff(32, 3, struct.pack("<2f", -0.1, 1)), r"holds floats beyond \[0, 1\] or NaN"),
        (tiff(32, 3, struct.pack("<2f", 0, np.nan)), r"holds floats beyond \[0, 1\] or NaN"),
        (tiff(16, 2, struct.pack("<2h", -5, 5)), "holds signed numbers"),
        (tiff(8, 2, b"\xff\1"), "holds signed numbers"),
        (tiff(32, 1, struct.pack("<2I", 5, 6)), "holds whole numbers of 32 bits"),
    ],
)
def test_other_numbers_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.tif").write_bytes(content)
    refused(tmp_path / "p.tif", words)


# ---------------------------------------------------------------------- on white


def test_what_looks_alike_on_white_is_alike(tmp_path: Path) -> None:
    clear = RNG.random((6, 8)) < 0.5
    wanted = np.where(clear[..., None], 255, COLOUR)
    for name, hidden in (("black", 0), ("red", (255, 0, 0)), ("same", COLOUR)):
        stored = np.where(clear[..., None], hidden, COLOUR).astype(np.uint8)
        Image.fromarray(np.dstack([stored, np.where(clear, 0, 255).astype(np.uint8)])).save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(pixels(tmp_path / f"{name}.png", "RGB"), wanted)
    half = Image.fromarray(np.dstack([COLOUR, np.full((6, 8), 51, np.uint8)]))
    for kind in ("PNG", "TIFF"):
        half.save(tmp_path / "half", kind)
        assert np.abs(pixels(tmp_path / "half", "RGB") - (0.2 * COLOUR + 0.8 * 255)).max() <= 1


def test_every_kind_of_transparency(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    cases = {
        "grey and alpha": (png(b"\x08\4", bytes((0, 0, 9, 255, 200, 255))), [255, 9, 200]),
        "16-bit grey and alpha": (png(b"\x10\4", struct.pack(">6H", 7, 0, 0x900, 65535, 0xC800, 65535)), [255, 9, 200]),
        "one grey": (png(b"\x08\0", bytes((7, 9, 200)), (b"tRNS", b"\0\7")), [255, 9, 200]),
        "one of 65536 greys": (
            png(b"\x10\0", struct.pack(">3H", 0x907, 0x900, 0xC800), (b"tRNS", b"\x09\7")),
            [255, 9, 200],
        ),
        "one colour": (
            png(b"\x08\2", bytes((7, 7, 7, 9, 9, 9, 200, 200, 200)), (b"tRNS", b"\0\7\0\7\0\7")),
            [255, 9, 200],
        ),
        "one of a palette": (
            png(b"\x08\3", bytes((0, 1, 2)), (b"PLTE", bytes([7] * 3 + [9] * 3 + [200] * 3)), (b"tRNS", b"\0")),
            [255, 9, 200],
        ),
        "a palette of alphas": (
            png(
                b"\x08\3", bytes((0, 1, 2)), (b"PLTE", bytes([0] * 3 + [9] * 3 + [200] * 3)), (b"tRNS", b"\x33\xff\xff")
            ),
            [204, 9, 200],
        ),
        "one bit": (png(b"\x01\0", b"\x40", (b"tRNS", b"\0\0")), [255, 255, 255]),
    }
    for name, (content, wanted) in cases.items():
        path.write_bytes(content)
        assert pixels(path).tolist() == [wanted], name
        assert pixels(path, "RGB")[..., 1].tolist() == [wanted], name
    picture = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    picture.save(tmp_path / "p.gif", transparency=0)
    assert pixels(tmp_path / "p.gif")[0, 0] == 255


def test_cmyk_is_inks_on_white(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "p.tif")
    assert pixels(tmp_path / "p.tif", "RGB").tolist() == [[[255] * 3, [0] * 3, [0, 255, 255]]]


# ---------------------------------------------------------------------- still pictures only


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_moving_pictures_are_refused(kind: str, n: int, tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY // (i + 1)) for i in range(n)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "p", kind, save_all=True, append_images=frames[1:], **options)
    if n == 1:
        np.testing.assert_array_equal(pixels(tmp_path / "p"), GREY)
    else:
        refused(tmp_path / "p", f"has {n} frames, wanted a still picture")


def test_many_frames_are_not_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((40, 40), i, np.uint8)) for i in range(5)]
    frames[0].save(tmp_path / "p.tif", save_all=True, append_images=frames[1:])
    refused(tmp_path / "p.tif", "has several frames, wanted a still picture")


def test_of_a_camera_s_views_the_first_is_read(tmp_path: Path) -> None:
    first, second = (Image.new("L", (8, 8), value) for value in (50, 200))
    first.save(tmp_path / "p.jpg", "MPO", save_all=True, append_images=[second])
    assert pixels(tmp_path / "p.jpg").tolist() == [[50] * 8] * 8


# ---------------------------------------------------------------------- folders

HTML = b"<!doctype html><title>404</title>"


def jpeg(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (10, 200, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder as they lie on disks: three pictures, eight that cannot be read, and other files."""
    (tmp_path / "cats").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "cats", target_is_directory=True)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    files = {
        "good.JPG": jpeg(),
        "cats/good.jfif": jpeg(),
        ".hidden/good.jpeg": jpeg(),
        "._good.jpg": b"\0\5\x16\7",
        "cut.jpg": jpeg()[:-4],
        "empty.png": b"",
        "page.png": HTML,
        "large.png": jpeg(9),
        "a.avif": b"",
        "b.AVIF": b"",
        "c.heic": b"",
        "d.jp2": b"",
        "e.tga": b"",
        "README": b"",
        "f.txt": b"",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(jpeg())
    return tmp_path


LEFT_OUT = {
    "caf\\xe9.png": "the name of this picture is not UTF-8: rename the file or its folder",
    "._good.jpg": "is not a picture that can be read: it holds macOS metadata",
    "cut.jpg": "is not a picture that can be read: image file is truncated",
    "empty.png": "is not a picture that can be read: the file is empty",
    "page.png": "is not a picture that can be read: it is none of PNG, JPEG, BMP, WEBP, GIF, TIFF",
    "large.png": "is 9×9, wanted 8×8; the option --resize brings it there",
    "linked": "is a link to a folder, which is not followed",
    "gone.png": "is not a regular file",
}


def all_left_out(found: Found) -> dict[str, str]:
    parts = list(read_in_parts(found.pictures, (3, 8, 8)))
    left_out = [*found.left_out, *(one for part in parts for one in part.left_out)]
    return {os.fsencode(one.path.name).decode(errors="backslashreplace"): one.reason for one in left_out}


def test_what_cannot_be_read_is_left_out_with_its_reason(messy: Path) -> None:
    found = find_pictures([messy])
    reasons = all_left_out(found)
    assert set(reasons) == set(LEFT_OUT)
    for name, reason in LEFT_OUT.items():
        assert reasons[name].startswith(reason), name
    (part,) = read_in_parts(found.pictures, (3, 8, 8))
    read = {(one.path.name, one.label) for one in part.pictures}
    assert read == {("good.JPG", None), ("good.jfif", "cats"), ("good.jpeg", ".hidden")}
    assert part.images.shape == (3, 8, 8, 3) and np.ptp(part.images, axis=0).max() == 0


def test_files_of_other_suffixes_are_counted(messy: Path) -> None:
    others = find_pictures([messy]).others
    assert others == {".avif": 2, ".heic": 1, ".jp2": 1, ".tga": 1, ".txt": 1, "without a suffix": 1}
    assert counted(others).startswith("2 .avif, 1 ") and counted({}) == ""
    for path in messy.glob("*.*"):
        if path.suffix.lower() != ".avif" and not path.is_dir():
            path.unlink()
    for name in ("cats/good.jfif", ".hidden/good.jpeg", "linked"):
        (messy / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no pictures \(.*\); there are 2 \.avif, 1 without a suffix"):
        find_pictures([messy])


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.jpg").write_bytes(jpeg())
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(place: str) -> object:
        if Path(place).name == "closed":
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr("os.scandir", closed)
    found = find_pictures([tmp_path])
    assert found.left_out == [(tmp_path / "closed", "cannot be looked into: Permission denied")]


def test_strict_names_the_first(messy: Path) -> None:
    with pytest.raises(ValueError, match=r"UTF-8|link to a folder|regular file"):
        find_pictures([messy], strict=True)
    pictures = find_pictures([messy]).pictures
    first = next(one for one in pictures if one.path.name not in ("good.JPG", "good.jfif", "good.jpeg"))
    with pytest.raises(ValueError, match=f"{first.path.name}: is not a picture"):
        list(read_in_parts(pictures, (3, 8, 8), strict=True))


def test_when_nothing_can_be_read_that_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(HTML)
    with pytest.raises(ValueError, match=r"a\.png: is not a picture .* \(and none of the other 2 can be read\)"):
        list(read_in_parts(find_pictures([tmp_path]).pictures, (3, 8, 8)))


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(jpeg(64))
    for i in range(1, 512):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    pictures = find_pictures([tmp_path]).pictures

    def peak(n: int) -> int:
        tracemalloc.start()
        try:
            for part in read_in_parts(pictures[:n], (3, 64, 64)):
                assert len(part.images) == 64
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(64)  # Pillow imports its formats when it first needs them
    one = 64 * 64 * 3
    assert 64 * one < peak(64) and peak(512) < peak(64) + 8 * one + 64 * one  # a part, and the next one beside it


def test_large_pictures_are_read_fewer_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(jpeg(8))
    for i in range(1, 6):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    parts = read_in_parts(find_pictures([tmp_path]).pictures, (3, 1024, 1024), resize=True)
    assert [len(part.images) for part in parts] == [2, 2, 2]


def test_pictures_are_read_again_when_they_are_asked_for(messy: Path) -> None:
    pictures = [one for one in find_pictures([messy]).pictures if one.path.name.startswith("good")]
    again = ReadAgain(pictures, (3, 8, 8))
    assert len(again) == 3 and len(again[1:]) == 2
    np.testing.assert_array_equal(again[1:][0], read_picture(pictures[1].path, (3, 8, 8)))
