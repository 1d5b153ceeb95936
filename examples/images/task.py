"""Tasks as Lightning modules: the base of all, and the density of integer images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pyro.distributions import TransformModule
from torch import Tensor, nn
from torchmetrics import CatMetric

from examples.images.diagnosis import explain_nonfinite_weights
from examples.images.initialization_bar import initialization_bar
from examples.images.marginals import fit_marginals
from examples.images.optimization import constant_rate, optimization
from examples.images.run_errors import SetupError
from examples.images.setting_checks import check_weights
from examples.images.starting import start_from
from pyro_resflow.distributions import BitsPerDim, Dequantized
from pyro_resflow.flows import ImageFlow
from pyro_resflow.nn import initialize_by
from pyro_resflow.transforms import Dequantization, UniformDequantization, is_deterministic


class HeldOut(BitsPerDim):
    """The result on the test images."""

    def __str__(self) -> str:
        figures = f"{self.mean:.3f} ± {self.standard_error:.3f}"
        return f"held-out bits/dim: {figures} (test images: {self.images})"


def uniform_noise(event_shape: Sequence[int], bins: int) -> Dequantization:
    """Dequantize by uniform noise."""
    return UniformDequantization(bins)


def check_draws(flow: TransformModule, test_draws: int, test_samples: int) -> None:
    """Raise a `SetupError` if the numbers of draws do not allow a test."""
    for setting, number in (("test_draws", test_draws), ("test_samples", test_samples)):
        if number < 1:
            raise SetupError(f"model.{setting}: expected at least 1, got {number}")
    if test_samples > 1 and not is_deterministic_in_tests(flow):
        raise SetupError(
            f"model.test_samples {test_samples}: the bound of several samples needs a "
            "log-determinant without noise. Set model.flow.init_args.logdet to "
            "pyro_resflow.logdet.Exact, which costs a Jacobian for each block, or leave "
            "model.test_samples at 1"
        )


def is_deterministic_in_tests(flow: TransformModule) -> bool:
    """Return whether log-densities have no noise in evaluation mode, which turns dropout off."""
    modes = {module: module.training for module in flow.modules()}
    flow.eval()
    result = is_deterministic(flow)
    for module, training in modes.items():
        module.training = training
    return result


class ImageTask(LightningModule):
    """The base of the tasks that the command line trains.

    Attributes:
        program: The module that runs the task.
        labelled: Whether the task learns from labels, too.
        metrics: Names of the values that the task logs in training and validation.
        links: Settings that the data decide: the names of the data's attributes, and of the
            settings.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule from the optimizer.
        weights: A file of weights to start from.
    """

    program: ClassVar[str]
    labelled: ClassVar[bool]
    metrics: ClassVar[frozenset[str]]
    links: ClassVar[dict[str, str]]
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable
    weights: Path | None = None

    def parts(self) -> dict[str, nn.Module]:
        """Return the trained modules to save, by name; by default none."""
        return {}

    def setup(self, stage: str) -> None:
        """Load the weights to start from, once, unless a checkpoint replaces all weights."""
        path, self.weights = self.weights, None
        if path is not None and self.trainer.ckpt_path is None:
            start_from(self, path)

    def probe(self, batch: Any) -> None:
        """Evaluate the model on a batch, to find where values stop being finite."""
        raise NotImplementedError

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the weights of another model."""
        check_weights(self, checkpoint["state_dict"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule."""
        return optimization(
            self,
            self.optimizer,
            self.lr_scheduler,
            self.trainer.check_val_every_n_epoch or 1,
        )


class DensityEstimation(ImageTask):
    """Maximum likelihood of integer images under a dequantized flow, in bits/dim.

    Args:
        flow: Maps base noise to images in [0, 1], as `pyro_resflow.flows.ResidualFlow` does.
        bins: Number of grey levels of the images.
        dequantizer: Builds the dequantization from the shape of an image and the number of grey
            levels, as `pyro_resflow.transforms.VariationalDequantization` does; it is trained
            with the flow.
        optimizer: Builds the optimizer from the parameters.
        lr_scheduler: Builds the schedule, stepped after every optimizer step.
        test_draws: Draws of dequantization noise (and probes) to average for each test image.
        test_samples: Draws in each importance-weighted bound of a test image. More than one
            tightens the bound, and needs a flow with a deterministic log-determinant.
        weights: A file of weights to start from, for fine-tuning: a training checkpoint or a
            `flow.safetensors` with its `dequantizer.safetensors`. The optimizer starts anew.
    """

    program: ClassVar[str] = "examples.images"
    labelled: ClassVar[bool] = False
    metrics: ClassVar[frozenset[str]] = frozenset(
        {"bits/train", "bits/train_step", "bits/train_epoch", "bits/validation"}
    )
    drawn: ClassVar[str] = "Drawn from the flow."
    links: ClassVar[dict[str, str]] = {
        "data.bins": "model.bins",
        "data.event_shape": "model.flow.init_args.event_shape",
    }

    def __init__(
        self,
        flow: TransformModule,
        bins: int,
        dequantizer: Callable[[Sequence[int], int], Dequantization] = uniform_noise,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable = constant_rate,
        test_draws: int = 10,
        test_samples: int = 1,
        weights: Path | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights
        check_draws(flow, test_draws, test_samples)
        self.flow = flow
        self.dequantizer = dequantizer(flow.event_shape, bins)
        self.bins = bins
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.test_draws = test_draws
        self.test_samples = test_samples
        # A NaN means that the run has failed: the mean must not leave it out.
        self.test_bits = CatMetric(nan_strategy="error")
        self.held_out: HeldOut | None = None

    def parts(self) -> dict[str, nn.Module]:
        """Return the trained modules to save, by name."""
        return {"flow": self.flow, "dequantizer": self.dequantizer}

    def flow_given(self, labels: Tensor | None) -> ImageFlow:
        """Return the flow; a conditional one at the labels, one for each image."""
        return cast(ImageFlow, self.flow)

    def samples(self, number: int) -> tuple[Tensor, int]:
        """Draw integer images, and return them with the number of columns to show them in."""
        return self.distribution().sample((number,)), max(1, round(number**0.5))

    def distribution(self, num_samples: int = 1, labels: Tensor | None = None) -> Dequantized:
        """Return the Pyro distribution of integer images.

        Args:
            num_samples: Number of draws in the bound of the likelihood.
            labels: See `flow_given`.
        """
        return Dequantized(
            self.flow_given(labels).distribution(),
            self.dequantizer,
            self.bins,
            num_samples=num_samples,
            chunk_size=16,
        )

    def bits_per_dim(self, images: Tensor) -> Tensor:
        """Return an unbiased estimate of each image's bound on -log2 P(image) / dimensions."""
        return self.distribution().bits_per_dim(images)

    def probe(self, batch: Tensor) -> None:
        self.bits_per_dim(batch)

    def initial_batch(self) -> Any:
        """Return the batch that `encode` takes."""
        return self.trainer.datamodule.initial_images()

    def encode(self, images: Tensor) -> None:
        """Pass images through all layers that data initialise, without log-determinants."""
        v = self.dequantizer.condition(images)(self.dequantizer.noise(images).sample())
        self.flow.inv(v)

    def on_fit_start(self) -> None:
        """Initialise the input map and the normalisations from training images.

        This precedes the first step, so that the optimizer and the averaged weights start from
        the initialised weights.
        """
        if self.trainer.ckpt_path is None:
            fit_marginals(self, self.trainer.datamodule)
            # Outside steps, the trainer does not set the default dtype of its precision.
            with initialization_bar(self), self.trainer.precision_plugin.tensor_init_context():
                batch = self.transfer_batch_to_device(self.initial_batch(), self.device, 0)
                initialize_by(self.encode, [batch])

    def training_step(self, images: Tensor, index: int) -> Tensor:
        """Return the mean bits/dim of a batch."""
        with explain_nonfinite_weights(self.trainer, self, images):
            loss = self.bits_per_dim(images).mean()
        self.log("bits/train", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, images: Tensor, index: int) -> None:
        """Score validation images, with the same noise each time to compare weights."""
        with isolate_rng():
            torch.manual_seed(index)
            bits = self.bits_per_dim(images).mean()
        self.log("bits/validation", bits, prog_bar=True, batch_size=len(images), sync_dist=True)

    def test_step(self, images: Tensor, index: int) -> None:
        """Score test images, averaging over several draws of the noise."""
        distribution = self.distribution(self.test_samples)
        draws = [distribution.bits_per_dim(images) for _ in range(self.test_draws)]
        self.test_bits.update(torch.stack(draws).mean(0))

    def on_test_epoch_end(self) -> None:
        """Summarise the test images."""
        self.held_out = HeldOut.of(self.test_bits.compute())
        self.test_bits.reset()
        self.log("bits/test", self.held_out.mean, sync_dist=True)
        self.log("bits/test_standard_error", self.held_out.standard_error, sync_dist=True)
