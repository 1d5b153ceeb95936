"""Steps whose loss or gradient is not finite."""

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from examples.images.diagnosis import divergence_error


class SkipNonFinite(Callback):
    """Skips steps with a non-finite loss or gradient, and ends the run after too many in a row.

    A skipped step has no gradients: the optimizer leaves such parameters and their state
    unchanged, and the moving average ignores the step (see `was_skipped`). The learning rate
    schedule still takes its step. Several processes decide together.

    Under float16 this callback checks the loss alone, since the gradient scaler itself skips a
    step whose gradient overflows, and reduces its scale.

    Args:
        patience: Number of steps in a row that may be skipped; one more ends the run.

    Attributes:
        skipped: Number of steps skipped in the whole run.
    """

    def __init__(self, patience: int = 4) -> None:
        if patience < 0:
            raise ValueError(f"patience: expected 0 or more, got {patience}")
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
        """Keep the batch, to find the origin of a non-finite value."""
        self._images = batch

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Check the loss, of every batch if several make one step."""
        self._finite = self._finite and bool(loss.isfinite())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Skip the step if it is not finite."""
        finite = self._finite and (
            _has_gradient_scaler(trainer) or _has_finite_gradient(pl_module)
        )
        self._finite = True
        if trainer.strategy.reduce_boolean_decision(finite):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.skipped += 1
        event = f"the loss or its gradient is not finite ({self._in_a_row} in a row)"
        if self._in_a_row > self.patience:
            assert self._images is not None
            raise divergence_error(trainer, pl_module, self._images, event)
        rank_zero_warn(f"step {trainer.global_step + 1}: {event}; skipped, {self.skipped} in all")
        optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Log the number of skipped steps."""
        self._images = None
        pl_module.log("steps/skipped", float(self.skipped))


def was_skipped(pl_module: LightningModule) -> bool:
    """Return whether the last step was skipped, which leaves it without gradients."""
    return all(parameter.grad is None for parameter in pl_module.parameters())


def _has_gradient_scaler(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _has_finite_gradient(pl_module: LightningModule) -> bool:
    norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
    return bool(torch.stack(norms).isfinite().all())
