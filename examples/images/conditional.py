"""Density of images of each class: `python -m examples.images.conditional --help`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from examples.images.cli import main
from examples.images.diagnosis import explain_nonfinite_weights
from examples.images.labelled import Labelled, LabelledEstimation
from examples.images.optimization import constant_rate
from examples.images.task import DensityEstimation, uniform_noise
from pyro_resflow.distributions import as_signed
from pyro_resflow.flows import ConditionalImageFlow, ImageFlow
from pyro_resflow.transforms import Dequantization


class ConditionalEstimation(LabelledEstimation):
    r"""Maximum likelihood of integer images given their labels, in bits/dim.

    The flow also classifies: the class of an image x is :math:`\arg\max_y p(x \mid y)`, where all
    classes are as likely as each other.

    Args:
        flow: Maps base noise and a label to images in [0, 1], as
            `pyro_resflow.flows.ConditionalResidualFlow` does.
        bins: See `DensityEstimation`.
        dequantizer: See `DensityEstimation`; its noise does not depend on the label.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule, stepped after every optimizer step.
        test_draws: Draws of dequantization noise (and probes) to average for each test image.
        weights: See `DensityEstimation`.
    """

    program: ClassVar[str] = "examples.images.conditional"
    drawn: ClassVar[str] = "Drawn from the flow, one row for each class."
    links: ClassVar[dict[str, str]] = {
        **DensityEstimation.links,
        "data.classes": "model.flow.init_args.num_classes",
    }

    def __init__(
        self,
        flow: ConditionalImageFlow,
        bins: int,
        dequantizer: Callable[[Sequence[int], int], Dequantization] = uniform_noise,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable = constant_rate,
        test_draws: int = 10,
        weights: Path | None = None,
    ) -> None:
        super().__init__(
            flow, bins, dequantizer, optimizer, lr_scheduler, test_draws, weights=weights
        )

    @property
    def classes(self) -> Tensor:
        """All labels."""
        return torch.arange(self.flow.num_classes, device=self.device)

    def flow_given(self, labels: Tensor | None) -> ImageFlow:
        """Return the flow at the labels."""
        return self.flow.condition(labels)

    def samples(self, number: int) -> tuple[Tensor, int]:
        """Draw as many integer images of each class, for a row of each."""
        columns = max(1, number // len(self.classes))
        drawn = self.distribution(labels=self.classes).sample((columns,))
        return drawn.transpose(0, 1).flatten(0, 1), columns

    def bits_per_dim(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return an unbiased estimate of each image's bound on -log2 P(image | label) / D."""
        return self.distribution(labels=labels).bits_per_dim(images)

    def bits_of_classes(self, images: Tensor) -> Tensor:
        """Return the bits/dim of each image under each class, from one draw of the noise.

        Args:
            images: Integer images of shape `(N, C, H, W)`.

        Returns:
            Shape `(N, classes)`.
        """
        images = as_signed(images)
        noise = self.dequantizer.noise(images)
        u = noise.rsample()
        v, ladj = self.dequantizer.condition(images).call_and_ladj(u)
        log_prob = self.flow_given(self.classes).distribution().log_prob(v[:, None])
        nats = (noise.log_prob(u) - ladj)[:, None] - log_prob
        return nats / (self.flow.latent_dim * math.log(2))

    def probe(self, batch: Labelled) -> None:
        self.bits_per_dim(*batch)

    def initial_batch(self) -> Labelled:
        """Return the images and labels that `encode` takes."""
        return self.trainer.datamodule.initial_batch()

    def encode(self, batch: Labelled) -> None:
        """Pass images through all layers that data initialise, without log-determinants."""
        images, labels = batch
        v = self.dequantizer.condition(images)(self.dequantizer.noise(images).sample())
        self.flow_given(labels).inv(v)

    def training_step(self, batch: Labelled, index: int) -> Tensor:
        """Return the mean bits/dim of a batch."""
        with explain_nonfinite_weights(self.trainer, self, batch):
            loss = self.bits_per_dim(*batch).mean()
        self.log("bits/train", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Labelled, index: int) -> None:
        """Score validation images, with the same noise each time to compare weights."""
        with isolate_rng():
            torch.manual_seed(index)
            bits = self.bits_per_dim(*batch).mean()
        self.log("bits/validation", bits, prog_bar=True, batch_size=len(batch[1]), sync_dist=True)

    def test_step(self, batch: Labelled, index: int) -> None:
        """Score and classify test images, averaging over several draws of the noise."""
        images, labels = batch
        draws = [self.bits_of_classes(images) for _ in range(self.test_draws)]
        bits = torch.stack(draws).mean(0)
        self.test_bits.update(bits.gather(1, labels[:, None])[:, 0])
        self.test_hits.update((bits.argmin(1) == labels).float())


if __name__ == "__main__":
    main(task=ConditionalEstimation)
