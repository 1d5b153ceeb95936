"""Parameters that stay fixed in the first epochs, as some published models train them."""

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from examples.images.callbacks.parameter_names import parameters_named


class FrozenAtFirst(Callback):
    """Keeps some parameters fixed in the first epochs.

    Args:
        parameters: Last parts of the parameters' names, such as `raw_weights`.
        epochs: Number of epochs.
    """

    def __init__(self, parameters: list[str], epochs: int) -> None:
        self.parameters = parameters
        self.epochs = epochs

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Drop the gradients: an optimizer skips parameters without one."""
        if trainer.current_epoch < self.epochs:
            for parameter in parameters_named(pl_module, self.parameters):
                parameter.grad = None
