"""A progress bar for all of training, and one for the test."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class RunProgress(ProgressBar):
    """Shows one bar for all steps of a run, since epochs of small data sets are short."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: tqdm[Any] | None = None

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Show no bar; Lightning calls this in all processes but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the training bar, at the step of a resumed run."""
        self._open("training", trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance, and show the bits/dim."""
        assert self._bar is not None
        # Reading a metric waits for the device: do it only when the bar is drawn.
        if self._bar.update(trainer.global_step - self._bar.n):
            self._bar.set_postfix_str(_bits_per_dim(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the training bar."""
        self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the test bar."""
        self._open("testing", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advance the test bar."""
        assert self._bar is not None
        self._bar.update()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the test bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error starts on a new line."""
        self._close()

    def _open(self, title: str, total: float, initial: int = 0) -> None:
        length = total if total != float("inf") else None
        self._bar = tqdm(
            desc=title,
            total=length,
            initial=initial,
            unit="step",
            disable=not self._enabled,
            mininterval=0.5,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _bits_per_dim(trainer: Trainer) -> str:
    metrics = trainer.progress_bar_metrics
    shown = {"train": "bits/train_step", "validation": "bits/validation"}
    known = [f"{name} {metrics[key]:.3f}" for name, key in shown.items() if key in metrics]
    return "bits/dim " + ", ".join(known) if known else ""
