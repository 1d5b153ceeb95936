"""Sources of images, each read from tiny files in its own format."""

from __future__ import annotations

import gzip
import pickle
import struct
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("torchvision")

from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms.v2 import CenterCrop
from torchvision.transforms.v2.functional import resize

from examples.images import sources
from examples.images.run_errors import SetupError
from examples.images.sources import (
    base,
    bundled,
    downloads,
    faces,
    imagenet,
    lsun,
    reduction,
    stacked,
)
from examples.images.sources.reduction import averaged


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def save(path: Path, image: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


def png(image: torch.Tensor) -> bytes:
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "png")
    return file.getvalue()


def fashion_mnist() -> sources.Source:
    source = sources.FashionMnist()
    if not source.system_folder.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    return source


@pytest.mark.parametrize(
    "make", [sources.Digits, sources.Mnist5k, sources.PhotoPatches, fashion_mnist]
)
def test_a_source_gives_integer_images(make):
    source = make()
    for portion in source.load():
        images = stacked(portion)
        assert images.dtype == torch.uint8
        assert images.shape[1:] == source.event_shape
        assert images.max() == source.bins - 1 or isinstance(source, sources.PhotoPatches)
        assert images.float().std() > 0
        labels = {int(label) for _, *rest in portion for label in rest}
        assert labels == set(range(source.classes))


def test_labels_are_those_of_their_images():
    portion, _ = sources.Digits().load()
    images = stacked(portion).float().flatten(1)
    labels = torch.stack([label for _, label in portion])
    means = torch.stack([images[labels == digit].mean(0) for digit in range(10)])
    nearest = torch.cdist(images, means).argmin(1)
    assert (nearest == labels).float().mean() > 0.85


def test_tiles_do_not_overlap():
    photo = torch.arange(5 * 7 * 3).reshape(5, 7, 3)
    tiles = bundled.tile(photo, 2)
    assert tiles.shape == (6, 3, 2, 2)
    assert torch.equal(tiles[1, :, 0, 0], photo[0, 2])
    assert tiles.unique().numel() == tiles.numel()


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">BBBB{values.dim()}i", 0, 0, 8, values.dim(), *values.shape)
    path.write_bytes(gzip.compress(header + values.numpy().tobytes()))


