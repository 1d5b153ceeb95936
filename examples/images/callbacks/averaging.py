"""An exponential moving average of the weights, for validation and tests."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.autograd.graph import increment_version

from examples.images.callbacks.stability import was_skipped


class WeightAverage(EMAWeightAveraging):
    """Lightning's moving average, made safe for flows.

    - Buffers are copied, since averages of power-iteration vectors or of flags are meaningless.
    - Lightning exchanges weights without a trace in autograd. This callback increments their
      versions, since normalised weights are cached by the version of their weight.
    - Only a fit exchanges or restores weights. A test in the same process keeps the averaged
      weights of its checkpoint, and the sanity check precedes the first average.
    - A skipped step does not change the average.

    Args:
        decay: Weight of the old average at each step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay, use_buffers=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Update the average with the new weights."""
        if not was_skipped(pl_module):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, index)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the averaged weights."""
        if _is_averaging(trainer):
            super().on_validation_epoch_start(trainer, pl_module)
            _count_writes(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the current weights, to continue training."""
        if _is_averaging(trainer):
            super().on_validation_epoch_end(trainer, pl_module)
            _count_writes(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the averaged weights in the module."""
        super().on_train_end(trainer, pl_module)
        _count_writes(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the current and the averaged weights of a resumed run."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _is_averaging(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _count_writes(module: LightningModule) -> None:
    """Tell autograd that the parameters were written to, by ways that do not count it."""
    for parameter in module.parameters():
        increment_version(parameter)  # one by one: torch 2.4 takes no list
