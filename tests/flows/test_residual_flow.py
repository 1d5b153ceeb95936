"""Residual Flow for images: its structure, and blocks that stay contractions."""

from collections.abc import Callable

import pytest
import torch

from pyro_resflow.flows import ConvBlock, DenseNetBlock, MLPBlock, ResidualFlow
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import (
    ELU,
    CPila,
    LipschitzConvNet,
    LipschitzLayer,
    SharpLipSwish,
    check_contraction,
)
from pyro_resflow.transforms import ActNorm, Monotone, Residual


def small(event_shape: tuple[int, int, int] = (1, 8, 8), **options: object) -> ResidualFlow:
    options = {"blocks": (2, 1), "network": ConvBlock(8), "end_blocks": 1, **options}
    return ResidualFlow(event_shape, **options)


def members(flow: ResidualFlow, kind: type) -> list[torch.nn.Module]:
    return [module for module in flow.modules() if isinstance(module, kind)]


def test_chain_is_the_published_one() -> None:
    flow = small((1, 8, 8), blocks=(2, 2), end_blocks=4)
    assert len(members(flow, Residual)) == 2 + 2 + 4
    assert len(members(flow, ActNorm)) == 1 + 2 + 2 + 4
    conv = members(flow, LipschitzConvNet)
    sizes = [
        [layer.weight.shape[-1] for layer in net if isinstance(layer, LipschitzLayer)]
        for net in conv
    ]
    assert sizes == [[3, 1, 3]] * 4
    # the very first block skips its activation, the others start with one
    assert [len(net) for net in conv] == [5, 6, 6, 6]


def test_parameter_count_of_the_published_mnist_model() -> None:
    with torch.device("meta"):
        flow = ResidualFlow((1, 28, 28), (16, 16, 16), alpha=1e-6)
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert count == pytest.approx(16.6e6, rel=0.02)


def test_published_i_dense_net_has_as_many_parameters_as_the_residual_flow() -> None:
    dense = {"network": DenseNetBlock(), "end_network": DenseNetBlock(growth=32, stem=64)}
    with torch.device("meta"):
        flows = [ResidualFlow((3, 32, 32), **options) for options in ({}, dense)]
    counts = [sum(parameter.numel() for parameter in flow.parameters()) for flow in flows]
    assert counts[0] == pytest.approx(25.2e6, rel=0.002)
    assert counts[1] == pytest.approx(24.9e6, rel=0.002)


def test_blocks_are_what_is_asked_for() -> None:
    logdet = Exact()
    flow = small(block=Monotone, logdet=logdet)
    assert len(members(flow, Monotone)) == 4
    assert not members(flow, Residual)
    assert all(block.logdet is logdet for block in members(flow, Monotone))


@pytest.mark.parametrize(
    "make",
    [
        small,
        lambda: small(
            network=DenseNetBlock(2, 8, CPila),
            end_network=DenseNetBlock(2, 4, CPila, stem=8),
            block=Monotone,
        ),
        lambda: small((3, 8, 8), squeeze_first=True),
        lambda: small((3, 8, 8), factor_out=True),
        lambda: small((2, 4, 8), network=DenseNetBlock(2, 8), end_blocks=0),
        lambda: small(network=ConvBlock(8, activation=ELU), end_network=MLPBlock((8, 8))),
        lambda: small(network=ConvBlock(8, activation=SharpLipSwish)),
    ],
)
def test_scores_and_samples_images(make: Callable[[], ResidualFlow]) -> None:
    flow = make()
    x = torch.rand(16, *flow.event_shape)
    d = flow.distribution()
    assert d.batch_shape == ()
    assert d.event_shape == flow.event_shape
    assert d.log_prob(x).shape == (16,)
    assert d.sample((2, 3)).shape == (2, 3, *flow.event_shape)
    check_contraction(flow)


def test_steps_keep_every_block_a_contraction() -> None:
    flow = small()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    x = torch.rand(16, 1, 8, 8)
    for _ in range(20):
        optimizer.zero_grad()
        (-flow.distribution().log_prob(x).mean()).backward()
        optimizer.step()
    check_contraction(flow)
    for layer in members(flow, LipschitzLayer):
        weight = layer.effective_weight().detach().double()
        operator = layer.operator(weight)
        v = torch.randn(operator.domain, dtype=torch.float64)
        for _ in range(500):
            v = operator.adjoint(operator.apply(v))
            v = v / v.norm()
        # the measured norm is a lower bound: where singular values crowd at the top, the
        # iteration ends a little below the largest
        assert operator.apply(v).norm() < 1.01 * layer.norm.coefficient


def test_default_dtype_float64() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        flow = small(logdet=Exact())
        x = torch.rand(16, 1, 8, 8)
        assert flow.distribution().log_prob(x).dtype == torch.float64
        with torch.no_grad():
            assert (flow._call(flow.inv(x)) - x).abs().max() < 1e-9
    finally:
        torch.set_default_dtype(torch.float32)


def test_nan_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"[Ee]xpected value argument|nan"):
        small().distribution().log_prob(torch.full((4, 1, 8, 8), float("nan")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualFlow((1, 7, 8), (1, 1)), "divisible by 2"),
        (lambda: ResidualFlow((8, 8), (1,)), r"expected \(C, H, W\)"),
        (lambda: ResidualFlow((1, 8, 8), ()), "at least one scale"),
        (lambda: ResidualFlow((1, 8, 8), (-1,)), "expected at least 0 at each scale"),
        (lambda: small(alpha=0.6), "alpha"),
        (lambda: small(network=ConvBlock(8, coefficient=1.0)), "coefficient"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("of_pixels", [False, True])
def test_norms_are_of_channels_or_of_pixels(of_pixels: bool) -> None:
    network = ConvBlock(4)
    flow = ResidualFlow(
        (2, 4, 4), (1, 1), network=network, end_blocks=1, norms_of_pixels=of_pixels
    )
    found = [tuple(each.feature_shape) for each in flow.modules() if isinstance(each, ActNorm)]
    images = [(2, 4, 4), (2, 4, 4), (8, 2, 2)] if of_pixels else [(2,), (2,), (8,)]
    assert found == [*images, (32,)]
    assert flow.distribution().log_prob(torch.rand(16, 2, 4, 4)).isfinite().all()
