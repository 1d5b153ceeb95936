"""Everything runs on the device of its inputs.

The device is meta, where tensors have no values: it shows every tensor made elsewhere, and every
decision that looks at one. Roulettes draw their number of terms on the host, as numbers; and what
the host computes once and caches has been computed before the watch begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformModule
from torch import Tensor
from torch.distributions import Transform
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_resflow import residual_flow
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, DenseNetBlock, FlowPlusPlus, ResidualFlow
from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Exact,
    Frozen,
    Gaussian,
    Krylov,
    PowerSeries,
    RussianRoulette,
)
from pyro_resflow.nn import (
    GatedAttentionConditioner,
    GatedEncoder,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
)
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import (
    CouplingStep,
    Residual,
    UniformDequantization,
    VariationalDequantization,
)
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.registry import TRANSFORMS, Case


class OnlyOnMeta(TorchDispatchMode):
    """Raises where a tensor with a dimension is made on another device than meta."""

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dim() and not leaf.is_meta:
                raise AssertionError(f"{function} gave {tuple(leaf.shape)} on {leaf.device}")
        return result


@pytest.fixture(autouse=True, scope="module")
def _quadrature_is_cached() -> None:
    Krylov()(on_meta(lambda: LipschitzMLP(2, [2])), torch.empty(1, 2, device="meta"))


def run(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
    """The loss and its gradient, under watch."""
    with OnlyOnMeta():
        value = loss()
        value.sum().backward()
    assert value.is_meta
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in parameters)


def parameters_of(*modules: torch.nn.Module) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def base(event_shape: Sequence[int]) -> dist.TorchDistribution:
    zeros = torch.zeros(tuple(event_shape), device="meta")
    return dist.Normal(zeros, 1.0, validate_args=False).to_event(len(event_shape))


def density(transform: Transform, event_shape: Sequence[int], y: Tensor) -> Tensor:
    """log_prob of y under standard noise of the event shape, taken through the transform."""
    noise = base(event_shape)
    d = dist.TransformedDistribution(noise, [transform], validate_args=False)
    return d.log_prob(y)


def on_meta(make: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return make()


# Pyro's coupling looks at tensors while it is built, so that it cannot be built on meta.
OURS = sorted(set(TRANSFORMS) - {"inverse_of_pyros", "compose_with_pyros"})


@pytest.mark.parametrize("name", OURS)
def test_log_prob_through_every_transform(name: str) -> None:
    case: Case = TRANSFORMS[name]
    transform = on_meta(case.build)
    shape = transform.forward_shape(torch.Size((7, *case.event_shape)))
    y = torch.empty(shape, device="meta", requires_grad=True)
    run(lambda: density(transform, case.event_shape, y), [y, *parameters_of(transform)])


@pytest.mark.parametrize("name", OURS)
def test_log_prob_through_every_inverse(name: str) -> None:
    case: Case = TRANSFORMS[name]
    transform = on_meta(case.build)
    x = torch.empty(7, *case.event_shape, device="meta", requires_grad=True)
    event_shape = transform.forward_shape(torch.Size(case.event_shape))
    run(lambda: density(transform.inv, event_shape, x), [x, *parameters_of(transform)])


@pytest.mark.parametrize("inverse", [False, True])
# one of Pyro's own in the composition reads numbers off tensors while it is built
@pytest.mark.parametrize("name", sorted(CONDITIONAL.keys() - {"conditional_compose"}))
def test_log_prob_through_every_conditional_transform(name: str, inverse: bool) -> None:
    conditional: ConditionalTransformModule = on_meta(lambda: CONDITIONAL[name](3, 2))
    conditional = conditional.inv if inverse else conditional
    y = torch.empty(7, 3, device="meta", requires_grad=True)
    context = torch.empty(7, 2, device="meta", requires_grad=True)
    run(
        lambda: density(conditional.condition(context), (3,), y),
        [y, context, *parameters_of(conditional)],
    )


class Plain(torch.nn.Module):
    """A user's network, with none of our methods."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 * torch.tanh(self.linear(x))


NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: LipschitzMLP(4, [8]), (4,)),
    "mlp_induced_norms": (lambda: LipschitzMLP(4, [8], norm=InducedNorm.chain(2)), (4,)),
    "conv_net": (lambda: LipschitzConvNet((2, 4, 4), (3, 3)), (2, 4, 4)),
    "dense_net": (lambda: LipschitzDenseNet((2, 4, 4), depth=2, growth=4), (2, 4, 4)),
    "plain_module": (Plain, (4,)),
}
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "exact": lambda: Exact(dtype=torch.float64, chunk_size=3),
    "krylov_recompute": lambda: Krylov(memory="recompute"),
    "krylov_keep": lambda: Krylov(memory="keep", num_probes=2),
    "adaptive_recompute": lambda: AdaptiveKrylov(memory="recompute"),
    "adaptive_keep": lambda: AdaptiveKrylov(memory="keep"),
    "roulette": lambda: RussianRoulette(probe=Gaussian()),
    "series": lambda: PowerSeries(3, memory="keep"),
}


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_estimators(estimator: str, network: str) -> None:
    make, event_shape = NETWORKS[network]
    net, logdet = on_meta(make), ESTIMATORS[estimator]()
    x = torch.empty(7, *event_shape, device="meta", requires_grad=True)

    def loss() -> Tensor:
        g, value = logdet(net, x, len(event_shape))
        assert value.shape == (7,)
        return g.square().flatten(1).sum(1) + value

    run(loss, [x, *parameters_of(net)])


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("solver", [Anderson, FixedPoint, NewtonKrylov])
def test_solvers(solver: type, network: str) -> None:
    make, event_shape = NETWORKS[network]
    net = on_meta(make)
    y = torch.empty(7, *event_shape, device="meta", requires_grad=True)
    run(lambda: solver()(net, y, len(event_shape)), [y, *parameters_of(net)])


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_vector_flow_with_its_default_estimator(memory: str) -> None:
    flow = on_meta(lambda: residual_flow(4, 2, [8], fast="density", logdet=Krylov(memory=memory)))
    y = torch.empty(7, 4, device="meta", requires_grad=True)
    run(lambda: density(flow, (4,), y), [y, *parameters_of(flow)])


@pytest.mark.parametrize(
    ("network", "factor_out"), [(ConvBlock(4), False), (DenseNetBlock(2, 4), True)]
)
def test_dequantized_image_flow(network: object, factor_out: bool) -> None:
    options = {"network": network, "factor_out": factor_out, "end_blocks": 1}
    flow = on_meta(lambda: ResidualFlow((2, 4, 4), (1, 1), **options))
    flow_dist = flow.distribution()
    flow_dist._validate_args = False  # looking at a value needs one
    d = Dequantized(flow_dist, UniformDequantization(8), 8, validate_args=False)
    images = torch.empty(7, 2, 4, 4, dtype=torch.uint8, device="meta")
    run(lambda: -d.log_prob(images), parameters_of(flow))
    with torch.no_grad(), OnlyOnMeta():
        assert d.sample((3,)).is_meta


def test_flow_plus_plus_with_variational_dequantization() -> None:
    step = CouplingStep(GatedAttentionConditioner(4, 1))
    flow = on_meta(lambda: FlowPlusPlus((1, 4, 4), ((0, 1), (1, 1)), step=step))
    dequantization = on_meta(
        lambda: VariationalDequantization((1, 4, 4), 8, 1, step=step, features=GatedEncoder(4, 1))
    )
    flow_dist = flow.distribution()
    flow_dist._validate_args = False  # looking at a value needs one
    d = Dequantized(flow_dist, dequantization, 8, num_samples=3, chunk_size=2, validate_args=False)
    images = torch.empty(7, 1, 4, 4, dtype=torch.uint8, device="meta")
    run(lambda: -d.log_prob(images), parameters_of(flow, dequantization))


@pytest.mark.xfail(strict=True, raises=RuntimeError, reason="torch has no generator for meta")
def test_frozen_probes() -> None:
    net = on_meta(lambda: LipschitzMLP(4, [8]))
    x = torch.empty(7, 4, device="meta")
    Krylov(probe=Frozen())(net, x)


def test_a_tensor_on_the_host_is_noticed() -> None:
    transform = on_meta(lambda: Residual(HostShift(), logdet=Krylov()))
    x = torch.empty(7, 4, device="meta", requires_grad=True)
    with pytest.raises(AssertionError, match="on cpu"):
        run(lambda: density(transform.inv, (4,), x), [x])


class HostShift(torch.nn.Module):
    """A network that makes a tensor on the host."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + torch.zeros(4).sum().item()
