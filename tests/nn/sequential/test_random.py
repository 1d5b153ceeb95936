"""Random plain networks compute the same in stages and in the general way."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pyro_resflow.linearization import AutogradNetwork
from pyro_resflow.logdet import Exact, Krylov, LogDetEstimator, RussianRoulette
from pyro_resflow.nn import why_autograd
from pyro_resflow.transforms import Residual

SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

ESTIMATORS = st.sampled_from(
    [Exact(), Exact(chunk_size=3), Krylov(), Krylov(memory="keep"), RussianRoulette()]
)


@st.composite
def activations(draw: st.DrawFn) -> nn.Module:
    """One activation with random settings."""
    numbers = st.sampled_from([0.3, 1.0, 2.0])
    kinds = {
        "SiLU": lambda: nn.SiLU(),
        "ELU": lambda: nn.ELU(draw(numbers)),
        "Tanh": nn.Tanh,
        "Sigmoid": nn.Sigmoid,
        "Softplus": lambda: nn.Softplus(draw(numbers), draw(numbers)),
        "GELU": lambda: nn.GELU(draw(st.sampled_from(["none", "tanh"]))),
        "LeakyReLU": lambda: nn.LeakyReLU(draw(numbers)),
        "Identity": nn.Identity,
        "nested": lambda: nn.Sequential(nn.SiLU(), nn.Sequential(nn.Tanh(), nn.SiLU())),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]()


@st.composite
def parametrized(draw: st.DrawFn, layer: nn.Module) -> nn.Module:
    """A layer, with or without a parametrization of its weight."""
    kind = draw(st.sampled_from(["none", "none", "weight_norm", "spectral_norm"]))
    return layer if kind == "none" else getattr(parametrizations, kind)(layer).eval()


@st.composite
def perceptrons(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network of vectors."""
    layers, width = [], 3
    for outputs in draw(st.lists(st.integers(2, 5), max_size=3)):
        layers += draw(st.lists(activations(), max_size=2))
        linear = nn.Linear(width, outputs, bias=draw(st.booleans()))
        layers.append(draw(parametrized(linear)))
        width = outputs
    last = nn.Linear(width, 3)
    return nn.Sequential(*layers, last, *draw(st.lists(activations(), max_size=2))), (3,)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A network of images that keeps their size, or halves and doubles it."""
    layers, channels = [], 2
    sides = st.sampled_from([1, 2, 3])
    for outputs in draw(st.lists(st.sampled_from([2, 4, 20]), max_size=2)):
        layers += draw(st.lists(activations(), max_size=2))
        convolution = nn.Conv2d(
            channels,
            outputs,
            (draw(sides), draw(sides)),
            padding="same",
            dilation=draw(st.sampled_from([1, 2])),
            groups=draw(st.sampled_from([1, 2])),
            bias=draw(st.booleans()),
            padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        )
        layers.append(draw(parametrized(convolution)))
        channels = outputs
    stride = draw(st.sampled_from([1, 2]))
    layers.append(nn.Conv2d(channels, 3, 3, stride=stride, padding=1))
    layers += draw(st.lists(activations(), max_size=1))
    layers.append(nn.ConvTranspose2d(3, 2, 3, stride, padding=1, output_padding=stride - 1))
    return nn.Sequential(*layers), (2, 4, 4)


def results(net: nn.Module, of: nn.Sequential, logdet: LogDetEstimator, x: Tensor) -> list[Tensor]:
    """Values of a block and their gradients, by x and all parameters."""
    torch.manual_seed(0)
    point = x.clone().requires_grad_()
    outputs = Residual(net, event_dim=x.dim() - 1, logdet=logdet).call_and_ladj(point)
    inputs = [point, *of.parameters()]
    options = {"allow_unused": True, "materialize_grads": True}
    total = sum(output.sin().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(total, inputs, **options)]


@SETTINGS
@given(st.one_of(perceptrons(), convolutions()), ESTIMATORS, st.integers(0, 9))
def test_random_networks(
    drawn: tuple[nn.Sequential, tuple[int, ...]], logdet: LogDetEstimator, seed: int
) -> None:
    net, event_shape = drawn
    torch.manual_seed(seed)
    net.double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)
    assert why_autograd(net) == ""
    x = torch.randn(2, *event_shape, dtype=torch.float64)
    found = results(net, net, logdet, x)
    expected = results(AutogradNetwork(net), net, logdet, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
