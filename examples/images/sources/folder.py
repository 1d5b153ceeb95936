"""Your own pictures: files in a folder, or in one folder for each class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import DatasetFolder
from torchvision.transforms.v2.functional import center_crop, resize

from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source, hold_out
from examples.images.sources.pictures import CHANNELS, Channels, check_picture, read_picture
from pyro_resflow.distributions import as_signed

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
"""Endings of the files that count as pictures."""

SPLIT_SEED = 0
"""Seed of the choice of the test pictures, which is the same in every run."""


class Folder(Source):
    """Pictures in a folder, or in a folder of class folders, read when they are fetched.

    Values are those of the files: nothing is converted, scaled or clipped. Only resizing changes
    them, by means that are rounded to the nearest level.

    Args:
        root: The folder. If it holds folders, each is a class, in the order of their names, and
            its pictures may be in folders further inside.
        size: Height and width of an image, or both.
        channels: The kind of all pictures: grey or colour, with or without alpha.
        bins: Number of grey levels of all pictures: 256 (8 bits) or 65,536 (16 bits).
        crop: `centre` crops the largest part in the middle that has the shape of `size`, `none`
            refuses pictures of another shape. Both then resize to `size`, with smoothing.
        test_fraction: The part of the pictures that is held out for the test.
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] = 32,
        channels: Channels = "colour",
        bins: int = 256,
        crop: Literal["centre", "none"] = "centre",
        test_fraction: float = 0.1,
    ) -> None:
        if bins not in (2**8, 2**16):
            raise ValueError(f"bins: expected 256 or 65536 grey levels, got {bins}")
        if not 0 < test_fraction < 1:
            raise ValueError(
                f"test_fraction: expected a number between 0 and 1, got {test_fraction}"
            )
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        self.root = Path(root)
        self.channels = channels
        self.bins = bins
        self.crop = crop
        self.test_fraction = test_fraction
        self.event_shape = (CHANNELS[channels], height, width)

    def __str__(self) -> str:
        _, height, width = self.event_shape
        return f"{self.root.name} at {height}x{width}"

    @property
    def classes(self) -> int:  # type: ignore[override]
        """Number of class folders; 0 if the pictures are in one folder."""
        return sum(path.is_dir() for path in self.root.iterdir()) if self.root.is_dir() else 0

    def load(self) -> tuple[Portion, Portion]:
        """Return the training pictures, and those that are held out at random for the test."""
        items = self._items()
        if len(items) < 2:
            raise SetupError(
                f"data.source Folder: {self.root} holds {len(items)} pictures "
                f"({', '.join(PICTURES)}), at least one for training and one for the test are "
                "needed. Name another folder with --data.source.init_args.root"
            )
        training, test = hold_out(_Files(items, self.prepare), self.test_fraction, SPLIT_SEED)
        return training, test

    def _items(self) -> Sequence[tuple[str, int | None]]:
        """Return the files, with their classes if there are class folders."""
        if not self.root.is_dir():
            raise SetupError(
                f"data.source Folder: there is no folder {str(self.root)!r}; name the folder of "
                "your pictures with --data.source.init_args.root"
            )
        files = sorted(path for path in self.root.iterdir() if path.suffix.lower() in PICTURES)
        if not self.classes:
            return [(str(path), None) for path in files]
        if files:
            raise SetupError(
                f"data.source Folder: {self.root} holds both pictures, such as {files[0].name}, "
                "and folders; move all pictures into class folders, or the folders elsewhere"
            )
        try:
            return DatasetFolder(str(self.root), _unread, PICTURES).samples
        except FileNotFoundError as error:  # names the classes without pictures
            raise SetupError(f"data.source Folder: {error}") from error

    def prepare(self, path: Path) -> Tensor:
        """Read one picture, crop and resize it.

        Raises:
            SetupError: If the picture has other channels, bits or another shape.
        """
        picture = read_picture(path)
        check_picture(path, picture, self.channels, self.bins)
        _, height, width = self.event_shape
        high, wide = picture.shape[1:]
        if self.crop == "none" and high * width != wide * height:
            raise SetupError(
                f"data.source: {path} is of {high}x{wide} pixels, which has not the shape of "
                f"{height}x{width}; set data.source.init_args.crop to centre, or change size"
            )
        return resized(cropped(picture, height, width), height, width)


class _Files(Dataset[tuple[Tensor, ...]]):
    """Files as a portion, with a label if there is one.

    Args:
        items: The files and their classes.
        prepare: Reads a file.
    """

    def __init__(
        self, items: Sequence[tuple[str, int | None]], prepare: Callable[[Path], Tensor]
    ) -> None:
        self.items = items
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        path, label = self.items[index]
        image = self.prepare(Path(path))
        return (image,) if label is None else (image, torch.tensor(label))


def _unread(path: str) -> str:
    return path


def cropped(picture: Tensor, height: int, width: int) -> Tensor:
    """Return the largest part in the middle of a picture that has the shape of height x width."""
    high, wide = picture.shape[1:]
    if high * width > wide * height:
        high = max(1, round(wide * height / width))
    else:
        wide = max(1, round(high * width / height))
    return center_crop(picture, [high, wide])


def resized(picture: Tensor, height: int, width: int) -> Tensor:
    """Resize a picture with smoothing, and round to the nearest level; exact if it has the size.

    The weights of the means are positive, so that no level is exceeded. They are computed in 64
    bits, which hold 16 bits exactly.
    """
    if picture.shape[1:] == (height, width):
        return picture
    means = resize(as_signed(picture).double(), [height, width], antialias=True)
    return means.round().to(picture.dtype)
