"""Factoring out channels given a context."""

from __future__ import annotations

import pytest
import torch

from pyro_resflow.logdet import Exact
from pyro_resflow.nn import ConditionalChain, ConvConditioner, LipschitzConvNet
from pyro_resflow.transforms import (
    ConditionalMultiscale,
    ConditionalResidual,
    ConditionalSplit,
    Multiscale,
    Split,
    SplitPrior,
    Squeeze,
)


def block(*shape: int) -> ConditionalResidual:
    net = ConditionalChain(LipschitzConvNet(shape, [4], kernel_sizes=[3, 1]), 5)
    return ConditionalResidual(net, logdet=Exact())


def test_the_split_at_a_context_is_that_of_the_conditioned_inner_transform() -> None:
    inner = block(2, 2, 2)
    split = ConditionalSplit(inner, (3, 2, 2))
    context, x = torch.randn(7, 5), torch.randn(7, 3, 2, 2)
    conditioned = split.condition(context)
    expected = Split(inner.condition(context), (3, 2, 2))
    torch.testing.assert_close(conditioned.call_and_ladj(x), expected.call_and_ladj(x))
    y = conditioned(x)
    torch.testing.assert_close(conditioned._inverse(y), x)
    torch.testing.assert_close(split.inv.condition(context)(y), x)


def test_contexts_and_images_broadcast() -> None:
    split = ConditionalSplit(block(2, 2, 2), (3, 2, 2)).condition(torch.randn(7, 5))
    x = torch.randn(3, 2, 2)
    y, ladj = split.call_and_ladj(x)
    assert (y.shape, ladj.shape) == ((7, 12), (7,))
    torch.testing.assert_close(split.call_and_ladj(x.expand(4, 1, 3, 2, 2))[0], y.expand(4, 7, 12))
    assert split._inverse(y[0]).shape == (7, 3, 2, 2)
    assert split.forward_shape((4, 1, 3, 2, 2)) == (4, 7, 12)
    assert split.inverse_shape((12,)) == (7, 3, 2, 2)
    grid = ConditionalSplit(block(2, 2, 2), (3, 2, 2)).condition(torch.randn(2, 7, 5))
    assert grid(x).shape == (2, 7, 12)
    with pytest.raises(ValueError, match="x: expected shape"):
        split(torch.randn(2, 2))


def test_levels_are_those_of_the_unconditional_composition() -> None:
    """With a level that depends on the context and others that do not."""
    inner = block(2, 2, 2)
    flow = ConditionalMultiscale([Squeeze(), inner], (1, 4, 4), prior=ConvConditioner(4))
    context, x = torch.randn(3, 5), torch.randn(3, 1, 4, 4)
    plain = Multiscale([Squeeze(), inner.condition(context)], (1, 4, 4))
    prior = flow.parts[1]
    assert isinstance(prior, SplitPrior)  # that starts as the identity
    torch.testing.assert_close(flow.condition(context)(x), plain(x))
    assert flow.forward_shape((1, 4, 4)) == (16,)
    assert flow.inverse_shape((16,)) == (1, 4, 4)


def test_a_single_channel_is_not_split() -> None:
    with pytest.raises(ValueError, match="two channels"):
        ConditionalSplit(block(1, 2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match="levels: expected at least one"):
        ConditionalMultiscale([], (1, 2, 2))
