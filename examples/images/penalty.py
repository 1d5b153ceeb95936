"""A penalty on some of the weights, for models that were published with one."""

from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class SquaredPenalty(Callback):
    """Adds a multiple of the squared parameters of certain names to what is minimised.

    Only its gradient is added, before gradients are clipped; the loss that is logged stays what
    it is.

    Args:
        coefficient: The multiple; what is minimised is in bits/dim.
        parameters: Last parts of the names of the parameters, as `magnitude`.
    """

    def __init__(self, coefficient: float, parameters: list[str]) -> None:
        self.coefficient = coefficient
        self.parameters = parameters

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise a `ValueError` for a name that no parameter has."""
        known = {name.rsplit(".")[-1] for name, _ in pl_module.named_parameters()}
        missing = set(self.parameters) - known
        if missing:
            raise ValueError(f"parameters: the model has none named {', '.join(sorted(missing))}")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the gradient of the penalty."""
        for name, parameter in pl_module.named_parameters():
            if name.rsplit(".")[-1] in self.parameters and parameter.grad is not None:
                parameter.grad.add_(parameter.detach(), alpha=2 * self.coefficient)
