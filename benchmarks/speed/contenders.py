"""The libraries to compare.

A :class:`Contender` builds a :class:`Model` for a workload. Models of different contenders can
load the same networks, and are then the same density.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_resflow.logdet import Exact, Krylov, LogDetEstimator
from pyro_resflow.nn import Activation, Chain, LipschitzConv2d, LipschitzLayer
from pyro_resflow.transforms import Compose, Inverse, Residual

from .workloads import Workload

Step = Callable[[], None]


class Model(nn.Module):
    """A density of events: residual blocks from the data to standard normal noise."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The functions g of the blocks, in the order from data to noise."""
        raise NotImplementedError

    def load(self, networks: Sequence[Chain]) -> None:
        """Load the weights of networks of this package, and their measured norms."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density, ``(N, *event)`` to ``(N,)``."""
        raise NotImplementedError

    def maintain(self) -> None:
        """Run the library's update after each optimizer step, if it needs one."""


@dataclass(frozen=True)
class Contender:
    """A way to train a density.

    Args:
        name: name in the tables.
    """

    name: str

    @property
    def caveat(self) -> str:
        """The number that ``log_prob`` returns in training; empty for a log-density."""
        return ""

    def build(self, workload: Workload) -> Model:
        """Build a model with new weights."""
        raise NotImplementedError

    def training(self, model: Model, x: Tensor) -> Step:
        """Return a training step on a batch: density loss, backward pass, Adam, `maintain`."""
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

        def step() -> None:
            optimizer.zero_grad()
            # a view: normflows sets requires_grad of its input
            (-model.log_prob(x.detach()).mean()).backward()
            optimizer.step()
            model.maintain()

        return step


# ------------------------------------------------------------------------------- pyro-resflow


class OurModel(Model):
    """Residual transforms in a Pyro distribution."""

    def __init__(self, workload: Workload, logdet: LogDetEstimator | None) -> None:
        super().__init__()
        blocks = [Residual(net, logdet=logdet) for net in workload.networks()]
        self.flow = Inverse(Compose(blocks))
        self.register_buffer("origin", torch.zeros(workload.event_shape))

    @property
    def blocks(self) -> list[Residual]:
        """The residual transforms."""
        return list(self.flow.inv.parts)

    @property
    def networks(self) -> Sequence[nn.Module]:
        return [block.net for block in self.blocks]

    def load(self, networks: Sequence[Chain]) -> None:
        for own, given in zip(self.networks, networks, strict=True):
            own.load_state_dict(given.state_dict())

    def distribution(self) -> dist.TransformedDistribution:
        """The density as a Pyro distribution."""
        base = dist.Normal(self.origin, torch.ones_like(self.origin)).to_event(self.origin.dim())
        return dist.TransformedDistribution(base, [self.flow])

    def log_prob(self, x: Tensor) -> Tensor:
        return self.distribution().log_prob(x)


@dataclass(frozen=True)
class Ours(Contender):
    """This package.

    Args:
        logdet: estimator of the log-determinants; ``None`` for the default.
    """

    logdet: LogDetEstimator | None = None

    def build(self, workload: Workload) -> OurModel:
        return OurModel(workload, self.logdet)


# ---------------------------------------------------------------------------------- normflows


def normflows_network(workload: Workload) -> nn.Module:
    """The network of normflows with the workload's layers.

    Its only activation is LipSwish. Power iteration measures its norms, to the tolerance of the
    reference implementation, 1e-3, which takes a few steps at these sizes.
    """
    import normflows as nf

    norm = {
        "lipschitz_const": workload.coefficient,
        "max_lipschitz_iter": None,
        "lipschitz_tolerance": 1e-3,
        "init_zeros": False,
    }
    if not workload.is_image:
        return nf.nets.LipschitzMLP(workload.widths, **norm)
    net = nf.nets.LipschitzCNN(workload.widths, list(workload.kernel_sizes), **norm)
    with torch.no_grad():  # its convolutions take the image size from their first input
        net(torch.zeros(1, *workload.event_shape))
    return net


@torch.no_grad()
def copy_to_normflows(ours: Chain, theirs: nn.Module) -> None:
    """Copy weights and singular vectors of the norms, so that both are the same function."""
    for own, other in zip(ours, theirs.net, strict=True):
        if isinstance(own, Activation):
            other.beta.copy_(own.raw_beta)
            continue
        own.update()
        other.weight.copy_(own.weight)
        other.bias.copy_(own.bias)
        other.u.copy_(F.normalize(own.u, dim=0))
        other.v.copy_(F.normalize(own.v, dim=0))


class NormflowsModel(Model):
    """``nf.NormalizingFlow`` of ``nf.flows.Residual``: 2 exact terms and Poisson(2) more."""

    def __init__(self, workload: Workload, options: dict[str, Any]) -> None:
        super().__init__()
        import normflows as nf

        blocks = [
            nf.flows.Residual(
                normflows_network(workload), n_dist="poisson", lamb=2.0, n_exact_terms=2, **options
            )
            for _ in range(workload.blocks)
        ]
        base = nf.distributions.DiagGaussian(workload.event_shape, trainable=False)
        self.flow = nf.NormalizingFlow(base, blocks[::-1])
        self.maintenance = nf.utils.update_lipschitz

    @property
    def blocks(self) -> list[nn.Module]:
        """Its residual blocks, in the order from data to noise."""
        return list(self.flow.flows)[::-1]

    @property
    def networks(self) -> Sequence[nn.Module]:
        return [block.iresblock.nnet for block in self.blocks]

    def load(self, networks: Sequence[Chain]) -> None:
        for own, given in zip(self.networks, networks, strict=True):
            copy_to_normflows(given, own)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def maintain(self) -> None:
        self.maintenance(self.flow, None)  # iterates until its tolerance