def test_idx_files_are_read(tmp_path):
    images, labels = pixels(2, 3, 4), torch.tensor([7, 1], dtype=torch.uint8)
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", labels)
    training, test = sources.FashionMnist(system_folder=str(tmp_path)).load()
    assert torch.equal(stacked(training), images.unsqueeze(1))
    assert [int(label) for _, label in training] == [7, 1]
    assert torch.equal(stacked(training), stacked(test))


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"no gzip",
        gzip.compress(b"cut off")[:-4],
        gzip.compress(b""),
        gzip.compress(b"\0\0\x08\x03\0\0"),
        gzip.compress(struct.pack(">BBBB2i", 0, 0, 8, 2, 3, 3) + b"12345678"),
        gzip.compress(struct.pack(">BBBB2i", 0, 0, 8, 2, -1, 2**31 - 1) + b"1234"),
        gzip.compress(struct.pack(">BBBB1i", 0, 0, 13, 1, 1) + b"1234"),  # of float32
        gzip.compress(b"\0\0\x08\x01\0\0\0\1x")[:10] + b"\xff" * 30,
    ],
    ids=[
        *("missing", "no_gzip", "cut_off", "empty", "no_shape", "too_few", "negative", "floats"),
        "damaged",
    ],
)
def test_a_bad_idx_file_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(SetupError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        sources.FashionMnist(system_folder=str(tmp_path)).load()


def test_a_failed_download_says_what_to_do():
    class Unreachable:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            raise OSError("no route to host")

    with pytest.raises(SetupError, match=r"Unreachable .* 'data' .* --data.source.root"):
        downloads.download(Unreachable, "data", train=True)


def test_torchvisions_mnist_is_read(tmp_path):
    images, labels = pixels(3, 28, 28), torch.tensor([5, 0, 4], dtype=torch.uint8)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            write_idx(folder / f"{part}-{kind}-ubyte.gz", values)
            packed = folder / f"{part}-{kind}-ubyte.gz"
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    training, test = sources.Mnist(str(tmp_path)).load()
    assert torch.equal(stacked(training), images.unsqueeze(1))
    assert torch.equal(stacked(test), images.unsqueeze(1))
    assert [int(label) for _, label in training] == [5, 0, 4]


def test_torchvisions_cifar10_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", lambda self: None)
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    images = pixels(6, 3, 32, 32)
    names = [name for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list]
    for i, name in enumerate(names):
        batch = {"data": images[i : i + 1].flatten(1).numpy(), "labels": [i]}
        (folder / name).write_bytes(pickle.dumps(batch))
    training, test = sources.Cifar10(str(tmp_path)).load()
    assert torch.equal(torch.cat([stacked(training), stacked(test)]), images)
    assert [int(label) for _, label in [*training, *test]] == list(range(6))


def test_torchvisions_svhn_is_read(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.SVHN, "download", lambda self: None)
    images = pixels(3, 3, 32, 32)
    for part in ("train", "test"):
        content = {"X": images.permute(2, 3, 1, 0).numpy(), "y": np.array([[1], [10], [9]])}
        savemat(tmp_path / f"{part}_32x32.mat", content)
    training, test = sources.Svhn(str(tmp_path)).load()
    assert torch.equal(stacked(training), images)
    assert torch.equal(stacked(test), images)
    assert [int(label) for _, label in training] == [1, 0, 9]


class Ramp(sources.Source):
    event_shape = (1, 2, 4)
    classes = 3

    def load(self) -> tuple[base.Portion, base.Portion]:
        images = torch.tensor([[[[0, 1, 254, 255], [1, 1, 255, 255]]]], dtype=torch.uint8)
        portion = torch.utils.data.TensorDataset(images, torch.tensor([2]))
        return portion, portion


def test_bits_are_dropped_from_below():
    source = sources.FewerBits(Ramp(), bits=5)
    assert (source.bins, source.event_shape, source.classes) == (32, (1, 2, 4), 3)
    image, label = source.load()[0][0]
    assert image.tolist() == [[[0, 0, 31, 31], [0, 0, 31, 31]]]
    assert label == 2
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(source.reduce(every), every >> 3)


def test_images_of_wide_unsigned_integers_are_reduced() -> None:
    """uint16 has no division in torch, and a mean of it does not fit into uint8."""
    image = torch.tensor([[[65535, 65533], [1, 3]]], dtype=torch.uint16)
    source = sources.FewerBits(Ramp(), bits=5)  # of 256 grey levels
    assert source.reduce(image).tolist() == [[[8191, 8191], [0, 0]]]
    assert averaged(image, 2).tolist() == [[[32768]]]


@pytest.mark.parametrize("bits", [0, 8, 9])
def test_bits_that_are_not_fewer_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits: expected fewer bits .* got {bits}"):
        sources.FewerBits(Ramp(), bits)
    with pytest.raises(ValueError, match="17 grey levels"):
        sources.FewerBits(sources.Digits(), 2)


def test_means_are_rounded_halves_up():
    image = torch.tensor([[[0, 1, 254, 255], [0, 0, 255, 255]]], dtype=torch.uint8)
    assert reduction.averaged(image, 2).tolist() == [[[0, 255]]]
    image = torch.tensor([[[0, 1, 1, 1], [0, 1, 0, 1]]], dtype=torch.uint8)
    assert reduction.averaged(image, 2).tolist() == [[[1, 1]]]
    assert torch.equal(reduction.averaged(torch.full((3, 9, 9), 255).byte(), 3).unique(),
                       torch.tensor([255], dtype=torch.uint8))  # fmt: skip
    image = pixels(3, 8, 12)
    exact = torch.nn.functional.avg_pool2d(image.double(), 4)
    assert torch.equal(reduction.averaged(image, 4), (exact + 0.5).floor().byte())


def test_an_averaged_source_is_smaller():
    source = sources.Averaged(Ramp())
    assert (source.event_shape, source.bins, source.classes) == ((1, 1, 2), 256, 3)
    image, label = source.load()[1][0]
    assert image.tolist() == [[[1, 255]]]
    assert label == 2
    with pytest.raises(ValueError, match="2x4 pixels, got 4"):
        sources.Averaged(Ramp(), factor=4)


def test_a_source_says_what_it_is():
    reduced = sources.FewerBits(sources.Averaged(sources.FashionMnist()), bits=5)
    said = "FashionMnist, 2x2 pixels averaged, 32 grey levels"
    assert str(sources.InMemory(reduced)) == said


def imagenet_folder(root: Path, images: torch.Tensor) -> None:
    for part in ("train", "valid"):
        for i, image in enumerate(images):
            save(root / f"{part}_32x32" / f"{i:05}.png", image)


def imagenet_tar(root: Path, images: torch.Tensor) -> None:
    for part in ("train", "valid"):
        with tarfile.open(root / f"{part}_32x32.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(f"{part}_32x32/notes.txt"))
            for i, image in enumerate(images):
                content = png(image)
                member = tarfile.TarInfo(f"{part}_32x32/{i:05}.png")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))


