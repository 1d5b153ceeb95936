"""Precision: float64 by default everywhere, and training under bfloat16 autocast."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import ConditionalTransformModule
from pyro.distributions.transforms import affine_coupling, householder
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_resflow import residual_flow
from pyro_resflow.arnoldi import LogarithmAndInverse
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, DenseNetBlock, ResidualFlow
from pyro_resflow.logdet import (
    AdaptiveKrylov,
    Exact,
    Frozen,
    Gaussian,
    Krylov,
    PowerSeries,
    Rademacher,
    RussianRoulette,
)
from pyro_resflow.nn import (
    ELU,
    Chain,
    CLipSwish,
    CPila,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzMLP,
    LipSwish,
    Pila,
    Softplus,
    Tanh,
)
from pyro_resflow.precision import HalfPrecisionError
from pyro_resflow.solvers import Anderson, FixedPoint, NewtonKrylov
from pyro_resflow.transforms import Inverse, UniformDequantization, initialize
from tests.transforms.conditional_registry import CONDITIONAL
from tests.transforms.registry import TRANSFORMS


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def is_double(*tensors: Tensor) -> bool:
    return all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())


def everything_is_double(loss: Tensor, inputs: Sequence[Tensor], *modules: object) -> None:
    """Whether the loss, its gradients, the parameters and the buffers are float64."""
    loss.sum().backward()
    held = [module for module in modules if isinstance(module, nn.Module)]
    parameters = [parameter for module in held for parameter in module.parameters()]
    buffers = [buffer for module in held for buffer in module.buffers()]
    assert is_double(loss, *parameters, *buffers)
    assert is_double(*(tensor.grad for tensor in (*inputs, *parameters)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_default_float64_in_every_transform(name: str, inverse: bool) -> None:
    case = TRANSFORMS[name]
    transform = case.build()
    x = case.draw(3, *case.event_shape)
    if inverse:
        transform, x = transform.inv, transform(x)
    x = x.detach().requires_grad_()
    y = transform(x)
    assert is_double(y)
    ladj = transform.log_abs_det_jacobian(x, y)
    noise = dist.Normal(torch.zeros(y.shape[1:]), 1.0).to_event(y.dim() - 1)
    total = noise.log_prob(y) + ladj.reshape(3, -1).sum(1)
    everything_is_double(total, [x], transform)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", sorted(CONDITIONAL))
def test_default_float64_in_every_conditional_transform(name: str, inverse: bool) -> None:
    conditional: ConditionalTransformModule = CONDITIONAL[name](3, 2)
    conditional = conditional.inv if inverse else conditional
    x, context = (torch.randn(5, size, requires_grad=True) for size in (3, 2))
    transform = conditional.condition(context)
    y = transform(x)
    loss = y.square().sum(1) + transform.log_abs_det_jacobian(x, y)
    everything_is_double(loss, [x, context], conditional)


HALVES = [torch.float16, torch.bfloat16]


def refused_or_in_single(transform: Transform, x: Tensor) -> None:
    """Check that half precision is refused by name, or gives what the same float32 numbers do."""
    try:
        y = transform(x)
    except HalfPrecisionError as error:
        message = rf"(x|y|images|noise): expected torch.float32, .* got {x.dtype}. Convert"
        assert re.match(message, str(error)) is not None  # noqa: PT017
    else:
        torch.testing.assert_close(y, transform(x.float()))


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_half_precision_is_refused_by_name_or_computed_in_single(name: str) -> None:
    case = TRANSFORMS[name]
    transform = case.build()
    x = case.draw(3, *case.event_shape)
    y = transform(x).detach()
    for dtype in HALVES if case.trainable else []:
        refused_or_in_single(transform, x.to(dtype))
        if name != "inverse_of_pyros":  # whose inverse is Pyro's own
            refused_or_in_single(transform.inv, y.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["residual_2", "monotone", "coupling_vector", "invertible_conv"])
def test_half_precision_in_either_direction_or_the_ladj_is_refused(
    name: str, dtype: torch.dtype
) -> None:
    case = TRANSFORMS[name]
    transform = case.build()
    x = case.draw(3, *case.event_shape).to(dtype)
    with pytest.raises(HalfPrecisionError, match=rf"^x: expected torch.float32, .* got {dtype}"):
        transform(x)
    with pytest.raises(HalfPrecisionError, match=rf"^y: expected torch.float32, .* got {dtype}"):
        transform.inv(x)
    if name != "invertible_conv":  # its log-determinant depends on the image's size alone
        with pytest.raises(HalfPrecisionError, match=r"^x: expected torch.float32"):
            transform.log_abs_det_jacobian(x, x)


@pytest.mark.parametrize("name", sorted(CONDITIONAL))
def test_half_precision_contexts_are_refused_by_name(name: str) -> None:
    conditional: ConditionalTransformModule = CONDITIONAL[name](3, 2)
    context = torch.randn(5, 2).bfloat16()
    for each in (conditional, conditional.inv):
        with pytest.raises(HalfPrecisionError, match=r"^context: expected torch.float32"):
            each.condition(context)(torch.randn(5, 3))


def test_half_precision_images_are_refused() -> None:
    """A logit of bfloat16 numbers would be scored with an error of tenths of a nat."""
    density = TRANSFORMS["flow_plus_plus"].build().distribution()
    images = torch.rand(3, *density.event_shape)
    with pytest.raises(HalfPrecisionError, match=r"images: expected torch.float32"):
        density.log_prob(images.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_type_that_a_foreign_part_does_not_take_is_named(dtype: torch.dtype) -> None:
    inverse = Inverse(affine_coupling(4))
    x = torch.randn(3, 4, dtype=dtype)
    for use in (inverse, inverse.call_and_ladj, inverse.inverse_and_ladj, inverse._call):
        with pytest.raises(ValueError, match=rf"^[xy]: expected torch.float32, .* got {dtype}"):
            use(x)


def test_autocast_is_no_remedy_where_the_parameters_are_in_double() -> None:
    block = TRANSFORMS["residual_2"].build().double()
    with pytest.raises(HalfPrecisionError, match=r"expected torch.float64") as error:
        block(torch.randn(5, 2).half())
    assert "autocast" not in str(error.value)


def test_another_error_of_a_foreign_part_stays_its_own() -> None:
    with pytest.raises(RuntimeError, match=r"size of tensor a \(4\)"):
        Inverse(householder(4))(torch.randn(3, 5))


def test_half_precision_mixes_under_autocast_where_operations_follow_it() -> None:
    block = TRANSFORMS["residual_2"].build()
    x = torch.randn(5, 2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        with pytest.raises(HalfPrecisionError, match=r"^y: expected torch.float32"):
            block.inv(x)  # a solver works in full precision
    torch.testing.assert_close(y.float(), block(x.float()), rtol=0.02, atol=0.02)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: LipschitzMLP(4, [8]), (4,)),
    "mlp_induced_norms": (lambda: LipschitzMLP(4, [8], norm=InducedNorm.chain(2)), (4,)),
    "conv_net": (lambda: LipschitzConvNet((2, 3, 3), (3, 3)), (2, 3, 3)),
    "dense_net": (lambda: LipschitzDenseNet((2, 3, 3), depth=2, growth=4), (2, 3, 3)),
    "plain_module": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh()),
        (4,),
    ),
}
ESTIMATORS: dict[str, Callable[[], object]] = {
    "exact": Exact,
    "krylov_recompute": Krylov,
    "krylov_keep": lambda: Krylov(memory="keep", num_probes=2),
    "adaptive": AdaptiveKrylov,
    "frozen": lambda: Krylov(probe=Frozen(Rademacher())),
    "roulette": lambda: RussianRoulette(probe=Gaussian()),
    "series": lambda: PowerSeries(3, memory="keep"),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_default_float64_in_every_estimator(estimator: str, network: str) -> None:
    make, event_shape = NETWORKS[network]
    net = make()
    x = torch.randn(3, *event_shape, requires_grad=True)
    g, logdet = ESTIMATORS[estimator]()(net, x, len(event_shape))
    assert is_double(g)
    everything_is_double(g.square().flatten(1).sum(1) + logdet, [x], net)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("solver", [Anderson, FixedPoint, NewtonKrylov])
def test_default_float64_in_every_solver(solver: type, network: str) -> None:
    make, event_shape = NETWORKS[network]
    net = make().eval()  # torch's spectral norm moves on at each call while it trains
    if network == "plain_module":
        net = nn.Sequential(net, Half())
    y = torch.randn(3, *event_shape, requires_grad=True)
    x = solver()(net, y, len(event_shape))
    assert (x + net(x) - y).abs().max() < 1e-9  # no float32 in between
    everything_is_double(x, [y], net)


class Half(nn.Module):
    """Half of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("activation", [LipSwish, CLipSwish, Pila, CPila, ELU, Softplus, Tanh])
