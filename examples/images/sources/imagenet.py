"""ImageNet at 32x32 and 64x64, unpacked once into one file and read image by image."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from examples.images.reading import reading
from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source
from examples.images.sources.image_files import check_shape, decode_image, image_paths, read_image


class DownsampledImageNet(Source):
    """ImageNet at a small size, without labels.

    Its two versions were reduced in different ways, so that their likelihoods are not comparable:

    - The pictures of van den Oord et al. (2016), on which Real NVP, Glow, Flow++ and Residual
      Flows were measured: `train_32x32.tar` and `valid_32x32.tar`, packed or unpacked into folders
      of these names.
    - The arrays of Chrabaszcz et al. (2017), which replaced them on image-net.org:
      `train_data_batch_1.npz` ... `train_data_batch_10.npz` and `val_data.npz`.

    The version found is unpacked once, to `train_32x32.uint8` and `valid_32x32.uint8` beside it:
    one image after the other, one byte for each pixel and channel. These files take 3.9 GB at
    32x32 and 15.7 GB at 64x64, and are read image by image.

    Args:
        root: Folder of the files.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    @property
    def size(self) -> int:
        """Height and width of an image."""
        return self.event_shape[1]

    def load(self) -> tuple[Portion, Portion]:
        """Return the training images, and the validation images as test images."""
        return self._portion("train", "train_data_batch_*.npz"), self._portion(
            "valid", "val_data.npz"
        )

    def _portion(self, name: str, arrays: str) -> Portion:
        unpacked = self.root / f"{name}_{self.size}x{self.size}.uint8"
        if not unpacked.exists():
            images = self._packed(unpacked.with_suffix(""), sorted(self.root.glob(arrays)))
            unpack(images, unpacked, self.event_shape)
        return RawImages(unpacked, self.event_shape)

    def _packed(self, stem: Path, arrays: list[Path]) -> Iterable[Tensor]:
        archive = stem.with_name(f"{stem.name}.tar")
        if stem.is_dir():
            return (read_image(path) for path in image_paths(stem))
        if archive.exists():
            return _images_in_tar(archive)
        if arrays:
            return _images_in_arrays(arrays, self.event_shape)
        size = self.size
        raise SetupError(
            f"data.source {type(self).__name__} finds neither {stem.name}.tar, nor the folder "
            f"{stem.name}, nor the .npz files of Imagenet{size} in root {str(self.root)!r}. Where "
            f"they come from: image-net.org, after signing in, gives Imagenet{size}_train_npz.zip "
            f"and Imagenet{size}_val_npz.zip, to be unzipped there; the version that published "
            f"figures refer to, train_{size}x{size}.tar and valid_{size}x{size}.tar, used to be "
            "at image-net.org/small and is kept by academic archives. Name the folder with "
            "--data.source.root"
        )


class ImageNet32(DownsampledImageNet):
    """ImageNet at 32x32, see `DownsampledImageNet`."""

    event_shape = (3, 32, 32)


class ImageNet64(DownsampledImageNet):
    """ImageNet at 64x64, see `DownsampledImageNet`."""

    event_shape = (3, 64, 64)


class RawImages(Dataset[tuple[Tensor, ...]]):
    """Images one after the other in a file, one byte for each pixel and channel.

    Args:
        path: The file.
        event_shape: Shape of an image.
    """

    def __init__(self, path: Path, event_shape: tuple[int, int, int]) -> None:
        self.path = path
        self.event_shape = torch.Size(event_shape)
        self.length, rest = divmod(path.stat().st_size, self.event_shape.numel())
        if rest or not self.length:
            raise SetupError(
                f"data.source: {path}: expected images of {self.event_shape.numel()} bytes, got "
                f"{path.stat().st_size} bytes in all; delete the file to unpack it again"
            )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        pixels = self.event_shape.numel()
        with self.path.open("rb") as file:
            file.seek(index * pixels)
            content = bytearray(file.read(pixels))
        return (torch.frombuffer(content, dtype=torch.uint8).view(self.event_shape),)


def unpack(images: Iterable[Tensor], path: Path, event_shape: tuple[int, int, int]) -> None:
    """Write images one after the other to a file, which appears when it is complete.

    An incomplete file is removed, since it may have filled the disk.
    """
    unfinished = path.with_suffix(".unfinished")
    try:
        with unfinished.open("wb") as file:
            for image in tqdm(images, desc=f"unpacking {path.name}", mininterval=1.0):
                check_shape(f"an image for {path}", image, event_shape)
                file.write(image.numpy().tobytes())
        os.replace(unfinished, path)
    except OSError as error:
        raise SetupError(f"data.source: {path} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _images_in_tar(archive: Path) -> Iterator[Tensor]:
    with reading("data.source", archive), tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(".png") else None
            if content is not None:
                yield decode_image(content.read())


def _images_in_arrays(arrays: list[Path], event_shape: tuple[int, int, int]) -> Iterator[Tensor]:
    for path in arrays:
        with reading("data.source", path):
            images = torch.from_numpy(np.load(path, allow_pickle=False)["data"])
            images = images.unflatten(1, event_shape)
        yield from images
