"""The gradient that a penalty adds."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("lightning")

from torch import nn

from examples.images.callbacks import SquaredPenalty


def test_a_penalty_adds_its_gradient():
    net = nn.Linear(2, 1)
    x = torch.randn(5, 2)
    (net(x).mean() + 0.3 * net.weight.square().sum()).backward()
    expected = [net.weight.grad.clone(), net.bias.grad.clone()]
    net.zero_grad()
    net(x).mean().backward()
    SquaredPenalty(0.3, ["weight"]).on_before_optimizer_step(None, net, None)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_skipped_step_gets_no_penalty():
    net = nn.Linear(2, 1)
    SquaredPenalty(0.3, ["weight"]).on_before_optimizer_step(None, net, None)
    assert net.weight.grad is None
