"""Images recorded inside a composition."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import AffineTransform

from pyro_resflow.flows import ConvBlock, DenseNetBlock, ImageFlow, IResNet, ResidualFlow
from pyro_resflow.nn import LipschitzConvNet
from pyro_resflow.transforms import (
    ActNorm,
    Compose,
    Flatten,
    Inverse,
    Multiscale,
    Residual,
    Squeeze,
    image_features,
)


def norm(channels: int) -> ActNorm:
    return ActNorm(channels, event_dim=3)


def test_of_each_size_the_last_learned_image_is_kept() -> None:
    first, last, small = norm(1), norm(1), norm(4)
    transform = Compose([first, last, AffineTransform(1.0, 2.0, event_dim=3), Squeeze(), small])
    x = torch.rand(5, 1, 4, 4)
    with image_features() as features:
        y, _ = transform.call_and_ladj(x)
    expected = last._call(first._call(x))
    assert list(features) == [(4, 4), (2, 2)]
    torch.testing.assert_close(features[torch.Size((4, 4))], expected)
    assert features[torch.Size((2, 2))] is y


def test_value_alone_shows_the_same() -> None:
    flow = ResidualFlow((1, 8, 8), (1, 1), network=ConvBlock(4), factor_out=True)
    x = torch.rand(5, 1, 8, 8)
    found = []
    for evaluate in (flow.encoder._call, flow.encoder.call_and_ladj):
        with image_features() as features:
            evaluate(x)
        found.append(features)
    torch.testing.assert_close(found[0], found[1])


def test_images_without_anything_learned_are_passed_over() -> None:
    transform = Compose([Squeeze(), norm(4), Squeeze(), Flatten((16, 1, 1))])
    with image_features() as features:
        transform._call(torch.rand(5, 1, 4, 4))
    assert list(features) == [(2, 2)]


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (
            lambda: ResidualFlow((1, 8, 8), (1, 1), network=ConvBlock(4)),
            [(1, 8, 8), (4, 4, 4)],
        ),
        (
            lambda: ResidualFlow(
                (3, 8, 8), (1, 1), network=DenseNetBlock(1, 4), squeeze_first=True, factor_out=True
            ),
            [(12, 4, 4), (24, 2, 2)],
        ),
        (
            lambda: IResNet((1, 8, 8), (1, 1), network=ConvBlock(4)),
            [(4, 4, 4), (8, 2, 2)],
        ),
    ],
)
def test_flows_show_one_image_for_each_scale(make: type, shapes: list[tuple[int, ...]]) -> None:
    flow: ImageFlow = make()
    with image_features() as features:
        flow.encoder(torch.rand(5, *flow.event_shape))
    assert [tuple(image.shape[1:]) for image in features.values()] == shapes


def test_factored_out_scales_are_seen_into() -> None:
    levels = [Compose([norm(1), Squeeze()]), Residual(LipschitzConvNet((2, 2, 2), (4, 4)))]
    transform = Multiscale(levels, (1, 4, 4))
    with image_features() as features:
        z = transform(torch.rand(5, 1, 4, 4))
    assert features[torch.Size((2, 2))].shape == (5, 2, 2, 2)
    torch.testing.assert_close(features[torch.Size((2, 2))].flatten(1), z[:, 8:])


def test_readers_do_not_outlast_their_statement_and_may_be_nested() -> None:
    transform = Compose([norm(1), Inverse(norm(1))])
    x = torch.rand(5, 1, 4, 4)
    with image_features() as outer:
        with image_features() as inner:
            transform._call(x)
        assert list(inner) == list(outer) == [(4, 4)]
        kept = inner[torch.Size((4, 4))]
        transform._call(x + 1)
        assert inner[torch.Size((4, 4))] is kept
        assert outer[torch.Size((4, 4))] is not kept
    outer.clear()
    transform._call(x)
    assert not outer