def imagenet_arrays(root: Path, images: torch.Tensor) -> None:
    rows = images.flatten(1).numpy()
    np.savez_compressed(root / "train_data_batch_1.npz", data=rows[:2], labels=[3, 1])
    np.savez_compressed(root / "train_data_batch_2.npz", data=rows[2:], labels=[2])
    np.savez_compressed(root / "val_data.npz", data=rows, labels=[3, 1, 2])


@pytest.mark.parametrize("write", [imagenet_folder, imagenet_tar, imagenet_arrays])
def test_imagenet_is_unpacked_once_and_read_image_by_image(write, tmp_path):
    images = pixels(3, 3, 32, 32)
    write(tmp_path, images)
    for portion in sources.ImageNet32(str(tmp_path)).load():
        assert torch.equal(stacked(portion), images)
    unpacked = tmp_path / "train_32x32.uint8"
    before = unpacked.stat().st_mtime_ns
    sources.ImageNet32(str(tmp_path)).load()
    assert unpacked.stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_imagenet_of_the_wrong_size_is_refused_and_leaves_nothing_behind(tmp_path):
    save(tmp_path / "train_64x64" / "0.png", pixels(3, 32, 32))
    with pytest.raises(SetupError, match=r"shape \(3, 64, 64\), got uint8 of shape \(3, 32"):
        sources.ImageNet64(str(tmp_path)).load()
    assert not (tmp_path / "train_64x64.uint8").exists()


def test_missing_imagenet_files_are_named(tmp_path):
    with pytest.raises(SetupError, match=r"neither train_32x32\.tar, .* image-net\.org"):
        sources.ImageNet32(str(tmp_path)).load()


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "train_32x32.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(SetupError, match=r"train_32x32\.tar cannot be read"):
        sources.ImageNet32(str(tmp_path)).load()
    (tmp_path / "train_32x32.tar").unlink()
    (tmp_path / "train_data_batch_1.npz").write_bytes(b"no array")
    with pytest.raises(SetupError, match=r"train_data_batch_1\.npz cannot be read"):
        sources.ImageNet32(str(tmp_path)).load()


def test_a_file_of_broken_length_is_named(tmp_path):
    path = tmp_path / "train_32x32.uint8"
    path.write_bytes(b"x" * 3073)
    with pytest.raises(SetupError, match=r"got 3073 bytes in all; delete the file"):
        imagenet.RawImages(path, (3, 32, 32))


def test_raw_images_end(tmp_path):
    path = tmp_path / "images.uint8"
    path.write_bytes(bytes(range(24)))
    images = imagenet.RawImages(path, (1, 2, 3))
    assert len(images) == len(list(images)) == 4
    with pytest.raises(IndexError):
        images[-1]


