"""Kinds of parameters of a residual flow, and optimizers that treat them differently."""

from dataclasses import dataclass, field

from torch import nn
from torch.optim import AdamW, Optimizer

from examples.images.muon import BETAS, MuonAndAdam
from examples.images.optimization import ParametersOf
from pyro_resflow.nn import Activation, LipschitzLayer
from pyro_resflow.transforms import ActNorm

KINDS = {"weights": LipschitzLayer, "activations": Activation, "norms": ActNorm}
"""The modules whose parameters are of each kind; a layer's bias counts as a weight."""

OTHERS = "others"
"""The kind of all other parameters, such as those of a dequantizer."""


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
        return MuonAndAdam(ParametersOf(model), self.rate, self.adam_rate)
