"""Sees to it that what a run watches for is there when it is looked for."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from examples.images.setting_checks import check_monitors, check_place, check_tested_images


class Monitoring(Callback):
    """Checks what a run watches for, and validates after its last step, wherever that falls."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether the metrics are logged that somebody waits for, and a test is possible."""
        if trainer.fast_dev_run:
            return
        check_monitors(trainer, pl_module)
        if trainer.tests_afterwards:
            check_tested_images(trainer, trainer.datamodule)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether a run that goes on has something to go on with in its epoch."""
        check_place(trainer, trainer.datamodule)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Ask for the end at the last of `max_steps`: Lightning validates where it is asked."""
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True
