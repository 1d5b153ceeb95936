"""Data sets that torchvision downloads, held in memory."""

import gzip
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision import datasets

from examples.images.reading import reading
from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source

IDX_BYTES = 8
"""The third byte of an idx file whose values are bytes."""


class Downloaded(Source):
    """A data set that torchvision downloads.

    Args:
        root: Folder for the download.
    """

    classes = 10

    def __init__(self, root: str = "data") -> None:
        self.root = root

    def portions(self, dataset: type[datasets.VisionDataset], **portion: tuple[Any, Any]) -> Any:
        """Load the training and the test portion, which differ in one argument."""
        (name, values), *_ = portion.items()
        return tuple(download(dataset, self.root, **{name: value}) for value in values)


class Mnist(Downloaded):
    """MNIST: 60,000 training and 10,000 test images."""

    event_shape = (1, 28, 28)
    dataset: type[datasets.MNIST] = datasets.MNIST

    def load(self) -> tuple[Portion, Portion]:
        """Return both portions; download missing files."""
        training, test = (
            TensorDataset(torch.as_tensor(part.data).unsqueeze(1), torch.as_tensor(part.targets))
            for part in self.portions(self.dataset, train=(True, False))
        )
        return training, test


class FashionMnist(Mnist):
    """Fashion-MNIST: from Debian's package `dataset-fashion-mnist`, else downloaded.

    Args:
        root: Folder for the download.
        system_folder: Folder of the Debian package's files.
    """

    dataset = datasets.FashionMNIST

    def __init__(
        self, root: str = "data", system_folder: str = "/usr/share/datasets/fashion-mnist"
    ) -> None:
        super().__init__(root)
        self.system_folder = Path(system_folder)

    def load(self) -> tuple[Portion, Portion]:
        """Return both portions; download them if the package is not installed."""
        if not self.system_folder.is_dir():
            return super().load()
        training, test = (
            TensorDataset(
                read_idx(self.system_folder / f"{part}-images-idx3-ubyte.gz").unsqueeze(1),
                read_idx(self.system_folder / f"{part}-labels-idx1-ubyte.gz").long(),
            )
            for part in ("train", "t10k")
        )
        return training, test


class Cifar10(Downloaded):
    """CIFAR-10: 50,000 training and 10,000 test images."""

    event_shape = (3, 32, 32)

    def load(self) -> tuple[Portion, Portion]:
        """Return both portions; download missing files."""
        training, test = (
            TensorDataset(
                torch.as_tensor(part.data).permute(0, 3, 1, 2).contiguous(),
                torch.as_tensor(part.targets),
            )
            for part in self.portions(datasets.CIFAR10, train=(True, False))
        )
        return training, test


class Svhn(Downloaded):
    """Street View House Numbers, cropped: 73,257 training and 26,032 test images. Needs scipy."""

    event_shape = (3, 32, 32)

    def load(self) -> tuple[Portion, Portion]:
        """Return both portions; download missing files."""
        training, test = (
            TensorDataset(torch.as_tensor(part.data), torch.as_tensor(part.labels))
            for part in self.portions(datasets.SVHN, split=("train", "test"))
        )
        return training, test


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of bytes, the format of MNIST."""
    with reading("data.source", path):
        content = gzip.decompress(path.read_bytes())
        zero, kind, dimensions = struct.unpack(">HBB", content[:4])
        if (zero, kind) != (0, IDX_BYTES):
            raise ValueError("it is not an idx file of bytes")
        start = 4 * (1 + dimensions)
        shape = struct.unpack(f">{dimensions}i", content[4:start])
        return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(shape)


def download(dataset: type[datasets.VisionDataset], root: str, **portion: Any) -> Any:
    """Load a portion of a torchvision data set; download missing files."""
    try:
        return dataset(root, download=True, **portion)
    except (OSError, RuntimeError) as error:
        raise SetupError(
            f"data.source {dataset.__name__} is not in {root!r} and could not be downloaded "
            f"({error}). Name a folder that holds it with --data.source.root, or use a source "
            "that needs no download: Digits, Mnist5k, PhotoPatches"
        ) from error
