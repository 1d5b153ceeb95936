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
        self.weights = matrices_of(parameters.model)
        if not self.weights:
            raise SetupError(
                f"MuonAndAdam: {type(parameters.model).__name__} has no Lipschitz layer, whose "
                "weights Muon trains; take another optimizer: --model.optimizer torch.optim.Adam"
            )
        chosen = set(map(id, self.weights))
        rest = [each for each in parameters if id(each) not in chosen]
        groups = [{"params": self.weights, "lr": lr}]
        self.matrices = [as_matrix(weight) for weight in self.weights]
        self.parts: list[Optimizer] = [torch.optim.Muon(self.matrices, lr=lr, weight_decay=0.0)]
        if rest:
            groups.append({"params": rest, "lr": adam_lr})
            self.parts.append(Adam(rest, lr=adam_lr, betas=(betas[0], betas[1])))
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the rates that a schedule has set."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.data = as_matrix(weight)  # something may have moved the weight's memory
            matrix.grad = None if weight.grad is None else weight.grad.detach().flatten(1)
        for group, part in zip(self.param_groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            self._share_state(group, part)
            part.step()
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None  # it would keep the memory of the weight's
            increment_version(weight)  # one by one: torch 2.4 takes no list
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # torch's leaves out what it does not know

    def _share_state(self, group: dict[str, Any], part: Optimizer) -> None:
        """Let a part keep its state here, where checkpoints save it and restore it."""
        pairs = zip(group["params"], part.param_groups[0]["params"], strict=True)
        for parameter, stepped in pairs:
            if stepped.grad is not None:
                part.state[stepped] = self.state[parameter]


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of all Lipschitz layers in a model, each once.

    A parametrized weight is computed from other parameters, and no parameter itself.
    """
    layers = (each for each in model.modules() if isinstance(each, LipschitzLayer))
    weights = (each.weight for each in layers if isinstance(each.weight, nn.Parameter))
    return list({id(weight): weight for weight in weights}.values())


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix with a row for each output, which shares a weight's memory.

    Raises:
        SetupError: If the weight's memory has another order.
    """
    if not weight.is_contiguous():
        raise SetupError(
            f"MuonAndAdam: expected contiguous weights, got one of shape {tuple(weight.shape)} "
            "in another memory format; call model.to(memory_format=torch.contiguous_format)"
        )
    return weight.detach().view(len(weight), -1)
