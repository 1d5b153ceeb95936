"""Your own pictures: kinds, bits, shapes, classes, and what is refused by name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images.run_errors import SetupError
from examples.images.sources import Folder, pictures, stacked
from examples.images.sources.folder import cropped, resized
from examples.images.sources.pictures import CHANNELS, read_picture
from tests.versions import torchvision_is

COLOUR_TYPES = {"grey": 0, "grey_alpha": 4, "colour": 2, "colour_alpha": 6}
"""Colour types of the PNG format."""


def png(array: np.ndarray, bits: int, colour_type: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file of an array `(H, W, C)`, written by the book: Pillow writes no 16-bit colours."""
    height, width, _ = array.shape
    rows = array.astype(">u2" if bits == 16 else "u1")
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def levels(bits: int, channels: int, size: int = 8) -> np.ndarray:
    """Levels of all magnitudes, the ends included."""
    array = np.random.default_rng(0).integers(0, 2**bits, (size, size, channels))
    array.flat[:2] = 0, 2**bits - 1
    return array


deep = pytest.mark.skipif(not torchvision_is("0.20"), reason="torchvision 0.20 reads 16 bits")


@pytest.mark.parametrize("bits", [8, pytest.param(16, marks=deep)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_png_files_are_read_exactly(channels, bits, tmp_path):
    array = levels(bits, CHANNELS[channels])
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(array, bits, COLOUR_TYPES[channels]))
    source = Folder(str(tmp_path), size=8, channels=channels, bins=2**bits, test_fraction=0.5)
    training, test = source.load()
    for portion in (training, test):
        (image,) = portion[0]
        assert image.dtype == (torch.uint16 if bits == 16 else torch.uint8)
        assert image.shape == source.event_shape
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), array)


@pytest.mark.parametrize(
    ("mode", "bits"), [("L", 8), ("LA", 8), ("RGB", 8), ("RGBA", 8), ("I;16", 16)]
)
def test_tiff_files_are_read_exactly(mode, bits, tmp_path):
    array = levels(bits, 1 if mode == "I;16" else len(mode)).astype(f"u{bits // 8}")
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").permute(1, 2, 0), array)


def test_jpeg_files_are_turned_as_they_say(tmp_path):
    array = np.zeros((16, 32, 3), np.uint8)
    array[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_picture(tmp_path / "a.jpg")
    assert image.shape == (3, 32, 16)
    assert image[:, :14].min() > 240
    assert image[:, 18:].max() < 15


PALETTE = (b"PLTE", bytes([255, 0, 0, 0, 200, 0]))


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (png(np.array([[[0], [1]]]), 8, 3, PALETTE), [[255, 0], [0, 200], [0, 0]]),
        (
            png(np.array([[[0], [1]]]), 8, 3, PALETTE, (b"tRNS", bytes([0, 128]))),
            [[255, 0], [0, 200], [0, 0], [0, 128]],
        ),
        (png(np.array([[[7], [9]]]), 8, 0, (b"tRNS", b"\0\7")), [[7, 9], [0, 255]]),
        (png(np.array([[[0b01000000]]]), 1, 0), [[0]]),
    ],
    ids=["palette", "transparent_palette", "transparent_grey", "one_bit"],
)
def test_palettes_and_transparent_levels_are_expanded(content, pixels, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    assert read_picture(tmp_path / "a.png").squeeze(1).tolist() == pixels


def test_16_bits_need_a_torchvision_that_reads_them(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(levels(16, 3), 16, 2))
    monkeypatch.setattr(pictures.torchvision, "__version__", "0.19.1+cu121")
    with pytest.raises(
        SetupError, match=r"a\.png has 16 bits; install torchvision 0\.20 or newer"
    ):
        read_picture(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(levels(8, 3), 8, 2))
    assert read_picture(tmp_path / "a.png").dtype == torch.uint8


@deep
@pytest.mark.parametrize(
    ("size", "shape"), [(4, (4, 4)), ((4, 8), (4, 8)), ((8, 4), (8, 4)), ((5, 3), (5, 3))]
)
def test_the_middle_is_cropped_and_resized(size, shape, tmp_path):
    array = levels(16, 1, size=24)[:, :16]
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(array, 16, 0))
    source = Folder(str(tmp_path), size=size, channels="grey", bins=65_536, test_fraction=0.5)
    image = source.load()[0][0][0]
    assert image.shape == (1, *shape)
    assert image.dtype == torch.uint16


def test_crops_are_in_the_middle():
    picture = torch.arange(6 * 10).reshape(1, 6, 10)
    assert torch.equal(cropped(picture, 32, 32), picture[:, :, 2:8])
    assert cropped(picture, 10, 20).shape == (1, 5, 10)
    assert cropped(picture.mT, 20, 10).shape == (1, 10, 5)


