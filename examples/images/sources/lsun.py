"""LSUN scenes at 64x64, read image by image from its database or from folders of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import CenterCrop, RandomCrop
from torchvision.transforms.v2.functional import resize

from examples.images.reading import reading
from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source
from examples.images.sources.image_files import ImageFiles, check_shape, decode_image, image_paths

Category = Literal[
    "bedroom",
    "bridge",
    "church_outdoor",
    "classroom",
    "conference_room",
    "dining_room",
    "kitchen",
    "living_room",
    "restaurant",
    "tower",
]


class Lsun(Source):
    """LSUN scenes of one category, as for Real NVP: the shorter side resized to 96, then 64x64.

    Training and validation images are cropped at a new random place each time, test images at the
    centre.

    Args:
        root: Folder that holds `bedroom_train_lmdb` and `bedroom_val_lmdb` (read by the package
            lmdb), or folders `bedroom_train` and `bedroom_val` of pictures.
        category: The category.
    """

    event_shape = (3, 64, 64)

    def __init__(self, root: str, category: Category = "bedroom") -> None:
        self.root = Path(root)
        self.category = category

    def load(self) -> tuple[Portion, Portion]:
        """Return the training images, and the validation images as test images."""
        return self._portion("train", RandomCrop(64)), self._portion("val", CenterCrop(64))

    def _portion(self, name: str, crop: Callable[[Tensor], Tensor]) -> Portion:
        folder = self.root / f"{self.category}_{name}"
        database = folder.with_name(f"{folder.name}_lmdb")
        prepare = ResizedCrop(crop)
        if database.is_dir():
            return LmdbImages(database, self.event_shape, prepare)
        paths = image_paths(folder)
        if not paths:
            raise SetupError(
                f"data.source Lsun finds neither {database} nor pictures in {folder}. Both "
                "databases of a category are downloaded and unzipped with the script of "
                f"github.com/fyu/lsun: download.py -c {self.category}. Name the folder that "
                "holds them with --data.source.root"
            )
        return ImageFiles(paths, self.event_shape, prepare)


class ResizedCrop:
    """Resizes the shorter side to 96 pixels and crops.

    Args:
        crop: Crops an image.
    """

    def __init__(self, crop: Callable[[Tensor], Tensor]) -> None:
        self.crop = crop

    def __call__(self, image: Tensor) -> Tensor:
        return self.crop(resize(image, [96], antialias=True))


class LmdbImages(Dataset[tuple[Tensor, ...]]):
    """Encoded pictures in an LMDB database, decoded when they are fetched.

    Args:
        path: The database's folder.
        event_shape: Shape of every image.
        prepare: Function to apply to each image before its shape is checked.
    """

    def __init__(
        self,
        path: Path,
        event_shape: tuple[int, int, int],
        prepare: Callable[[Tensor], Tensor],
    ) -> None:
        self.path = path
        self.event_shape = event_shape
        self.prepare = prepare
        with (
            reading("data.source", path),
            _open_database(path) as database,
            database.begin() as transaction,
        ):
            self.keys = list(transaction.cursor().iternext(keys=True, values=False))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        key = self.keys[index]
        # Loading processes can neither copy nor inherit an open database.
        with reading("data.source", f"{key!r} in {self.path}"):
            with _open_database(self.path) as database, database.begin() as transaction:
                content = transaction.get(key)
            image = self.prepare(decode_image(content))
        check_shape(f"{key!r} in {self.path}", image, self.event_shape)
        return (image,)


def _open_database(path: Path) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise SetupError(
            f"data.source Lsun: it needs the package lmdb to read {path}; pip install lmdb"
        ) from error
    return lmdb.open(str(path), readonly=True, lock=False)
