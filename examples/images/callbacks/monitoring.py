"""Checks before training, and a validation after the last step."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from examples.images.setting_checks import (
    check_epoch_position,
    check_monitors,
    check_tested_images,
)


class Monitoring(Callback):
    """Checks the monitored metrics before training, and validates after the last step."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that monitored metrics are logged and that a test is possible."""
        if trainer.fast_dev_run:
            return
        check_monitors(trainer, pl_module)
        if trainer.tests_afterwards:
            check_tested_images(trainer, trainer.datamodule)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a resumed run has batches left in its epoch."""
        check_epoch_position(trainer, trainer.datamodule)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Request the end at the last of `max_steps`: Lightning then validates first."""
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
