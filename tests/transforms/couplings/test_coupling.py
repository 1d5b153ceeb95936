"""Couplings: kept entries, log-determinants, contexts, and wrong shapes."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import ConvConditioner, ResidualConditioner
from pyro_resflow.transforms import (
    AffineMap,
    ChannelHalves,
    Checkerboard,
    Columns,
    ConditionalCoupling,
    Coupling,
    ElementwiseMap,
    LogisticMixtureMap,
    Mask,
    OnFullImage,
    SigmoidScale,
)
from tests.transforms.conditional_registry import conditional_coupling
from tests.transforms.registry import coupling

MASKS: list[Callable[[], Mask]] = [
    lambda: Checkerboard((2, 3, 4)),
    lambda: Columns((2, 3, 4), parity=1),
    lambda: ChannelHalves((3, 2, 2), swap=True),
    lambda: ChannelHalves((5,)),
]
MAPS: list[Callable[[], ElementwiseMap]] = [AffineMap, lambda: LogisticMixtureMap(3)]


@pytest.mark.parametrize("make_map", MAPS)
@pytest.mark.parametrize("make_mask", MASKS)
def test_kept_half_is_untouched_and_the_rest_is_the_elementwise_map(
    make_mask: Callable[[], Mask], make_map: Callable[[], ElementwiseMap]
) -> None:
    mask, elementwise = make_mask(), make_map()
    transform = coupling(mask, elementwise)
    x = torch.randn(7, *mask.event_shape)
    y, ladj = transform.call_and_ladj(x)
    (kept, before), (still, after) = mask.split(x), mask.split(y)
    assert torch.equal(kept, still)
    raw = transform.net(kept)
    channels = mask.changed_shape[0]
    parameters = torch.stack(raw.split(channels, dim=1), dim=1)
    expected, log_slopes = elementwise(before, parameters)
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(ladj, log_slopes.reshape(7, -1).sum(1))


@pytest.mark.parametrize("make_map", MAPS)
def test_zero_network_is_the_identity(make_map: Callable[[], ElementwiseMap]) -> None:
    elementwise = make_map()
    mask = Checkerboard((2, 4, 4))
    net = ConvConditioner(8)(mask.kept_shape, elementwise.num_parameters * 2)
    x = torch.randn(7, 2, 4, 4)
    y, ladj = Coupling(mask, elementwise, net).call_and_ladj(x)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(ladj, torch.zeros(7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("make_map", MAPS)
@pytest.mark.parametrize("direction", ["call_and_ladj", "inverse_and_ladj", "_call", "_inverse"])
def test_either_direction_evaluates_the_conditioner_once(
    make_map: Callable[[], ElementwiseMap], direction: str
) -> None:
    transform = coupling(ChannelHalves((4,)), make_map())
    forward = transform.net.forward
    with mock.patch.object(transform.net, "forward", side_effect=forward) as spy:
        getattr(transform, direction)(torch.randn(7, 4))
    assert spy.call_count == 1


def test_density_and_its_log_det_take_one_evaluation() -> None:
    transform = coupling(ChannelHalves((4,)), AffineMap())
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), [transform])
    forward = transform.net.forward
    with mock.patch.object(transform.net, "forward", side_effect=forward) as spy:
        flow.log_prob(torch.randn(7, 4))
    assert spy.call_count == 1


@pytest.mark.parametrize("make_mask", MASKS)
def test_conditional_coupling_agrees_with_the_unconditional_one(
    make_mask: Callable[[], Mask],
) -> None:
    mask = make_mask()

    class IgnoresContext(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, kept: Tensor, context: Tensor) -> Tensor:
            return self.net(kept) + 0 * context.sum()

    plain = coupling(mask, AffineMap())
    conditional = ConditionalCoupling(mask, AffineMap(), IgnoresContext(plain.net), (2,))
    x, context = torch.randn(7, *mask.event_shape), torch.randn(7, 2)
    conditioned = conditional.condition(context)
    torch.testing.assert_close(conditioned.call_and_ladj(x), plain.call_and_ladj(x))
    torch.testing.assert_close(conditioned.inverse_and_ladj(x), plain.inverse_and_ladj(x))


@pytest.mark.parametrize("context_batch", [(), (5,), (1,), (6, 1)])
@pytest.mark.parametrize("batch", [(), (5,), (6, 5)])
def test_feature_maps_broadcast_over_batches(
    context_batch: tuple[int, ...], batch: tuple[int, ...]
) -> None:
    conditional = conditional_coupling(Checkerboard((2, 3, 4)), AffineMap(), (4, 3, 2))
    context, x = torch.randn(*context_batch, 4, 3, 2), torch.randn(*batch, 2, 3, 4)
    transform = conditional.condition(context)
    expected = torch.broadcast_shapes(context_batch, batch)
    y, ladj = transform.call_and_ladj(x)
    assert y.shape == (*expected, 2, 3, 4) == transform.forward_shape(x.shape)
    assert ladj.shape == expected
    torch.testing.assert_close(transform._inverse(y), x.expand(y.shape))
    last = conditional.condition(context.expand(*expected, 4, 3, 2).reshape(-1, 4, 3, 2)[-1])
    torch.testing.assert_close(
        y.reshape(-1, 2, 3, 4)[-1], last(x.expand(y.shape).reshape(-1, 2, 3, 4)[-1])
    )


def test_conditioned_distribution_over_images_takes_the_contexts_batch() -> None:
    conditional = conditional_coupling(Checkerboard((2, 3, 4)), AffineMap(), (4, 3, 2))
    base = dist.Normal(torch.zeros(2, 3, 4), 1.0).to_event(3)
    flow = dist.ConditionalTransformedDistribution(base, [conditional])
    conditioned = flow.condition(torch.randn(7, 4, 3, 2))
    assert conditioned.batch_shape == (7,)
    sample = conditioned.sample((5,))
    assert sample.shape == (5, 7, 2, 3, 4)
    assert conditioned.log_prob(sample).shape == (5, 7)


@pytest.mark.parametrize("size", [(4, 4), (3, 3)])
def test_full_size_conditioner_sees_kept_pixels_in_place_and_the_mask(
    size: tuple[int, int],
) -> None:
    mask = Checkerboard((2, *size), parity=1)
    seen = {}

    class Looks(nn.Module):
        def forward(self, image: Tensor, context: Tensor) -> Tensor:
            seen["image"], seen["context"] = image, context
            return torch.cat([image, -image], dim=1) + 1

    x, features = torch.randn(7, 2, *size), torch.randn(7, 3, *size)
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    white = ((rows + columns) % 2 == 1).float()
    net = OnFullImage(mask, Looks())
    result = net(mask.split(x)[0], features)
    assert torch.equal(seen["image"], x * white)
    assert torch.equal(seen["context"][:, :1], white.expand(7, 1, *size))
    assert torch.equal(seen["context"][:, 1:], features)
    assert torch.equal(result, torch.ones(7, 4, *mask.changed_shape[1:]))
    assert net(mask.split(x)[0]).shape == result.shape
    assert seen["context"].shape == (7, 1, *size)


@pytest.mark.parametrize("recipe", [ConvConditioner(8), ResidualConditioner(8, blocks=1)])
def test_recipes_serve_masks_packed_and_at_full_size(recipe: Callable[..., nn.Module]) -> None:
    mask = Checkerboard((2, 4, 4))
    packed = Coupling(mask, AffineMap(), recipe(mask.kept_shape, 2 * 2))
    net = OnFullImage(mask, recipe(mask.event_shape, 2 * 2, context_channels=1))
    x = torch.randn(7, 2, 4, 4)
    for transform in (packed, Coupling(mask, AffineMap(), net)):
        assert transform(x).shape == x.shape


def test_half_precision_parameters_do_not_make_the_event_half_precision() -> None:
    transform = coupling(ChannelHalves((4,)), LogisticMixtureMap(3))
    x = torch.randn(7, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert transform.net(x[:, :2]).dtype == torch.bfloat16
        y, ladj = transform.call_and_ladj(x)
        found = transform._inverse(y)
    assert y.dtype == ladj.dtype == torch.float32
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)


def test_wrong_shapes_are_named() -> None:
    transform = coupling(ChannelHalves((4,)), AffineMap())
    with pytest.raises(ValueError, match=r"x: expected shape \(\*batch, 4\), got \(7, 3\)"):
        transform(torch.randn(7, 3))
    with pytest.raises(ValueError, match=r"y: expected shape \(\*batch, 4\)"):
        transform.inv(torch.randn(7, 3))
    wrong = Coupling(ChannelHalves((4,)), AffineMap(), nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"net: expected an output of shape \(7, 4\)"):
        wrong(torch.randn(7, 4))
    conditional = conditional_coupling(Checkerboard((2, 3, 4)), AffineMap(), (4, 3, 2))
    with pytest.raises(ValueError, match=r"context: expected shape \(\*batch, 4, 3, 2\)"):
        conditional.condition(torch.randn(7, 4, 3, 4))


def test_glows_scale_is_not_the_identity_to_begin_with() -> None:
    mask = ChannelHalves((4, 2, 2))
    net = ConvConditioner(8)(mask.kept_shape, 4)
    y = Coupling(mask, AffineMap(SigmoidScale()), net)(x := torch.randn(7, 4, 2, 2))
    torch.testing.assert_close(y[:, 2:], x[:, 2:] * torch.tensor(2.0).sigmoid())
