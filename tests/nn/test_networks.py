from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.linearization import AutogradNetwork, Linearizable
from pyro_resflow.nn import (
    ELU,
    Chain,
    CLipSwish,
    Concatenated,
    CPila,
    DenseConcatenation,
    InducedNorm,
    LipschitzConv2d,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    Pila,
    Shift,
    Softplus,
    SpectralNorm,
    Tanh,
    check_contraction,
)
from tests.derivatives import jacobian, weighted_gradients
from tests.networks import IMAGE, NETWORKS, activate_constraints

CHAINS = {name: make for name, make in NETWORKS.items() if name != "plain_module"}


def event_dims(net: nn.Module) -> int:
    return getattr(net, "event_dim", 1)


def mlp(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzMLP(3, [6, 4], **options), (3,)


def conv_net(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzConvNet(IMAGE, [3], kernel_sizes=[3, 1], **options), IMAGE


def dense_net(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzDenseNet(3, depth=2, growth=4, **options), (3,)


def dense_image_net(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzDenseNet(IMAGE, depth=1, growth=4, **options), IMAGE


VARIANTS: dict[str, Callable[[], tuple[nn.Module, Sequence[int]]]] = {
    **{
        f"mlp {phi.__name__}": lambda phi=phi: mlp(activation=phi)
        for phi in (LipSwish, ELU, Tanh, Softplus, Pila, CLipSwish, CPila)
    },
    "mlp preactivation": lambda: mlp(preactivation=True),
    "mlp concatenated preactivation": lambda: mlp(preactivation=True, activation=CPila),
    "mlp induced": lambda: mlp(norm=InducedNorm.chain(3, order=1.7)),
    "mlp without hidden layers": lambda: (LipschitzMLP(3, []), (3,)),
    **{
        f"conv_net {phi.__name__}": lambda phi=phi: conv_net(activation=phi)
        for phi in (LipSwish, ELU, Tanh, Softplus, Pila)
    },
    "conv_net CLipSwish": lambda: conv_net(activation=lambda: CLipSwish(-3)),
    "conv_net CPila": lambda: conv_net(activation=lambda: CPila(-3)),
    "conv_net without preactivation": lambda: conv_net(preactivation=False),
    "conv_net induced": lambda: conv_net(norm=InducedNorm.chain(2, order=1.7)),
    "dense_net CLipSwish": dense_net,
    "dense_net CPila": lambda: dense_net(activation=CPila),
    "dense_net Tanh": lambda: dense_net(activation=lambda dim: Tanh()),
    "dense_net with a stem": lambda: dense_net(stem=5),
    "dense_net image CLipSwish": dense_image_net,
    "dense_net image CPila": lambda: dense_image_net(activation=CPila),
    "dense_net image LipSwish": lambda: dense_image_net(activation=lambda dim: LipSwish()),
}


def settled(net: nn.Module) -> nn.Module:
    """In double precision, its constraints active and its power iteration done."""
    activate_constraints(net.double(), bias=0.3)
    for layer in net.modules():
        if isinstance(layer, LipschitzLayer):
            layer.update()
    return net


# --- forward, linearize and dual ----------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_linearization_agrees_with_autograd(variant: str) -> None:
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = torch.randn(2, *event_shape, dtype=torch.float64)
    v, w = torch.randn(2, 3, 2, *event_shape, dtype=torch.float64)
    expected = AutogradNetwork(net).linearize(x)
    found = net.linearize(x)
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(found.vjp(w), expected.vjp(w))
    torch.testing.assert_close(found.jvp(v), expected.jvp(v))
    torch.testing.assert_close(net.dual(x, v), (expected.value, expected.jvp(v)))
    torch.testing.assert_close(net(x), expected.value)
    with torch.no_grad():
        found = net.linearize(x)
        torch.testing.assert_close(found.value, expected.value)
        torch.testing.assert_close(found.vjp(w), expected.vjp(w))
        torch.testing.assert_close(found.jvp(v), expected.jvp(v))
        assert not found.value.requires_grad
        assert not found.jvp(v).requires_grad


@pytest.mark.parametrize("variant", VARIANTS)
def test_derivatives_of_value_and_tangents_are_those_of_autograd(variant: str) -> None:
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = torch.randn(2, *event_shape, dtype=torch.float64)
    v, w = torch.randn(2, 3, 2, *event_shape, dtype=torch.float64)
    bar = torch.randn_like(x)
    given = [t.clone() for t in (x, v, bar, w)]
    point = x.clone().requires_grad_()
    coefficients = [c.detach().requires_grad_() for c in net.coefficients()]
    linearization = net.linearize(point, coefficients)
    inputs = [point, *coefficients]
    outputs = (linearization.value, linearization.jvp(v))
    expected = weighted_gradients(outputs, (bar, w), inputs)
    with torch.no_grad():
        linearization = net.linearize(x, coefficients)
        value, product = linearization.value.clone(), linearization.vjp(w)
        needed = [True] * len(inputs)
        torch.testing.assert_close(linearization.dual_vjp(v, bar, w, needed), expected)
        # what is overwritten on the way belongs to nobody else
        torch.testing.assert_close([x, v, bar, w], given, rtol=0, atol=0)
        torch.testing.assert_close(linearization.value, value, rtol=0, atol=0)
        torch.testing.assert_close(net.linearize(x, coefficients).vjp(w), product)
        needed = [i % 2 == 0 for i in range(len(inputs))]
        found = net.linearize(x, coefficients).dual_vjp(v, bar, w, needed)
    for gradient, reference, wanted in zip(found, expected, needed, strict=True):
        if wanted:
            torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("route", ["forward", "linearize", "dual"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree_with_autograd(variant: str, route: str) -> None:
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = torch.randn(2, *event_shape, dtype=torch.float64).requires_grad_()
    v = torch.randn(3, 2, *event_shape, dtype=torch.float64).requires_grad_()
    inputs = [x, v, *net.parameters()]
    weights = [torch.randn_like(x), torch.randn_like(v)]
    outputs = value_and_tangents(net, x, v, route)
    expected = value_and_tangents(AutogradNetwork(net), x, v, "linearize")
    if route == "forward":
        weights[1].zero_()
    torch.testing.assert_close(
        weighted_gradients(outputs, weights, inputs), weighted_gradients(expected, weights, inputs)
    )


def value_and_tangents(
    net: Linearizable, x: Tensor, v: Tensor, route: str
) -> tuple[Tensor, Tensor]:
    if route == "forward":
        return net(x), v
    if route == "linearize":
        linearization = net.linearize(x)
        return linearization.value, linearization.jvp(v)
    return net.dual(x, v)


@pytest.mark.parametrize("name", NETWORKS)
def test_output_has_the_shape_of_the_input(name: str) -> None:
    net, event_shape = NETWORKS[name](0.9)
    assert net(torch.randn(5, *event_shape)).shape == (5, *event_shape)
    assert event_dims(net) == len(event_shape)


@pytest.mark.parametrize("name", CHAINS)
def test_every_parameter_takes_part(name: str) -> None:
    net, event_shape = NETWORKS[name](0.9)
    x = torch.randn(5, *event_shape)
    value, tangents = net.dual(x, torch.randn(1, *x.shape))
    gradients = torch.autograd.grad((value + tangents[0]).square().sum(), list(net.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


# --- Lipschitz constants ------------------------------------------------------------------------


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("name", NETWORKS)
def test_lipschitz_constant_is_never_exceeded(name: str, lipschitz: float) -> None:
    net, event_shape = NETWORKS[name](lipschitz)
    net.double()
    x, y = torch.randn(2, 100, *event_shape, dtype=torch.float64)
    with torch.no_grad():
        far = distance(net(x), net(y)) / distance(x, y)
        near = distance(net(x), net(x + 1e-4 * y)) / distance(x, x + 1e-4 * y)
    largest_slope = torch.linalg.matrix_norm(jacobian(net, x), 2).max()
    # parallel differences and Jacobians see the same constant, down to the float32 start
    assert max(far.max(), near.max(), largest_slope) <= lipschitz * (1 + 1e-6)
    assert largest_slope > 0.3 * lipschitz  # else the networks would be no test of the bound


def distance(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.vector_norm((x - y).flatten(1), dim=1)


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("name", CHAINS)
def test_certified_bound_is_the_constant_that_the_layers_allow(
    name: str, lipschitz: float
) -> None:
    net, event_shape = NETWORKS[name](lipschitz)
    x = torch.randn(50, *event_shape, dtype=torch.float64)
    bound = net.double().lipschitz_bound()
    assert bound >= torch.linalg.matrix_norm(jacobian(net, x), 2).max()
    # 32 singular values leave ten Gram steps a factor of at most 32^(1/2048) = 1.002 a layer
    assert lipschitz * (1 - 1e-6) <= bound.item() <= lipschitz * 1.002**3


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "induced" not in v])
def test_certified_bound_holds_with_every_activation(variant: str) -> None:
    net, event_shape = VARIANTS[variant]()
    settled(net)
    x = 2 * torch.randn(50, *event_shape, dtype=torch.float64)
    largest_slope = torch.linalg.matrix_norm(jacobian(net, x), 2).max()
    assert largest_slope <= net.lipschitz_bound() * (1 + 1e-12)  # of a linear net, it is equal
    assert net.lipschitz_bound() < 1


def test_induced_norms_bound_the_network_in_the_first_norm() -> None:
    net, order = LipschitzMLP(3, [6, 4], norm=InducedNorm.chain(3, order=3.0)), 3.0
    settled(net)
    x = torch.randn(50, 3, dtype=torch.float64)
    v = torch.randn(400, 50, 3, dtype=torch.float64)
    images = net.linearize(x).jvp(v)
    stretch = torch.linalg.vector_norm(images, order, dim=-1)
    stretch = stretch / torch.linalg.vector_norm(v, order, dim=-1)
    assert stretch.max() <= net.lipschitz_bound()


def test_bound_counts_nested_chains() -> None:
    inner = Chain([LipschitzLinear(3, 3, SpectralNorm(0.5)), Tanh()])
    net = Chain([inner, LipschitzLinear(3, 3, SpectralNorm(0.5))])
    activate_constraints(net, bias=0.0)
    assert net.lipschitz_bound().item() == pytest.approx(0.25, rel=1e-2)
    inner[0].weight.data.mul_(10)
    assert net.lipschitz_bound().item() == pytest.approx(2.5, rel=1e-2)


def test_dense_concatenation_is_a_contraction_for_any_learned_weights() -> None:
    layer = DenseConcatenation(Chain([LipschitzLinear(3, 4, SpectralNorm(0.9)), Tanh()])).double()
    activate_constraints(layer, bias=0.0)
    x = torch.randn(50, 3, dtype=torch.float64)
    for raw in (-20.0, 0.0, 20.0):
        with torch.no_grad():
            layer.raw_weights[0] = raw
        assert torch.linalg.vector_norm(layer.weights()).item() == pytest.approx(1)
        assert layer.lipschitz_bound() < 1
        largest_slope = torch.linalg.matrix_norm(jacobian(layer, x), 2).max()
        assert largest_slope <= layer.lipschitz_bound()


# --- check_contraction --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: LipschitzMLP(2),
        lambda: LipschitzMLP(20, [128, 128]),
        lambda: LipschitzMLP(8, [32], activation=CLipSwish),
        lambda: LipschitzConvNet((3, 8, 8), [16, 16]),
        lambda: LipschitzConvNet((1, 12, 12), [8], kernel_sizes=[5, 3]),
        lambda: LipschitzDenseNet(6),
        lambda: LipschitzDenseNet((3, 6, 6), depth=2, growth=8),
        lambda: LipschitzMLP(3, [16, 16], norm=InducedNorm.chain(3)),
    ],
)
@pytest.mark.parametrize("raise_weights", [False, True])
def test_fresh_networks_are_certified(make: Callable[[], Chain], raise_weights: bool) -> None:
    net = make()
    if raise_weights:
        activate_constraints(net, bias=0.0)
    check_contraction(net)
    check_contraction(nn.ModuleList([net, nn.Linear(2, 2)]))


def test_nothing_is_certified_of_a_module_without_our_networks() -> None:
    with pytest.raises(ValueError, match="module"):
        check_contraction(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))


def test_orthogonal_weights_are_certified() -> None:
    net = LipschitzMLP(64, [64, 64])  # all singular values at the coefficient: the worst case
    for layer in net:
        if isinstance(layer, LipschitzLinear):
            nn.init.orthogonal_(layer.weight, gain=3)
    check_contraction(net)


def break_layer(layer: LipschitzLayer) -> None:
    """Raise the weight where no version counter sees it."""
    layer.weight.data.mul_(3)


@pytest.mark.parametrize(
    ("make", "broken"),
    [
        (lambda: LipschitzMLP(3, [8, 8]), "2"),
        (lambda: LipschitzConvNet(IMAGE, [4, 4]), "3"),
        (lambda: LipschitzDenseNet(3, depth=2, growth=4), "1.branch.0"),
        (lambda: LipschitzDenseNet(IMAGE, depth=2, growth=4), "2"),
    ],
)
@pytest.mark.parametrize("path", ["", "flow.0"])
def test_check_names_the_layer_that_exceeds_its_coefficient(
    make: Callable[[], Chain], broken: str, path: str
) -> None:
    net = activate_constraints(make(), bias=0.0)
    module = nn.ModuleDict({"flow": nn.ModuleList([net])}) if path else net
    check_contraction(module)
    break_layer(net.get_submodule(broken))
    name = f"{path}.{broken}" if path else broken
    with pytest.raises(ValueError, match=rf"'{name}', with 2\.9"):
        check_contraction(module)


# --- shape and number of the layers -------------------------------------------------------------


def linear_layers(net: nn.Module) -> list[LipschitzLayer]:
    return [layer for layer in net.modules() if isinstance(layer, LipschitzLayer)]


@pytest.mark.parametrize(
    "net",
    [
        LipschitzMLP(3, [4, 5], norm=[SpectralNorm(c) for c in (0.5, 0.6, 0.7)]),
        LipschitzConvNet(IMAGE, [4, 5], norm=[SpectralNorm(c) for c in (0.5, 0.6, 0.7)]),
        LipschitzDenseNet(3, depth=2, norm=[SpectralNorm(c) for c in (0.5, 0.6, 0.7)]),
    ],
)
def test_each_layer_gets_its_norm(net: nn.Module) -> None:
    assert [layer.norm.coefficient for layer in linear_layers(net)] == [0.5, 0.6, 0.7]


def test_concatenated_activations_double_the_inputs_of_the_next_layer() -> None:
    net = LipschitzMLP(3, [4, 5], activation=CLipSwish)
    assert [tuple(layer.weight.shape) for layer in linear_layers(net)] == [(4, 3), (5, 8), (3, 10)]


def test_kernel_sizes_are_followed() -> None:
    net = LipschitzConvNet((2, 6, 7), [4], kernel_sizes=[5, 3])
    first, second = linear_layers(net)
    assert isinstance(first, LipschitzConv2d)
    assert (first.weight.shape, second.weight.shape) == ((4, 2, 5, 5), (2, 4, 3, 3))
    assert first.input_size == (6, 7)


def test_dense_net_grows_by_its_growth_and_returns_to_the_input() -> None:
    net = LipschitzDenseNet((2, 4, 4), depth=2, growth=6)
    shapes = [tuple(layer.weight.shape) for layer in linear_layers(net)]
    assert shapes == [(3, 2, 3, 3), (3, 8, 3, 3), (2, 14, 1, 1)]
    norms = [SpectralNorm(c) for c in (0.5, 0.6, 0.7)]
    net = LipschitzDenseNet(7, depth=1, growth=6, stem=4, norm=norms)
    layers = linear_layers(net)
    assert [tuple(layer.weight.shape) for layer in layers] == [(4, 7), (3, 4), (7, 10)]
    assert [layer.norm.coefficient for layer in layers] == [0.5, 0.6, 0.7]


def test_shift_leaves_the_jacobian_alone() -> None:
    shift = Chain([Shift(torch.randn(5, 3))])
    x, v = torch.randn(5, 3), torch.randn(2, 5, 3)
    linearization = shift.linearize(x)
    torch.testing.assert_close(linearization.value, x + shift[0].shift)
    torch.testing.assert_close(shift(x), x + shift[0].shift)
    products = (linearization.vjp(v), linearization.jvp(v))
    torch.testing.assert_close(products, (v, v), rtol=0, atol=0)


# --- scalings -----------------------------------------------------------------------------------


def kinds(net: Chain) -> list[str]:
    return [type(stage).__name__ for stage in net.stages()]


def test_gains_of_activations_are_multiplied_into_the_affine_maps() -> None:
    assert kinds(LipschitzMLP(3, [6, 4])) == ["Affine", "Core"] * 2 + ["Affine"]
    # the first activation's input gain has no map in front
    assert kinds(LipschitzMLP(3, [6], preactivation=True)) == [
        "Scale", "Core", "Affine", "Core", "Affine"
    ]  # fmt: skip
    # without a shift the gain comes before the features double
    assert kinds(LipschitzMLP(3, [6], activation=CLipSwish)) == [
        "Affine", "BothSigns", "Core", "Affine"
    ]  # fmt: skip
    assert kinds(LipschitzMLP(3, [6], activation=CPila)) == [
        "Affine", "BothSigns", "Core", "Affine"
    ]  # fmt: skip


def test_gains_pass_through_shifts() -> None:
    chain = LipschitzMLP(3, [6])
    shifted = Chain([chain[0], Shift(torch.randn(5, 6)), chain[1], chain[2]])
    assert kinds(shifted) == ["Affine", "Translate", "Core", "Affine"]
    x = torch.randn(5, 3)
    expected = chain[2](chain[1](chain[0](x) + shifted[1].shift))
    torch.testing.assert_close(shifted(x), expected)


def test_adjacent_scalings_are_one() -> None:
    net = Chain([LipSwish(), LipSwish()])
    assert kinds(net) == ["Scale", "Core", "Scale", "Core", "Scale"]
    x = torch.randn(5, 3)
    torch.testing.assert_close(net(x), net[1](net[0](x)))


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [-0.1, 0.0, 1.0, 2.0, math.nan])
def test_coefficient_that_is_no_contraction_is_refused(coefficient: float) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        LipschitzMLP(2, norm=SpectralNorm(coefficient))
    with pytest.raises(ValueError, match="coefficient"):
        LipschitzMLP(2, [4], norm=InducedNorm.chain(2, coefficient=coefficient))


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("kernel_size", lambda: LipschitzConvNet(IMAGE, [4], kernel_sizes=[3, 2])),
        ("kernel_size", lambda: LipschitzDenseNet(IMAGE, kernel_size=4)),
        ("kernel_sizes", lambda: LipschitzConvNet(IMAGE, [4], kernel_sizes=[3, 1, 3])),
        ("kernel_sizes", lambda: LipschitzConvNet(IMAGE, [4, 4, 4])),
        ("norm", lambda: LipschitzMLP(2, [4, 4], norm=[SpectralNorm()] * 2)),
        ("norm", lambda: LipschitzConvNet(IMAGE, norm=[SpectralNorm()] * 4)),
        ("norm", lambda: LipschitzDenseNet(2, depth=2, norm=[SpectralNorm()] * 2)),
        ("norm", lambda: LipschitzMLP(2, [4], norm=InducedNorm(2.0, 3.0))),
        ("norm", lambda: LipschitzMLP(2, [4], norm=[InducedNorm(), SpectralNorm()])),
        ("norm", lambda: LipschitzConvNet(IMAGE, [4, 4], norm=InducedNorm.chain(6)[:3])),
        # concatenations are bounded in the Euclidean norm alone
        ("norm", lambda: LipschitzDenseNet(2, depth=2, norm=InducedNorm.chain(3))),
        ("norm", lambda: LipschitzMLP(2, [4], activation=CPila, norm=InducedNorm.chain(2))),
        ("growth", lambda: LipschitzDenseNet(2, growth=5)),
        (
            "growth",
            lambda: LipschitzDenseNet(
                2, growth=3, activation=lambda dim: Concatenated(Tanh(), bound=1.5)
            ),
        ),
        ("event_shape", lambda: LipschitzConvNet((4, 4), [4])),
        ("event_shape", lambda: LipschitzConvNet((1, 0, 4), [4])),
        ("event_shape", lambda: LipschitzDenseNet((4, 4))),
    ],
)
def test_bad_argument_is_named(match: str, make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=match):
        make()
