"""The Lightning data module of all image examples."""

import math
from itertools import islice
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from examples.images.initialization_bar import DELAY
from examples.images.run_errors import SetupError
from examples.images.sources import Portion, Source, hold_out
from examples.images.sources.source_checks import check_source, load_checked
from examples.images.training_order import TrainingOrder
from pyro_resflow.distributions import as_signed

Batch = Tensor | tuple[Tensor, Tensor]
"""Images of shape `(N, C, H, W)`, or a pair of images and labels of shape `(N,)`."""


INITIAL_VALUES = 256 * 3 * 32 * 32
"""Most pixel values that initialise normalisations in one pass: 256 images of CIFAR-10."""

INITIAL_IMAGES = range(16, 256)
"""Range of the number of initialising images: flows need 16, more than 256 do not help."""


MARGINAL_VALUES = 2**24
"""Most pixel values that set the marginals of input maps: each of 256 frequencies to 4 digits."""


class ImageData(LightningDataModule):
    """Training, validation and test images of one source.

    Validation images are taken from the training portion, so that early stopping and the choice of
    weights never use a test image.

    Args:
        source: The source of the images.
        batch_size: Images in a training batch.
        evaluation_batch_size: Images in a validation or test batch.
        validation_fraction: Fraction of the training portion that is kept for validation.
        split_seed: Seed of the split into training and validation images.
        augmentation: Changes batches of training images on the training device, as
            `examples.images.augmentation.RandomFlip` does.
        labels: Whether batches are pairs of images and labels, as classifiers need.
        workers: Number of processes that load batches; 0 loads them in the training process.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 64,
        evaluation_batch_size: int = 256,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: nn.Module | None = None,
        labels: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__()
        check_source(source)
        sizes = {"batch_size": batch_size, "evaluation_batch_size": evaluation_batch_size}
        for name, size in sizes.items():
            if size < 1:
                raise SetupError(f"data.{name}: expected at least 1, got {size}")
        if not 0 < validation_fraction < 1:
            raise SetupError(
                f"data.validation_fraction: expected a number between 0 and 1, got "
                f"{validation_fraction}; 0.1 keeps a tenth of the training images for validation"
            )
        if labels and not source.classes:
            raise SetupError(
                f"data.labels true: the images of {type(source).__name__} have no labels; leave "
                "data.labels out, or take a source with classes, such as Digits or Cifar10"
            )
        self.source = source
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.augmentation = augmentation if augmentation is not None else nn.Identity()
        self.labels = labels
        self.workers = workers
        self.order_seed = 0
        self.start = (0, 0)

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.source.event_shape

    @property
    def bins(self) -> int:
        """Number of grey levels."""
        return self.source.bins

    @property
    def classes(self) -> int:
        """Number of classes; 0 if images have no label."""
        return self.source.classes

    def prepare_data(self) -> None:
        """Download or unpack missing files, in one process only."""
        self.source.load()

    def setup(self, stage: str | None = None) -> None:
        """Load the images and hold out those for validation."""
        portion, self.test_images = load_checked(self.source)
        self.training_images, self.validation_images = hold_out(
            portion, self.validation_fraction, self.split_seed
        )
        if len(self.training_images) < 2:
            raise SetupError(
                f"data.validation_fraction {self.validation_fraction}: it leaves "
                f"{len(self.training_images)} of {len(portion)} images for training; at least two "
                "are needed, for normalisations that start from their standard deviation"
            )
        if self.trainer is not None:
            self.order_seed = self.trainer.strategy.broadcast(torch.initial_seed()) % 2**32

    def state_dict(self) -> dict[str, Any]:
        """Return the run's position in the order of the training images."""
        assert self.trainer is not None
        epoch, batch = self._position(self.trainer)
        return {
            "order_seed": self.order_seed,
            "epoch": epoch,
            "batch": batch,
            "batch_size": self._training_batch_size(),
            "processes": self.trainer.world_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a run's position in the order of the training images.

        Raises:
            SetupError: If the position is within an epoch whose batches had another size.
        """
        assert self.trainer is not None
        before = (state_dict.get("batch_size"), state_dict.get("processes"))
        now = (self._training_batch_size(), self.trainer.world_size)
        fits = self.trainer.state.fn == TrainerFn.FITTING
        if fits and state_dict["batch"] and None not in before and before != now:
            raise SetupError(
                f"data.batch_size {now[0]} on {now[1]} devices: the checkpoint is in the middle "
                f"of an epoch, {state_dict['batch']} batches of {before[0]} images on {before[1]} "
                f"devices. Resume with data.batch_size {before[0]} and trainer.devices "
                f"{before[1]}, or from a checkpoint at the end of an epoch, such as best.ckpt"
            )
        self.order_seed = state_dict["order_seed"]
        self.start = (state_dict["epoch"], state_dict["batch"])

    def _position(self, trainer: Trainer) -> tuple[int, int]:
        """Return the epoch and the number of its finished batches."""
        if trainer.state.fn != TrainerFn.FITTING:
            return self.start
        loop = trainer.fit_loop
        begun = loop.epoch_progress.current.started
        progress = loop.epoch_loop.batch_progress
        if progress.is_last_batch:
            return begun, 0
        return max(begun - 1, 0), progress.current.processed

    def _training_batch_size(self) -> int:
        return min(self.batch_size, len(self.training_images))

    def initial_images(self) -> Tensor:
        """Return the images that initialise normalisations, see `initial_batch`."""
        return images_of(self.initial_batch())

    def initial_batch(self) -> Batch:
        """Return the batch that initialises normalisations, the same in every process.

        The number of its images depends on the data alone. It is one batch: with several,
        each normalisation would need a pass of all batches.
        """
        affordable = INITIAL_VALUES // math.prod(self.event_shape)
        size = min(max(affordable, INITIAL_IMAGES.start), INITIAL_IMAGES.stop)
        order = TrainingOrder(self.training_images, self.order_seed)
        loader = self._loader(self.training_images, min(size, len(self.training_images)), order)
        batch: Batch = next(iter(loader))
        return batch

    def marginal_images(self) -> list[Tensor]:
        """Return batches of the images that set marginals, the same in every process."""
        affordable = max(2, MARGINAL_VALUES // math.prod(self.event_shape))
        order = TrainingOrder(self.training_images, self.order_seed)
        size = min(self.evaluation_batch_size, len(self.training_images))
        loader = self._loader(self.training_images, size, order)
        number = min(len(loader), max(1, affordable // size))
        bar = tqdm(
            islice(loader, number),
            "reading images",
            number,
            unit="batch",
            delay=DELAY,
            disable=rank_zero_only.rank != 0,
        )
        return [images_of(batch) for batch in bar]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment a training batch on its device."""
        if self.trainer is None or not self.trainer.training:
            return batch
        if isinstance(batch, Tensor):
            return self.augmentation(batch)
        images, labels = batch
        return self.augmentation(images), labels

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches of full size, without the last incomplete one."""
        size = self._training_batch_size()
        rank, processes = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        epoch, batch = self.start
        order = TrainingOrder(
            self.training_images, self.order_seed, rank, processes, epoch, batch * size
        )
        return self._loader(self.training_images, size, order)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return batches of the validation images, in order."""
        return self._loader(self.validation_images, self.evaluation_batch_size)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return batches of the test images, in order."""
        return self._loader(self.test_images, self.evaluation_batch_size)

    def _loader(
        self, images: Portion, batch_size: int, order: TrainingOrder | None = None
    ) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(
            images,
            batch_size,
            sampler=order,
            drop_last=order is not None,
            collate_fn=collate_pairs if self.labels else collate_images,
            # Iterators draw a seed for their processes, which must not change training's numbers.
            generator=torch.Generator(),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def collate_images(items: list[tuple[Tensor, ...]]) -> Tensor:
    """Stack the images, with a sign if they have 16 bits, and drop the labels."""
    return as_signed(torch.stack([image for image, *_ in items]))


def collate_pairs(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack the images and the labels."""
    images, labels = default_collate(items)
    return as_signed(images), labels


def labels_of(batch: Batch) -> Tensor | None:
    """Return the labels of a batch, if there are any."""
    return None if isinstance(batch, Tensor) else batch[1]


def images_of(batch: Batch) -> Tensor:
    """Return the images of a batch with or without labels."""
    return batch if isinstance(batch, Tensor) else batch[0]
