"""Parameters that are learned later than the others, for models that were published so."""

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from examples.images.callbacks.parameter_names import parameters_named


class FrozenAtFirst(Callback):
    """Holds some parameters fixed for the first epochs.

    Args:
        parameters: Last parts of the names of the parameters, as `raw_weights`.
        epochs: How many epochs.
    """

    def __init__(self, parameters: list[str], epochs: int) -> None:
        self.parameters = parameters
        self.epochs = epochs

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop their gradients: an optimizer passes over a parameter that has none."""
        if trainer.current_epoch < self.epochs:
            for parameter in parameters_named(pl_module, self.parameters):
                parameter.grad = None
