"""Classes of images by an i-ResNet: `python -m examples.images.classification --help`."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import CatMetric

from examples.images.cli import main
from examples.images.diagnosis import explain_nonfinite_weights
from examples.images.optimization import constant_rate
from examples.images.task import ImageTask
from pyro_resflow.nn import initialize_by

Labelled = tuple[Tensor, Tensor]


class Classification(ImageTask):
    """Classes of integer images, learned by cross-entropy.

    Args:
        network: Maps images to logits, as `pyro_resflow.classifiers.IResNetClassifier` does.
        bins: Number of grey levels of the images.
        mean: Mean of each channel of images in [0, 1], to subtract.
        std: Standard deviation of each channel, to divide by.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule, stepped after every optimizer step.
        weights: A training checkpoint whose weights to start from; the optimizer starts anew.
    """

    program: ClassVar[str] = "examples.images.classification"
    labelled: ClassVar[bool] = True
    metrics: ClassVar[frozenset[str]] = frozenset(
        {
            "loss/train",
            "accuracy/train",
            "accuracy/train_step",
            "accuracy/train_epoch",
            "accuracy/validation",
        }
    )
    links: ClassVar[dict[str, str]] = {
        "data.bins": "model.bins",
        "data.event_shape": "model.network.init_args.event_shape",
        "data.classes": "model.network.init_args.num_classes",
    }

    def __init__(
        self,
        network: nn.Module,
        bins: int,
        mean: Sequence[float],
        std: Sequence[float],
        optimizer: OptimizerCallable = torch.optim.SGD,
        lr_scheduler: LRSchedulerCallable = constant_rate,
        weights: Path | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.network = network
        self.bins = bins
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.test_hits = CatMetric(nan_strategy="error")

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of integer images."""
        return self.network((images / (self.bins - 1) - self.mean) / self.std)

    def probe(self, batch: Labelled) -> None:
        self.logits(batch[0])

    def on_fit_start(self) -> None:
        """Initialise the normalisations from training images."""
        if self.trainer.ckpt_path is None:
            with self.trainer.precision_plugin.tensor_init_context():
                images = self.trainer.datamodule.initial_images()
                initialize_by(self.logits, [images.to(self.device)])

    def training_step(self, batch: Labelled, index: int) -> Tensor:
        """Return the cross-entropy of a batch, in nats."""
        images, labels = batch
        with explain_nonfinite_weights(self.trainer, self, batch):
            logits = self.logits(images)
        loss = F.cross_entropy(logits, labels)
        self.log("loss/train", loss, prog_bar=True, sync_dist=True)
        self.log("accuracy/train", _correct(logits, labels).mean(), on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Labelled, index: int) -> None:
        """Classify validation images."""
        images, labels = batch
        accuracy = _correct(self.logits(images), labels).mean()
        self.log(
            "accuracy/validation", accuracy, prog_bar=True, batch_size=len(labels), sync_dist=True
        )

    def test_step(self, batch: Labelled, index: int) -> None:
        """Classify test images."""
        images, labels = batch
        self.test_hits.update(_correct(self.logits(images), labels))

    def on_test_epoch_end(self) -> None:
        """Print the accuracy on the test images."""
        hits = self.test_hits.compute()
        self.test_hits.reset()
        error = (hits.std() / math.sqrt(len(hits))).item()
        self.log("accuracy/test", hits.mean(), sync_dist=True)
        rank_zero_only(print)(
            f"accuracy: {100 * hits.mean():.2f} ± {100 * error:.2f} % (test images: {len(hits)})"
        )


def _correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).float()


if __name__ == "__main__":
    main(task=Classification)
