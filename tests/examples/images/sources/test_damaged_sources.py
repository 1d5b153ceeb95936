"""Damaged files of images are named and leave nothing behind."""

from __future__ import annotations

import struct
import tarfile
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from examples.images import sources
from examples.images.run_errors import SetupError
from examples.images.sources import image_files, imagenet
from tests.examples.images.sources.test_sources import pixels, png, save


@pytest.mark.parametrize("cut", [20, 200, 3000])
def test_a_damaged_picture_in_an_archive_is_named(cut, tmp_path):
    path = tmp_path / "train_32x32.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("0.png", png(pixels(3, 32, 32))), ("1.png", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    data = bytearray(path.read_bytes())
    data[512 + 40 : 512 + 60] = b"x" * 20  # after the header of the archive and the picture's own
    path.write_bytes(data[: 512 + cut])
    with pytest.raises(SetupError, match=r"train_32x32\.tar cannot be read"):
        sources.ImageNet32(str(tmp_path)).load()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]  # nothing half unpacked


ARRAYS = {
    "another_name": lambda path: np.savez(path, images=np.zeros((2, 3072), np.uint8)),
    "another_size": lambda path: np.savez(path, data=np.zeros((2, 3071), np.uint8)),
    "no_array": lambda path: np.savez(path, data=np.array(["a"])),
    "pickled": lambda path: np.savez(path, data=np.array([{}], dtype=object)),
    "cut_off": lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 100),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_damaged_batch_of_arrays_is_named(kind, tmp_path):
    path = tmp_path / "train_data_batch_1.npz"
    ARRAYS[kind](path)
    with pytest.raises(SetupError, match=r"train_data_batch_1\.npz cannot be read"):
        sources.ImageNet32(str(tmp_path)).load()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_full_disk_is_not_left_full(tmp_path, monkeypatch):
    save(tmp_path / "train_32x32" / "0.png", pixels(3, 32, 32))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagenet, "check_shape", full)
    with pytest.raises(SetupError, match=r"train_32x32\.uint8 cannot be written: .*No space"):
        sources.ImageNet32(str(tmp_path)).load()
    assert [each.name for each in tmp_path.iterdir()] == ["train_32x32"]


@pytest.mark.parametrize("content", [b"1.jpg 0 3\n", b"1.jpg\n", b"\xff\xfe 0\n"])
def test_a_damaged_partition_is_named(content, tmp_path):
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    (tmp_path / "celeba" / "list_eval_partition.txt").write_bytes(content)
    with pytest.raises(SetupError, match=r"list_eval_partition\.txt cannot be read"):
        sources.CelebA(str(tmp_path)).load()


def damaged_images(folder: Path) -> list[Path]:
    whole = png(pixels(3, 8, 8))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (3, %s), }"
    contents = {
        "empty.png": b"",
        "cut.png": whole[:60],
        "chunk.png": whole[:12] + b"IHDX" + whole[16:],
        "size.png": whole[:16] + b"\x7f\xff\xff\xff" * 2 + whole[24:],
        "huge.png": png(pixels(3, 1, 1))[:16] + struct.pack(">II", 60_000, 60_000) + whole[24:],
        "empty.npy": b"",
        "text.npy": b"no array",
        "large.npy": (header % b"99999, 99999").ljust(127) + b"\n" + b"x" * 100,
        "zip.npy": b"PK\x03\x04" + b"\0" * 60,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    np.save(folder / "texts.npy", np.array([[["a"]]]))
    np.save(folder / "flat.npy", np.zeros((), dtype=np.uint8))
    return sorted(folder.iterdir())


def test_damaged_images_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, of large pictures
        for path in damaged_images(tmp_path):
            if path.name == "flat.npy":  # one number: of another shape
                assert image_files.read_image(path).shape == ()
                continue
            with pytest.raises(SetupError, match=f"{path.name} cannot be read"):
                image_files.read_image(path)
