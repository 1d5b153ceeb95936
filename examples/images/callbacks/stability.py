"""What to do about a loss that is not a number."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from examples.images.diagnosis import diverged


class SkipNonFinite(Callback):
    """Skips the steps whose loss or gradient is not finite, and ends the run if they do not stop.

    A skipped step is left without gradients: an optimizer passes over a parameter that has none
    and over its state, and the moving average passes over the step (see `was_skipped`). Only the
    schedule of the learning rate goes on. Several processes decide together.

    Under float16 a gradient that overflows is the gradient scaler's business, which skips the step
    and tries a smaller scale: there only the loss counts.

    Args:
        patience: Steps in a row that may be skipped; one more ends the run.

    Attributes:
        skipped: Steps skipped in the whole run.
    """

    def __init__(self, patience: int = 4) -> None:
        if patience < 0:
            raise ValueError(f"patience must not be negative, got {patience}")
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0
        self._finite = True
        self._images: Tensor | None = None

    def state_dict(self) -> dict[str, int]:
        """Return the counts, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the counts."""
        self.skipped, self._in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Tensor, index: int
    ) -> None:
        """Keep the batch, to look for the origin with."""
        self._images = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Look at the loss; of several batches that make one step, at each."""
        self._finite = self._finite and bool(loss.isfinite())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Skip the step if it is not finite."""
        finite = self._finite and (_is_scaled(trainer) or _has_finite_gradient(pl_module))
        self._finite = True
        if trainer.strategy.reduce_boolean_decision(finite):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.skipped += 1
        what = f"the loss or its gradient is not finite ({self._in_a_row} in a row)"
        if self._in_a_row > self.patience:
            assert self._images is not None
            raise diverged(trainer, pl_module, self._images, what)
        rank_zero_warn(f"step {trainer.global_step + 1}: {what}; skipped, {self.skipped} in all")
        optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Log how many steps have been skipped."""
        self._images = None
        pl_module.log("steps/skipped", float(self.skipped))


def was_skipped(pl_module: LightningModule) -> bool:
    """Whether the step that has just ended was skipped: it is left without gradients."""
    return all(parameter.grad is None for parameter in pl_module.parameters())


def _is_scaled(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _has_finite_gradient(pl_module: LightningModule) -> bool:
    norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
    return bool(torch.stack(norms).isfinite().all())
