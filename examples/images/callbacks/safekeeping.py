"""Checkpoints to resume from, at regular intervals and when a signal stops the run."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from examples.images.callbacks.stability import was_skipped
from examples.images.callbacks.stop_request import StopRequest
from examples.images.run_errors import Interrupted
from examples.images.storage import checkpoint_folder


class Safekeeping(Checkpoint):
    """Keeps `checkpoints/last.ckpt` up to date, so that a run that ends early loses little.

    It writes the checkpoint before the first step, to find out early whether writing works; every
    `every_n_steps` optimizer steps and at the end of every epoch, unless the step was skipped; and
    after Ctrl-C or SIGTERM, at the end of the step, before it ends the run. A validation that is
    due after the step comes first.

    Args:
        every_n_steps: Optimizer steps between two checkpoints.

    Attributes:
        last_model_path: The last file written; empty before the first.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps: expected at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.last_model_path = ""
        self._stop = StopRequest()
        self._path = Path()
        self._saved_at = 0
        self._step_kept = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the first checkpoint, and listen for signals."""
        self._path = checkpoint_folder(trainer) / "last.ckpt"
        self._saved_at = trainer.global_step
        if trainer.ckpt_path is None:
            self._save(trainer)
        self._stop.listen()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Write a checkpoint if one is due."""
        self._step_kept = not was_skipped(pl_module)
        accumulating = (index + 1) % trainer.accumulate_grad_batches
        due = trainer.global_step // self.every_n_steps > self._saved_at // self.every_n_steps
        if not accumulating and not trainer.is_last_batch:
            self._save_if_due(trainer, due)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint."""
        self._save_if_due(trainer, due=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening for signals."""
        self._stop.stop_listening()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop listening for signals."""
        self._stop.stop_listening()

    def _save_if_due(self, trainer: Trainer, due: bool) -> None:
        number = self._stop.signal_number(trainer)
        if number is not None or (due and self._step_kept):
            self._save(trainer)
        if number is not None:
            raise Interrupted(f"stopped after step {trainer.global_step}", self._path, number)

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self._path)
            self.last_model_path = str(self._path)
            self._saved_at = trainer.global_step
