"""A penalty on some of the weights, for models that were published with one."""

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from examples.images.callbacks.parameter_names import parameters_named


class SquaredPenalty(Callback):
    """Adds a multiple of the squares of some parameters to what is minimised.

    Only its gradient is added, before gradients are clipped; the loss that is logged stays what
    it is.

    Args:
        coefficient: The multiple; what is minimised is in bits/dim.
        parameters: Last parts of the names of the parameters, as `magnitude`.
    """

    def __init__(self, coefficient: float, parameters: list[str]) -> None:
        self.coefficient = coefficient
        self.parameters = parameters

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the penalty, where the step has not been skipped."""
        for parameter in parameters_named(pl_module, self.parameters):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=2 * self.coefficient)
