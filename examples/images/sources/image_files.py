"""Images in files, which are read when they are fetched."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from examples.images.reading import reading
from examples.images.run_errors import SetupError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


class ImageFiles(Dataset[tuple[Tensor, ...]]):
    """Images in files, without labels, read when they are fetched.

    Args:
        paths: The files.
        event_shape: Shape of every image.
        prepare: Function to apply to each image before its shape is checked.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        event_shape: tuple[int, int, int],
        prepare: Callable[[Tensor], Tensor],
    ) -> None:
        self.paths = paths
        self.event_shape = event_shape
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        path = self.paths[index]
        image = self.prepare(read_image(path))
        check_shape(str(path), image, self.event_shape)
        return (image,)


def read_image(path: Path) -> Tensor:
    """Read a picture, or an array of shape `(C, H, W)` or `(1, C, H, W)` from a .npy file."""
    with reading("data.source", path):
        if path.suffix == ".npy":
            # Mapped, since a damaged header may announce more data than the file has.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            return torch.from_numpy(np.array(array).reshape(array.shape[-3:]))
        return decode_image(path.read_bytes())


def decode_image(content: bytes) -> Tensor:
    """Decode a picture in any format of Pillow as colours, shape `(3, H, W)`."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def check_shape(name: str, image: Tensor, event_shape: tuple[int, int, int]) -> None:
    """Raise a `SetupError` unless an image is uint8 and has the given shape."""
    if image.dtype != torch.uint8 or image.shape != event_shape:
        raise SetupError(
            f"data.source: {name}: expected bytes of shape {event_shape}, got "
            f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"
        )


def image_paths(folder: Path, suffixes: set[str] = SUFFIXES) -> list[Path]:
    """Return all pictures in a folder and its subfolders, sorted by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
