"""Density and classes of images together: `python -m examples.images.hybrid --help`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn import functional as F

from examples.images.cli import main
from examples.images.diagnosis import explain_nonfinite_weights
from examples.images.labelled import Labelled, LabelledEstimation
from examples.images.optimization import constant_rate
from examples.images.task import DensityEstimation, uniform_noise
from pyro_resflow.flows import ImageFlow
from pyro_resflow.hybrid import Hybrid
from pyro_resflow.transforms import Dequantization


class HybridEstimation(LabelledEstimation):
    r"""Density and classes of images from one pass of a flow.

    The loss, in bits, is the weighted bits/dim of the images, a bound on :math:`-\log_2 p(x)`
    divided by the D dimensions, plus :math:`-\log_2 p(y \mid x)` of the labels.

    Args:
        flow: See `DensityEstimation`.
        bins: See `DensityEstimation`.
        classes: Number of classes.
        weight: Weight of the bits/dim. 0 trains a classifier alone, 1 is the published weight
            1/D of the density, D is the weight 1.
        hidden_channels: Width of the classifier's heads.
        dequantizer: See `DensityEstimation`.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule, stepped after every optimizer step.
        test_draws: Draws of dequantization noise (and probes) to average for each test image.
        weights: See `DensityEstimation`; with the file `hybrid.safetensors`.
    """

    program: ClassVar[str] = "examples.images.hybrid"
    metrics: ClassVar[frozenset[str]] = DensityEstimation.metrics | {
        "loss/train",
        "loss/validation",
        "accuracy/train",
        "accuracy/train_step",
        "accuracy/train_epoch",
        "accuracy/validation",
    }
    links: ClassVar[dict[str, str]] = {
        **DensityEstimation.links,
        "data.classes": "model.classes",
    }

    def __init__(
        self,
        flow: ImageFlow,
        bins: int,
        classes: int,
        weight: float = 1.0,
        hidden_channels: int = 256,
        dequantizer: Callable[[Sequence[int], int], Dequantization] = uniform_noise,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable = constant_rate,
        test_draws: int = 10,
        weights: Path | None = None,
    ) -> None:
        super().__init__(
            flow, bins, dequantizer, optimizer, lr_scheduler, test_draws, weights=weights
        )
        self.hybrid = Hybrid(flow, classes, hidden_channels=hidden_channels)
        self.weight = weight

    def parts(self) -> dict[str, nn.Module]:
        """Return the trained modules to save, by name."""
        return {**super().parts(), "hybrid": self.hybrid}

    def bits_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bits/dim and the logits of each image, from one pass of the flow."""
        noise = self.dequantizer.noise(images)
        u = noise.rsample()
        v, ladj = self.dequantizer.condition(images).call_and_ladj(u)
        log_prob, logits = self.hybrid(v)
        nats = noise.log_prob(u) - ladj - log_prob
        return nats / (self.flow.latent_dim * math.log(2)), logits

    def loss(self, batch: Labelled) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss, the mean bits/dim and the accuracy."""
        images, labels = batch
        bits, logits = self.bits_and_logits(images)
        class_bits = F.cross_entropy(logits, labels) / math.log(2)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return self.weight * bits.mean() + class_bits, bits.mean(), accuracy

    def probe(self, batch: Labelled) -> None:
        self.bits_and_logits(batch[0])

    def encode(self, images: Tensor) -> None:
        """Pass images through all layers that data initialise, with the classifier's heads."""
        v = self.dequantizer.condition(images)(self.dequantizer.noise(images).sample())
        self.hybrid.logits(v)

    def training_step(self, batch: Labelled, index: int) -> Tensor:
        """Return the loss of a batch."""
        with explain_nonfinite_weights(self.trainer, self, batch):
            loss, bits, accuracy = self.loss(batch)
        self.log("loss/train", loss, sync_dist=True)
        self.log("bits/train", bits, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        self.log("accuracy/train", accuracy, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Labelled, index: int) -> None:
        """Score validation images, with the same noise each time to compare weights."""
        with isolate_rng():
            torch.manual_seed(index)
            scores = self.loss(batch)
        for name, score in zip(("loss", "bits", "accuracy"), scores, strict=True):
            self.log(
                f"{name}/validation",
                score,
                prog_bar=True,
                batch_size=len(batch[1]),
                sync_dist=True,
            )

    def test_step(self, batch: Labelled, index: int) -> None:
        """Score test images, averaging over several draws of the noise."""
        images, labels = batch
        draws = [self.bits_and_logits(images) for _ in range(self.test_draws)]
        self.test_bits.update(torch.stack([bits for bits, _ in draws]).mean(0))
        hits = torch.stack([logits.argmax(-1) == labels for _, logits in draws])
        self.test_hits.update(hits.float().mean(0))


if __name__ == "__main__":
    main(task=HybridEstimation)