@dataclass(frozen=True)
class Normflows(Contender):
    """normflows, which implements the algorithm of the reference authors.

    Args:
        options: further arguments of ``nf.flows.Residual``.
    """

    options: dict[str, Any] = field(default_factory=dict)

    @property
    def caveat(self) -> str:
        if not self.options.get("reduce_memory", True):
            return ""
        return "a different value with the gradient of a log-density"

    def build(self, workload: Workload) -> NormflowsModel:
        return NormflowsModel(workload, self.options)


# --------------------------------------------------------------------------------- torchflows


class TorchflowsModel(Model):
    """torchflows' roulette block with our networks, because torchflows lacks these layers."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        from torchflows.bijections.base import BijectiveComposition
        from torchflows.bijections.finite.residual.iterative import ResFlowBlock
        from torchflows.flows import Flow

        shape = workload.event_shape
        self.blocks = nn.ModuleList(ResFlowBlock(shape, g=net) for net in workload.networks())
        self.flow = Flow(BijectiveComposition(list(self.blocks)))

    @property
    def networks(self) -> Sequence[nn.Module]:
        return [block.g for block in self.blocks]

    def load(self, networks: Sequence[Chain]) -> None:
        for own, given in zip(self.networks, networks, strict=True):
            own.load_state_dict(given.state_dict())

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


@dataclass(frozen=True)
class Torchflows(Contender):
    """torchflows, at its default of 2 terms on average."""

    @property
    def caveat(self) -> str:
        return "an estimate of a series that is not the log-determinant"

    def build(self, workload: Workload) -> TorchflowsModel:
        return TorchflowsModel(workload)


# ------------------------------------------------------------------------------------ plain net


class Gain(nn.Module):
    """Multiply by a constant.

    Args:
        factor: the constant.
    """

    def __init__(self, factor: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.as_tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@torch.no_grad()
def plain_network(net: Chain) -> nn.Sequential:
    """Build the same function from torch's own layers, as fast as possible.

    The norms are measured once. The gains of each activation phi(h) = kappa psi(beta h) are
    multiplied into the weights around it, so that an activation is a single fused operation.
    """
    layers: list[nn.Module] = []
    activation: Activation | None = None
    for layer in net:
        if isinstance(layer, Activation):
            activation = layer
            if layers:
                for tensor in (layers[-1].weight, layers[-1].bias):
                    tensor.mul_(layer.input_gain())
            else:
                layers.append(Gain(layer.input_gain()))
            layers.append(nn.SiLU())
        else:
            kappa = activation.output_gain() if activation is not None else 1.0
            layers.append(_plain_layer(layer, layer.effective_weight() * kappa))
    return nn.Sequential(*layers)


def _plain_layer(layer: LipschitzLayer, weight: Tensor) -> nn.Module:
    outputs, inputs = weight.shape[:2]
    plain: nn.Module
    if isinstance(layer, LipschitzConv2d):
        size = weight.shape[-1]
        plain = nn.Conv2d(inputs, outputs, size, padding=size // 2)
    else:
        plain = nn.Linear(inputs, outputs)
    plain.weight.copy_(weight)
    plain.bias.copy_(layer.bias)
    return plain


class PlainModel(Model):
    """The blocks as a residual network: no norms, no log-determinant."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.load(workload.networks())

    @property
    def networks(self) -> Sequence[nn.Module]:
        return list(self.plain)

    def load(self, networks: Sequence[Chain]) -> None:
        self.plain = nn.ModuleList(plain_network(net) for net in networks)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of the noise up to a constant, without the log-determinant."""
        for net in self.plain:
            x = x + net(x)
        return -x.square().flatten(1).sum(1) / 2


@dataclass(frozen=True)
class Plain(Contender):
    """Forward and backward pass of a plain residual network, for comparison."""

    @property
    def caveat(self) -> str:
        return "that of the noise, without the log-determinant"

    def build(self, workload: Workload) -> PlainModel:
        return PlainModel(workload)

    def training(self, model: Model, x: Tensor) -> Step:
        def step() -> None:
            model.zero_grad()
            (-model.log_prob(x).mean()).backward()

        return step


KEEP = Ours("pyro-resflow, keep", Krylov(memory="keep"))
RECOMPUTE = Ours("pyro-resflow, recompute", Krylov(memory="recompute"))
EXACT = Ours("pyro-resflow, Exact", Exact())
DEFAULT = Ours("pyro-resflow, default")
REDUCED = Normflows("normflows, reduce_memory", {"reduce_memory": True})
UNREDUCED = Normflows("normflows, without reduce_memory", {"reduce_memory": False})
BRUTE_FORCE = Normflows("normflows, brute force", {"reduce_memory": False, "brute_force": True})
TORCHFLOWS = Torchflows("torchflows")
PLAIN = Plain("plain residual network")

CONTENDERS = {
    contender.name: contender
    for contender in (
        KEEP,
        RECOMPUTE,
        EXACT,
        DEFAULT,
        REDUCED,
        UNREDUCED,
        BRUTE_FORCE,
        TORCHFLOWS,
        PLAIN,
    )
}
