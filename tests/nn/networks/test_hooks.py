"""A chain rejects hooks that it would not call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from pyro_resflow import residual
from pyro_resflow.nn import LipschitzDenseNet, LipschitzMLP
from pyro_resflow.transforms import Residual

HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda layer: layer.register_forward_hook(lambda module, inputs, out: 2 * out),
    "before": lambda layer: layer.register_forward_pre_hook(lambda module, inputs: None),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "weight_norm": lambda layer: nn.utils.weight_norm(layer),
    "spectral_norm": lambda layer: nn.utils.spectral_norm(layer),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_on_a_layer_are_refused(hook: str) -> None:
    block = residual(3, [8])
    HOOKS[hook](block.net[0])
    x = torch.randn(5, 3)
    for call in (block.call_and_ladj, block._call, block._inverse):
        with pytest.raises(ValueError, match=r"layer 0 \(\w*LipschitzLinear\): expected no hooks"):
            call(x)


def test_hooks_on_an_activation_and_inside_a_dense_layer_are_refused() -> None:
    net = LipschitzMLP(3, [8])
    net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layer 1 \(LipSwish\)"):
        net(torch.randn(5, 3))
    dense = LipschitzDenseNet(3, depth=1, growth=4)
    dense[0].branch.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"branch \(Chain\)"):
        dense(torch.randn(5, 3))


def test_hooks_on_a_whole_network_are_called_by_itself_and_refused_in_a_block() -> None:
    net = LipschitzMLP(3, [8])
    handle = net.register_forward_hook(lambda module, inputs, out: 2 * out)
    x = torch.randn(5, 3)
    doubled = net(x)
    with pytest.raises(ValueError, match=r"net \(LipschitzMLP\): expected no hooks"):
        Residual(net).call_and_ladj(x)
    handle.remove()
    torch.testing.assert_close(doubled, 2 * net(x))


def test_pruning_made_permanent_and_parametrizations_are_taken() -> None:
    block = residual(3, [8])
    layer = block.net[0]
    prune.random_unstructured(layer, "weight", 0.5)
    prune.remove(layer, "weight")
    parametrizations.weight_norm(block.net[2])
    x = torch.randn(5, 3)
    y, _ = block.call_and_ladj(x)
    torch.testing.assert_close(block.inv(y), x, rtol=1e-4, atol=1e-4)
    assert int((layer.effective_weight() == 0).sum()) == 12
