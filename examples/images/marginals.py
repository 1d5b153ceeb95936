"""Set the marginals of input maps from many training images."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from examples.images.data import ImageData
from examples.images.run_errors import SetupError
from pyro_resflow.transforms import MarginalGaussianization


class AsPixels(Sequence[Tensor]):
    """Batches of grey levels as values in the middle of their bins, computed when they are used.

    Args:
        batches: Integer images.
        bins: Number of grey levels.
    """

    def __init__(self, batches: Sequence[Tensor], bins: int) -> None:
        self.batches = batches
        self.bins = bins

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return one batch."""
        return (self.batches[index] + 0.5) / self.bins


def fit_marginals(model: nn.Module, data: ImageData) -> None:
    """Set each marginal that still waits for data.

    A histogram needs more images than the first batch, which sets the other normalisations.

    Args:
        model: The model whose input maps are set.
        data: The images, set up.

    Raises:
        SetupError: If a marginal's bins do not fit the grey levels of the images.
    """
    waiting = list(_marginals(model))
    for each in waiting:
        if data.bins % each.bins:  # with more bins than levels, all counts would be in few of them
            raise SetupError(
                f"model.flow.init_args.input_map.init_args.bins {each.bins}: expected the "
                f"images' {data.bins} grey levels, or a divisor of them, whose edges are at the "
                "same places"
            )
    if waiting:
        pixels = AsPixels(data.marginal_images(), data.bins)
        for each in waiting:
            each.fit(pixels)


def _marginals(model: nn.Module) -> Iterator[MarginalGaussianization]:
    for part in model.modules():
        if isinstance(part, MarginalGaussianization) and not part.initialized:
            yield part
