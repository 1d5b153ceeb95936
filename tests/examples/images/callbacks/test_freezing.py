"""Parameters that learn later than the others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lightning")

from torch import nn

from examples.images.callbacks import FrozenAtFirst


@pytest.mark.parametrize(("epoch", "learns"), [(0, False), (1, False), (2, True)])
def test_frozen_parameters_learn_later(epoch, learns):
    net = nn.Linear(2, 1)
    net(torch.randn(5, 2)).mean().backward()
    trainer = SimpleNamespace(current_epoch=epoch)
    FrozenAtFirst(["bias"], epochs=2).on_before_optimizer_step(trainer, net, None)
    assert (net.bias.grad is not None) == learns
    assert net.weight.grad is not None
