"""Networks: the shape, number and scaling of their layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from pyro_resflow.nn import (
    Chain,
    CLipSwish,
    Concatenated,
    CPila,
    InducedNorm,
    LipschitzConv2d,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzMLP,
    SpectralNorm,
    Tanh,
)
from tests.networks import IMAGE


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


def test_a_slice_of_a_chain_is_a_chain() -> None:
    network = LipschitzMLP(3, [8, 8])
    x = torch.randn(5, 3)
    first, rest = network[:2], network[2:]
    assert type(first) is Chain
    torch.testing.assert_close(rest(first(x)), network(x))
    assert network[-1] is list(network)[-1]


def test_a_concatenation_along_the_width_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"activation: .* got a CLipSwish .* pass partial\(CLipSwish, -3\)"
    ):
        LipschitzConvNet((2, 4, 4), [4, 4], activation=CLipSwish)
    network = LipschitzConvNet((2, 4, 4), [4, 4], activation=partial(CLipSwish, -3))
    assert network(torch.randn(3, 2, 4, 4)).shape == (3, 2, 4, 4)
