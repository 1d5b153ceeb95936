"""Kinds of parameters of a residual flow, and optimizers that treat them differently."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Adam, AdamW, Optimizer

from examples.images.run_errors import SetupError
from pyro_resflow.nn import Activation, LipschitzLayer
from pyro_resflow.transforms import ActNorm

KINDS = {"weights": LipschitzLayer, "activations": Activation, "norms": ActNorm}
"""The modules whose parameters are of each kind; a layer's bias counts as a weight."""

OTHERS = "others"
"""The kind of all other parameters, such as those of a dequantizer."""

BETAS = (0.9, 0.99)
"""Adam's decay rates, as in the published runs of residual flows."""


def by_kind(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each kind; a kind may have none."""
    found: dict[str, list[nn.Parameter]] = {kind: [] for kind in (*KINDS, OTHERS)}
    for module in model.modules():
        kinds = (kind for kind, modules in KINDS.items() if isinstance(module, modules))
        found[next(kinds, OTHERS)] += module.parameters(recurse=False)
    return found


@dataclass(frozen=True)
class AdamByKind:
    """Builds Adam for a model, with a factor of the learning rate for each kind of parameter.

    Attributes:
        rate: The learning rate.
        betas: Adam's decay rates.
        decay: Decoupled weight decay of the layers' weights.
        factors: Factors of the rate, by kind; 1 where none is given.
    """

    rate: float
    betas: tuple[float, float] = BETAS
    decay: float = 0.0
    factors: dict[str, float] = field(default_factory=dict)

    def __call__(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of a model's parameters."""
        groups = [
            {
                "params": parameters,
                "lr": self.rate * self.factors.get(kind, 1.0),
                "weight_decay": self.decay if kind == "weights" else 0.0,
            }
            for kind, parameters in by_kind(model).items()
            if parameters
        ]
        return AdamW(groups, betas=self.betas)


@dataclass(frozen=True)
class MuonByKind:
    """Builds Muon for the layers' weights and Adam for all other parameters.

    Attributes:
        rate: The learning rate of Muon.
        adam_rate: The learning rate of Adam.
    """

    rate: float
    adam_rate: float

    def __call__(self, model: nn.Module) -> Optimizer:
        """Return the optimizer of a model's parameters."""
        layers = [module for module in model.modules() if isinstance(module, LipschitzLayer)]
        weights = [layer.weight for layer in layers]
        chosen = {id(weight) for weight in weights}
        rest = [each for each in model.parameters() if id(each) not in chosen]
        return MuonAndAdam(weights, rest, self.rate, self.adam_rate)


class MuonAndAdam(Optimizer):
    """Muon for weights, each taken as a matrix with a row for each output, and Adam for the rest.

    It does not save its state: it is for short runs, which are not resumed.

    Args:
        weights: The parameters that Muon trains, of two or more dimensions.
        rest: The parameters that Adam trains.
        rate: The learning rate of Muon.
        adam_rate: The learning rate of Adam.
    """

    def __init__(
        self, weights: list[nn.Parameter], rest: list[nn.Parameter], rate: float, adam_rate: float
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise SetupError(
                f"torch {torch.__version__}: it has no Muon; install torch 2.9 or later"
            )
        groups = [{"params": weights, "lr": rate}, {"params": rest, "lr": adam_rate}]
        super().__init__(groups, {})
        self.weights = weights
        # leaves that share the weights' memory and their count of changes
        self.matrices = [weight.detach().flatten(1) for weight in weights]
        muon = torch.optim.Muon(self.matrices, lr=rate, weight_decay=0.0)
        self.parts = (muon, Adam(rest, lr=adam_rate, betas=BETAS))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with the rates that a schedule has set."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = weight.grad.flatten(1) if weight.grad is not None else None
        for group, part in zip(self.param_groups, self.parts, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        return loss