def test_default_float64_in_every_activation(activation: type) -> None:
    phi = activation()
    x = torch.randn(3, 4, requires_grad=True)
    assert is_double(phi.slope(x), phi.curvature(x))
    value, tangents = Chain([phi]).dual(x, torch.ones(1, 3, 4))
    everything_is_double(value + tangents[0], [x], phi)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("network", [ConvBlock(4), DenseNetBlock(2, 4)])
def test_default_float64_in_image_flows(network: object) -> None:
    flow = ResidualFlow((1, 4, 4), (1, 1), network=network, end_blocks=1)
    d = Dequantized(flow.distribution(), UniformDequantization(8), 8)
    everything_is_double(d.log_prob(torch.randint(8, (16, 1, 4, 4))), [], flow)
    assert is_double(flow.distribution().sample((2,)))


@pytest.mark.usefixtures("double")
def test_default_float64_in_vector_flows() -> None:
    flow = residual_flow(3, 2, [8], fast="density")
    y = torch.randn(16, 3, requires_grad=True)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    d = dist.TransformedDistribution(base, [flow])
    everything_is_double(d.log_prob(y), [y], flow)


def digits_flow(memory: str) -> tuple[ResidualFlow, Tensor]:
    """A small image flow with its ActNorms initialised, and images with something to learn."""
    logdet = Krylov(probe=Frozen(), memory=memory)
    flow = ResidualFlow((1, 8, 8), (2, 1), network=ConvBlock(16), end_blocks=1, logdet=logdet)
    rows = torch.linspace(0.1, 0.9, 8)[:, None].expand(16, 1, 8, 8)
    images = (rows + 0.05 * torch.randn(16, 1, 8, 8)).clamp(0, 1)
    initialize(flow, images)
    return flow, images