def celeba(root: Path, portions: dict[str, int]) -> None:
    lines = [f"{name} {portion}" for name, portion in portions.items()]
    (root / "celeba" / "img_align_celeba").mkdir(parents=True)
    (root / "celeba" / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")


def test_celeba_is_divided_and_cropped(tmp_path):
    celeba(tmp_path, {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 2, "000004.jpg": 0})
    face = torch.full((3, 218, 178), 255, dtype=torch.uint8)
    face[:, 40:188, 15:163] = 100
    for name in ("000001.jpg", "000003.jpg", "000004.jpg"):
        Image.fromarray(face.permute(1, 2, 0).numpy()).save(
            tmp_path / "celeba" / "img_align_celeba" / name, quality=100, subsampling=0
        )
    training, test = sources.CelebA(str(tmp_path)).load()
    assert [len(training), len(test)] == [2, 1]
    image = training[0][0]
    assert image.shape == (3, 64, 64)
    assert bool((image.int() - 100).abs().max() <= 2)


def test_the_face_is_resized_with_smoothing():
    checks = (torch.arange(218)[:, None] + torch.arange(178)) % 2 * 255
    face = faces.crop_face(checks.byte().expand(3, -1, -1))
    assert bool((face.int() - 127).abs().max() < 40)


def test_missing_faces_are_named(tmp_path):
    with pytest.raises(SetupError, match=r"img_align_celeba is missing\. It comes from mmlab"):
        sources.CelebA(str(tmp_path)).load()
    (tmp_path / "celeba" / "img_align_celeba").mkdir(parents=True)
    with pytest.raises(SetupError, match=r"list_eval_partition\.txt is missing"):
        sources.CelebA(str(tmp_path)).load()
    celeba(tmp_path / "other", {"000001.jpg": 0})
    training, _ = sources.CelebA(str(tmp_path / "other")).load()
    with pytest.raises(SetupError, match=r"000001\.jpg cannot be read"):
        training[0]


def test_celeba_hq_is_read_in_every_form(tmp_path):
    small, large = pixels(3, 256, 256), pixels(3, 512, 512)
    save(tmp_path / "00000.png", small)
    np.save(tmp_path / "00001.npy", small.unsqueeze(0).numpy())
    save(tmp_path / "00002.png", large)
    training, test = sources.CelebAHQ(str(tmp_path), test_images=1).load()
    assert torch.equal(stacked(training), torch.stack([small, small]))
    assert torch.equal(stacked(test)[0], reduction.averaged(large, 2))


def test_celeba_hq_says_what_is_missing_or_wrong(tmp_path):
    with pytest.raises(SetupError, match=r"finds 0 images .*progressive_growing_of_gans"):
        sources.CelebAHQ(str(tmp_path)).load()
    np.save(tmp_path / "0.npy", np.zeros((3, 256, 256), dtype=np.float32))
    np.save(tmp_path / "1.npy", np.zeros((2, 3, 256, 256), dtype=np.uint8))
    (tmp_path / "2.png").write_bytes(b"no picture")
    training, test = sources.CelebAHQ(str(tmp_path), test_images=1).load()
    with pytest.raises(SetupError, match=r"0\.npy: expected bytes .* got float32"):
        training[0]
    with pytest.raises(SetupError, match=r"1\.npy cannot be read"):
        training[1]
    with pytest.raises(SetupError, match=r"2\.png cannot be read"):
        test[0]


def test_lsun_is_read_from_folders(tmp_path):
    wide = pixels(3, 120, 200)
    save(tmp_path / "tower_train" / "a" / "1.webp", wide)
    save(tmp_path / "tower_val" / "2.png", wide)
    training, test = sources.Lsun(str(tmp_path), "tower").load()
    assert training[0][0].shape == (3, 64, 64)
    assert not torch.equal(training[0][0], training[0][0])
    centre = CenterCrop(64)(resize(wide, [96], antialias=True))
    assert torch.equal(test[0][0], centre)


def test_lsun_is_read_from_its_database(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    scenes = pixels(3, 3, 96, 100)
    for part in ("train", "val"):
        with (
            lmdb.open(str(tmp_path / f"tower_{part}_lmdb")) as database,
            database.begin(write=True) as transaction,
        ):
            for i, scene in enumerate(scenes):
                transaction.put(f"key{i}".encode(), png(scene))
    _, test = sources.Lsun(str(tmp_path), "tower").load()
    expected = CenterCrop(64)(scenes)
    assert torch.equal(stacked(test), expected)
    copied = pickle.loads(pickle.dumps(test))
    assert torch.equal(stacked(copied), expected)
    loaded = DataLoader(test, batch_size=3, num_workers=1)
    assert torch.equal(next(iter(loaded))[0], expected)
    with (
        lmdb.open(str(tmp_path / "broken")) as database,
        database.begin(write=True) as transaction,
    ):
        transaction.put(b"key", b"no picture")
    broken = lsun.LmdbImages(tmp_path / "broken", (3, 64, 64), CenterCrop(64))
    with pytest.raises(SetupError, match=r"b'key' in .*broken cannot be read"):
        broken[0]
    (tmp_path / "broken" / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(SetupError, match="broken cannot be read"):
        lsun.LmdbImages(tmp_path / "broken", (3, 64, 64), CenterCrop(64))


def test_missing_scenes_are_named(tmp_path):
    with pytest.raises(
        SetupError, match=r"tower_train_lmdb nor pictures .* download\.py -c tower"
    ):
        sources.Lsun(str(tmp_path), "tower").load()


def test_a_database_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lmdb", None)
    (tmp_path / "tower_train_lmdb").mkdir()
    with pytest.raises(SetupError, match="pip install lmdb"):
        sources.Lsun(str(tmp_path), "tower").load()
