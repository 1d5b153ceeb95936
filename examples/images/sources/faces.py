"""Faces: CelebA at 64x64 and CelebA-HQ at 256x256, read from one file for each image."""

from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import resize

from examples.images.reading import reading
from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source
from examples.images.sources.image_files import SUFFIXES, ImageFiles, image_paths
from examples.images.sources.reduction import averaged


class CelebA(Source):
    """CelebA's aligned faces: the central 148x148 pixels, resized to 64x64 as for Real NVP.

    Args:
        root: Folder that holds `celeba/`, as torchvision lays it out, with the folder
            `img_align_celeba` and the file `list_eval_partition.txt`.
    """

    event_shape = (3, 64, 64)

    def __init__(self, root: str) -> None:
        self.folder = Path(root) / "celeba"

    def load(self) -> tuple[Portion, Portion]:
        """Return the 162,770 training and 19,962 test images of the official partition."""
        pictures = self.folder / "img_align_celeba"
        partition = self.folder / "list_eval_partition.txt"
        for path in (pictures, partition):
            if not path.exists():
                raise SetupError(
                    f"data.source CelebA: {path} is missing. It comes from "
                    "mmlab.ie.cuhk.edu.hk/projects/CelebA.html (img_align_celeba.zip, to be "
                    "unzipped, and list_eval_partition.txt), or from torchvision with the "
                    "package gdown: torchvision.datasets.CelebA(root, download=True). Name the "
                    "folder that holds celeba/ with --data.source.root"
                )
        with reading("data.source CelebA", partition):
            lines = [line.split() for line in partition.read_text().splitlines() if line.strip()]
            if not all(len(line) == 2 for line in lines):
                raise ValueError("each line should be the name of a picture and a number")
        training, test = (
            ImageFiles(
                [pictures / name for name, portion in lines if portion == wanted],
                self.event_shape,
                crop_face,
            )
            for wanted in ("0", "2")
        )
        return training, test


class CelebAHQ(Source):
    """CelebA-HQ at 256x256: 30,000 files in a folder; the last ones by name are test images.

    The files are pictures or .npy arrays of 256x256, or of a multiple such as 1024x1024, which is
    averaged.

    Args:
        root: The folder.
        test_images: Number of test images.
    """

    event_shape = (3, 256, 256)

    def __init__(self, root: str, test_images: int = 3000) -> None:
        self.root = Path(root)
        self.test_images = test_images

    def load(self) -> tuple[Portion, Portion]:
        """Return the training images, and the last files as test images."""
        paths = image_paths(self.root, {*SUFFIXES, ".npy"})
        if len(paths) <= self.test_images:
            raise SetupError(
                f"data.source CelebAHQ finds {len(paths)} images in root {str(self.root)!r}, but "
                f"needs more than the {self.test_images} test images. The 30,000 images are made "
                "from CelebA by the tool of github.com/tkarras/progressive_growing_of_gans; "
                "copies at 256x256, one file an image, are in wide use. Name their folder with "
                "--data.source.root"
            )
        training, test = (
            ImageFiles(part, self.event_shape, self.shrink)
            for part in (paths[: -self.test_images], paths[-self.test_images :])
        )
        return training, test

    def shrink(self, image: Tensor) -> Tensor:
        """Reduce an image to 256x256 by averaging."""
        factor = image.shape[-1] // self.event_shape[-1]
        return averaged(image, factor) if factor > 1 else image


def crop_face(image: Tensor) -> Tensor:
    """Crop rows 40 to 188 and columns 15 to 163, and resize to 64x64 with smoothing."""
    return resize(image[:, 40:188, 15:163], [64, 64], antialias=True)