def gradients(flow: ResidualFlow, images: Tensor, *, autocast: bool) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient by all parameters as one vector."""
    torch.manual_seed(1)
    flow.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = -flow.distribution().log_prob(images).mean()
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in flow.parameters()])


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_bfloat16_gradients_point_the_way_of_float32s(memory: str) -> None:
    flow, images = digits_flow(memory)
    loss, exact = gradients(flow, images, autocast=False)
    half_loss, half = gradients(flow, images, autocast=True)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)  # bfloat16 was at work
    assert torch.cosine_similarity(half, exact, dim=0) > 0.99
    assert (half_loss - loss).abs() < 0.02 * loss.abs()


@pytest.mark.parametrize("memory", ["recompute", "keep"])
def test_bfloat16_autocast_trains(memory: str) -> None:
    flow, images = digits_flow(memory)
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        loss, gradient = gradients(flow, images, autocast=True)
        assert gradient.isfinite().all()
        optimizer.step()
        losses.append(loss)
    assert torch.stack(losses).isfinite().all()
    assert losses[-1] < losses[0] - 5
    assert gradients(flow, images, autocast=False)[0] < losses[0] - 5


def test_small_solves_are_not_in_half_precision_under_autocast() -> None:
    flow, images = digits_flow("recompute")
    extend = LogarithmAndInverse.extend
    with mock.patch.object(
        LogarithmAndInverse, "extend", autospec=True, side_effect=extend
    ) as calls:
        gradients(flow, images, autocast=True)
    assert {call.args[1].dtype for call in calls.call_args_list} == {torch.float32}
