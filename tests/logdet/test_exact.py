"""The exact log-determinant equals closed forms and derivatives."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.linearization import AutogradNetwork
from pyro_resflow.logdet import LOG_CAYLEY, LOG_ONE_PLUS, Exact, SpectralFunction, exact
from pyro_resflow.logdet.jacobians import full_jacobian
from pyro_resflow.nn import (
    ELU,
    Activation,
    ConditionalLipschitzMLP,
    LipschitzMLP,
    LipSwish,
    Pila,
    Softplus,
    Tanh,
)
from pyro_resflow.nn.stages.perceptron import PerceptronJacobian
from tests.derivatives import weighted_gradients
from tests.networks import NETWORKS


def test_linear_network_has_the_determinant_of_its_matrix() -> None:
    net = nn.Linear(4, 4).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = torch.linalg.slogdet(torch.eye(4) + net.weight)[1]
    torch.testing.assert_close(Exact()(net, x)[1], expected.expand(3))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_agrees_with_the_jacobian_of_torch_func(name: str) -> None:
    net, event_shape = NETWORKS[name](0.97)
    net.double()
    x = torch.randn(2, *event_shape, dtype=torch.float64)
    for i, logdet in enumerate(Exact()(net, x, len(event_shape))[1]):
        jacobian = torch.autograd.functional.jacobian(lambda s: net(s[None])[0], x[i])
        size = event_shape.numel()
        full = torch.eye(size) + jacobian.reshape(size, size)
        torch.testing.assert_close(logdet, torch.linalg.slogdet(full)[1])


def test_chunks_change_nothing() -> None:
    net, event_shape = NETWORKS["conv_net"](0.9)
    x = torch.randn(2, *event_shape)
    torch.testing.assert_close(Exact(chunk_size=3)(net, x, 3), Exact()(net, x, 3))


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_autograd_for_any_weights_of_the_samples(
    name: str, chunk_size: int | None
) -> None:
    net, event_shape = NETWORKS[name](0.9)
    net.double()
    x = torch.randn(3, *event_shape, dtype=torch.float64, requires_grad=True)
    inputs = [x, *net.parameters()]
    weights = [torch.randn_like(x), torch.randn(3, dtype=torch.float64)]
    found = Exact(chunk_size=chunk_size)(net, x, len(event_shape))
    plain = AutogradNetwork(net)
    expected = Exact().by_autograd(plain, x, plain.coefficients())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        weighted_gradients(found, weights, inputs), weighted_gradients(expected, weights, inputs)
    )


def test_double_backward() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    net.double()
    x = torch.randn(2, *event_shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: Exact()(net, x)[1], x)


def test_determinant_in_double_precision_for_a_single_precision_network() -> None:
    net, event_shape = NETWORKS["mlp"](0.97)
    x = torch.randn(200, *event_shape)
    double = Exact(dtype=torch.float64)(net, x)[1]
    single = Exact()(net, x)[1]
    net.double()
    expected = Exact()(net, x.double())[1]
    assert double.dtype == torch.float32
    torch.testing.assert_close(double, expected.float(), rtol=1e-5, atol=1e-5)
    assert (double - expected).abs().mean() <= (single - expected).abs().mean()


def test_no_graph_under_no_grad() -> None:
    net, event_shape = NETWORKS["mlp"](0.9)
    with torch.no_grad():
        g, logdet = Exact()(net, torch.randn(2, *event_shape))
    assert not g.requires_grad
    assert not logdet.requires_grad


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["mlp", "conv_net"])
def test_autocast_computes_the_determinant_and_gives_gradients_in_single_precision(
    name: str, create_graph: bool
) -> None:
    net, event_shape = NETWORKS[name](0.9)
    x = torch.randn(3, *event_shape, requires_grad=True)

    def value_and_gradient(autocast: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            g, logdet = Exact()(net, x, len(event_shape))
        loss = g.sum() + logdet.sum()
        return logdet, torch.autograd.grad(loss, x, create_graph=create_graph)[0]

    for found, expected in zip(value_and_gradient(True), value_and_gradient(False), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)


def test_only_a_backward_pass_inverts_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    net = LipschitzMLP(3, [8])
    x = torch.randn(5, 3)
    expected = Exact()(net, x)[1]
    monkeypatch.setattr(exact, "_derivative", None)
    _, logdet = Exact()(net, x)
    torch.testing.assert_close(logdet, expected)
    with pytest.raises(TypeError):
        logdet.sum().backward()


@pytest.mark.parametrize("function", [LOG_ONE_PLUS, LOG_CAYLEY])
@pytest.mark.parametrize("activation", [LipSwish, ELU, Tanh, Softplus, Pila])
@pytest.mark.parametrize("hidden", [[7], [7, 6], [5, 4, 6]])
def test_the_closed_form_is_that_of_products_with_unit_vectors(
    hidden: list[int], activation: Callable[[], Activation], function: SpectralFunction
) -> None:
    net = LipschitzMLP(3, hidden, activation=activation).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)

    def value_and_gradients(logdet: Exact) -> list[Tensor]:
        found = logdet(net, x, function=function)
        loss = sum((w * f).sum() for w, f in zip(weights, found, strict=True))
        return [*found, *torch.autograd.grad(loss, [x, *net.parameters()])]

    assert isinstance(net.linearize(x.detach()).full_jacobian(), PerceptronJacobian)
    for pair in zip(*map(value_and_gradients, (Exact(), Exact(chunk_size=1))), strict=True):
        torch.testing.assert_close(*pair)


def test_the_closed_form_of_a_network_with_a_context_is_that_of_products() -> None:
    conditional = ConditionalLipschitzMLP(3, 2, [7, 4]).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def value_and_gradients(logdet: Exact) -> list[Tensor]:
        net = conditional.bind(context)
        assert isinstance(net.linearize(x.detach()).full_jacobian(), PerceptronJacobian)
        found = logdet(net, x)
        loss = found[0].sin().sum() + found[1].sum()
        return [*found, *torch.autograd.grad(loss, [x, context, *conditional.parameters()])]

    torch.testing.assert_close(*map(value_and_gradients, (Exact(), Exact(chunk_size=1))))


def test_the_closed_form_is_for_perceptrons_alone() -> None:
    for name in ("mlp", "dense_net_vector", "conv_net"):
        net, event_shape = NETWORKS[name](0.9)
        found = full_jacobian(net.linearize(torch.randn(2, *event_shape)))
        assert isinstance(found, PerceptronJacobian) == (name == "mlp")


@pytest.mark.parametrize("kept", [0, 2**22])
def test_large_jacobians_are_computed_again(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "KEPT_ENTRIES", kept)
    net = LipschitzMLP(3, [8])
    x = torch.randn(5, 3)
    _, logdet = Exact().value_and_trace(net, x, LOG_ONE_PLUS)
    assert (logdet.grad_fn.jacobian is None) == (kept == 0)
    found = torch.autograd.grad(logdet.sum(), list(net.parameters())[:1])
    _, again = Exact(chunk_size=2)(net, x)
    expected = torch.autograd.grad(again.sum(), list(net.parameters())[:1])
    torch.testing.assert_close(found, expected)


def test_an_empty_batch_of_images_has_gradients() -> None:
    net, event_shape = NETWORKS["conv_net"](0.9)
    x = torch.randn(0, *event_shape, requires_grad=True)
    g, logdet = Exact()(net, x, 3)
    (g.sum() + logdet.sum()).backward()
    assert x.grad.shape == x.shape
    assert logdet.shape == (0,)
    assert not any(p.grad is not None and p.grad.any() for p in net.parameters())
