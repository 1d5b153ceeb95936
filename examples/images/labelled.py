"""Training on images with labels: the result on test images counts those of the right class."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import CatMetric

from examples.images.task import DensityEstimation, HeldOut

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LabelledHeldOut(HeldOut):
    """The result on the test images, with the accuracy of the classifier.

    Attributes:
        accuracy: Share of correct classes, averaged over the draws of noise of each image.
        accuracy_error: Its standard error over the images.
    """

    accuracy: float
    accuracy_error: float

    @classmethod
    def of_hits(cls, bits: HeldOut, hits: Tensor) -> "LabelledHeldOut":
        """Add the accuracy to a result.

        Args:
            bits: The result on the same images.
            hits: For each image, the share of its draws that were classified correctly.
        """
        error = (hits.std() / math.sqrt(len(hits))).item()
        return cls(bits.mean, bits.standard_error, bits.images, hits.mean().item(), error)

    def __str__(self) -> str:
        part = f"{100 * self.accuracy:.2f} ± {100 * self.accuracy_error:.2f} %"
        return f"{super().__str__()}, accuracy: {part}"


class LabelledEstimation(DensityEstimation):
    """Density estimation on images with labels.

    A subclass tests a batch by updating `test_hits` with the share of right classes of each image.

    Args:
        settings: See `DensityEstimation`.
    """

    labelled: ClassVar[bool] = True

    def __init__(self, *settings: Any, **named: Any) -> None:
        super().__init__(*settings, **named)
        self.test_hits = CatMetric(nan_strategy="error")

    def on_test_epoch_end(self) -> None:
        """Summarise the test images."""
        super().on_test_epoch_end()
        hits = self.test_hits.compute()
        self.test_hits.reset()
        assert self.held_out is not None
        self.held_out = LabelledHeldOut.of_hits(self.held_out, hits)
        self.log("accuracy/test", self.held_out.accuracy, sync_dist=True)