def test_resizing_keeps_white_white_and_means_in_between():
    white = torch.full((1, 8, 8), 65_535).to(torch.uint16)
    assert resized(white, 4, 4).to(torch.int64).unique().tolist() == [65_535]
    halves = torch.cat([white[:, :4], torch.zeros(1, 4, 8, dtype=torch.uint16)], dim=1)
    small = resized(halves, 2, 2).to(torch.int64)
    assert small[0, 0, 0] > 2 * small[0, 1, 0]
    assert small[0, :, 0].sum() == 65_535  # smoothing is symmetric


def test_folders_are_classes(tmp_path):
    for index, name in enumerate(("b", "a", "c")):
        (tmp_path / name / "inside").mkdir(parents=True)
        for i in range(4):
            array = np.full((8, 8, 1), 10 * index + i)
            (tmp_path / name / "inside" / f"{i}.png").write_bytes(png(array, 8, 0))
    source = Folder(str(tmp_path), size=8, channels="grey", test_fraction=0.25)
    assert source.classes == 3
    training, test = source.load()
    assert (len(training), len(test)) == (9, 3)
    pairs = [portion[i] for portion in (training, test) for i in range(len(portion))]
    # the classes are in the order of their names: a, b, c
    found = {(int(label), int(image[0, 0, 0]) // 10) for image, label in pairs}
    assert found == {(0, 1), (1, 0), (2, 2)}
    again = stacked(source.load()[1])
    assert torch.equal(again, stacked(test))


def _write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)


def _cmyk(folder: Path) -> None:
    Image.new("CMYK", (8, 8)).save(folder / "a.jpg")


def _two_pages(folder: Path) -> None:
    page = Image.new("L", (8, 8))
    page.save(folder / "a.tif", save_all=True, append_images=[page])


def _deep_tiff(folder: Path) -> None:
    """A TIFF file of one pixel with three channels of 16 bits, which Pillow does not write."""
    after = 8 + 2 + 12 * 9 + 4
    entries = [
        *((256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, after), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, after + 6), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6)),
    ]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    content = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + struct.pack("<I", 0)
    (folder / "a.tif").write_bytes(content + struct.pack("<6H", 16, 16, 16, 1, 258, 65_535))


GREY, COLOUR = png(levels(8, 1), 8, 0), png(levels(8, 3), 8, 2)
DEEP = png(levels(16, 1), 16, 0)


@pytest.mark.parametrize(
    ("prepare", "settings", "message"),
    [
        (
            lambda f: _write(f, "a.png", COLOUR),
            {},
            "a.png is of kind colour, but channels is grey",
        ),
        (
            lambda f: _write(f, "a.png", GREY),
            {"channels": "colour"},
            "is of kind grey, but channels is colour",
        ),
        pytest.param(
            lambda f: _write(f, "a.png", DEEP),
            {},
            "has 65536 grey levels, but bins is 256",
            marks=deep,
        ),
        (
            lambda f: _write(f, "a.png", GREY),
            {"bins": 65_536},
            "has 256 grey levels, but bins is 65536",
        ),
        (
            lambda f: _write(f, "a.png", png(levels(8, 1)[:4], 8, 0)),
            {"crop": "none"},
            "is of 4x8 pixels, which has not the shape of 8x8",
        ),
        (lambda f: _write(f, "a.png", GREY[:60]), {}, "a.png cannot be read"),
        (_cmyk, {}, "a.jpg has pixels of the mode CMYK; save it as grey or RGB"),
        (_deep_tiff, {}, "a.tif has channels of 16 bits in a TIFF file; save it as PNG"),
        (_two_pages, {}, "a.tif has 2 pictures; save them in a file each"),
        (
            lambda f: _write(f, "a.png", png(levels(16, 1), 16, 0, (b"tRNS", b"\0\7"))),
            {"bins": 65_536},
            "a.png has a transparent colour and 16 bits",
        ),
    ],
)
def test_other_pictures_are_refused_by_name(
    prepare: Callable[[Path], None], settings, message, tmp_path
):
    prepare(tmp_path)
    source = Folder(str(tmp_path), **{"size": 8, "channels": "grey", **settings})
    with pytest.raises(SetupError, match=message):
        source.prepare(next(tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds 0 pictures"),
        (["a.png"], "holds 1 pictures"),
        (["a.png", "b.txt"], "holds 1 pictures"),
        (["a.png", "b/c.png"], "holds both pictures, such as a.png, and folders"),
        (["a/a.png", "b/c.txt"], "Found no valid file for the classes b"),
    ],
)
def test_folders_without_pictures_are_named(files, message, tmp_path):
    for name in files:
        _write(tmp_path, name, GREY)
    with pytest.raises(SetupError, match=message):
        Folder(str(tmp_path), size=8, channels="grey").load()


def test_a_missing_folder_is_named(tmp_path):
    source = Folder(str(tmp_path / "nowhere"))
    assert source.classes == 0
    with pytest.raises(SetupError, match=r"there is no folder '.*nowhere'; name the folder"):
        source.load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 1024}, "bins: expected 256 or 65536"),
        ({"test_fraction": 1.0}, "test_fraction: expected a number between"),
        ({"size": (0, 8)}, "size: expected at least 1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Folder("pictures", **settings)
