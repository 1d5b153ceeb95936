"""A penalty on some of the weights, as some published models have."""

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from examples.images.callbacks.parameter_names import parameters_named


class SquaredPenalty(Callback):
    """Adds the squares of some parameters to the loss, times a coefficient.

    The callback adds the gradient alone, before gradients are clipped; the logged loss does not
    include the penalty.

    Args:
        coefficient: The coefficient; the loss is in bits/dim.
        parameters: Last parts of the parameters' names, such as `magnitude`.
    """

    def __init__(self, coefficient: float, parameters: list[str]) -> None:
        self.coefficient = coefficient
        self.parameters = parameters

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the penalty, except in a skipped step."""
        for parameter in parameters_named(pl_module, self.parameters):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=2 * self.coefficient)
