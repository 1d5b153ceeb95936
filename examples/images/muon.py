"""Muon for the weights of Lipschitz layers, beside Adam for all other parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.optim import Adam, Optimizer

from examples.images.optimization import ParametersOf
from examples.images.run_errors import SetupError
from pyro_resflow.nn import LipschitzLayer

BETAS = (0.9, 0.99)
"""Adam's decay rates, as in the published runs of residual flows."""


class MuonAndAdam(Optimizer):
    """Muon for the weights of Lipschitz layers, and Adam for all other parameters.

    Muon takes each weight as a matrix with a row for each output. It moves all singular values of
    a matrix by about the same amount, also those with small gradients; the layers then divide the
    weights by their norms.

    Args:
        parameters: The parameters of a model.
        lr: Muon's learning rate.
        adam_lr: Adam's learning rate.
        betas: Adam's decay rates.

    Raises:
        SetupError: For a torch before 2.9, which has no Muon, and for a model without Lipschitz
            layers.

    Reference:
        Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
    """

    def __init__(
        self,
        parameters: ParametersOf,
        lr: float = 0.1,
        adam_lr: float = 0.03,
        betas: Sequence[float] = BETAS,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise SetupError(
                f"torch {torch.__version__}: it has no Muon; install torch 2.9 or later, or take "
                "another optimizer: --model.optimizer torch.optim.Adam"
            )
        self.weights = lipschitz_weights(parameters.model)
        if not self.weights:
            raise SetupError(
                f"MuonAndAdam: {type(parameters.model).__name__} has no Lipschitz layer, whose "
                "weights Muon trains; take another optimizer: --model.optimizer torch.optim.Adam"
            )
        chosen = set(map(id, self.weights))
        rest = [each for each in parameters if id(each) not in chosen]
        super().__init__([{"params": self.weights, "lr": lr}, {"params": rest, "lr": adam_lr}], {})
        self.matrices = [as_matrix(weight) for weight in self.weights]
        muon = torch.optim.Muon(self.matrices, lr=lr, weight_decay=0.0)
        self.parts = (muon, Adam(rest, lr=adam_lr, betas=(betas[0], betas[1])))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the rates that a schedule has set."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.data = as_matrix(weight)  # something may have moved the weight's memory
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad)
        for group, part in zip(self.param_groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            self._share_state(group, part)
            part.step()
        for weight in self.weights:
            increment_version(weight)  # one by one: torch 2.4 takes no list
        return loss

    def _share_state(self, group: dict[str, Any], part: Optimizer) -> None:
        """Let a part keep its state here, where checkpoints save it and restore it."""
        pairs = zip(group["params"], part.param_groups[0]["params"], strict=True)
        for parameter, stepped in pairs:
            if stepped.grad is not None:
                part.state[stepped] = self.state[parameter]


def lipschitz_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all Lipschitz layers in a model."""
    return [each.weight for each in model.modules() if isinstance(each, LipschitzLayer)]


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix with a row for each output, which shares a weight's memory."""
    return weight.detach().view(len(weight), -1)
