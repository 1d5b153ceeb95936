"""A chain keeps its stages, and follows every change of its layers all the same."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.nn import (
    Chain,
    CPila,
    LipschitzLinear,
    LipschitzMLP,
    LipSwish,
    SpectralNorm,
    Tanh,
)
from pyro_resflow.nn.networks import chain as chains

X = torch.randn(4, 3)


def by_layers(net: Chain) -> Tensor:
    """What the layers compute one after the other."""
    y = X
    for layer in net:
        y = layer(y)
    return y


def check(net: Chain) -> None:
    torch.testing.assert_close(net(X), by_layers(net))
    torch.testing.assert_close(net.linearize(X).value, by_layers(net))


def test_stages_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = LipschitzMLP(3, [5])
    check(net)
    monkeypatch.setattr(chains, "folded", None)
    check(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    check(net)


def test_a_replaced_layer_is_followed() -> None:
    net = LipschitzMLP(3, [5])
    check(net)
    net[1] = Tanh()
    check(net)
    net[2] = LipschitzLinear(5, 3, SpectralNorm(0.3))
    check(net)
    net.append(LipSwish())
    check(net)


def test_a_bias_that_goes_and_comes_back_is_followed() -> None:
    net = LipschitzMLP(3, [5])
    check(net)
    bias, net[0].bias = net[0].bias, None
    check(net)
    assert len(net.coefficients()) == 3
    net[0].bias = nn.Parameter(bias + 1)
    check(net)
    assert len(net.coefficients()) == 4


def test_a_setting_of_an_activation_is_followed() -> None:
    net = Chain([LipschitzLinear(3, 4), CPila(), LipschitzLinear(8, 3)])
    check(net)
    net[1].shift = 0.7
    check(net)


def test_a_custom_layer_is_asked_for_its_stages_each_time() -> None:
    class Switching(Tanh):
        other = LipSwish()
        is_on = False

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x) if self.is_on else super().forward(x)

        def stages(self):  # type: ignore[no-untyped-def]
            return self.other.stages() if self.is_on else super().stages()

    net = Chain([LipschitzLinear(3, 4), Switching(), LipschitzLinear(4, 3)])
    check(net)
    net[1].is_on = True
    check(net)


def test_hooks_that_come_later_are_refused() -> None:
    net = LipschitzMLP(3, [5])
    check(net)
    handle = net[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer 1"):
        net(X)
    handle.remove()
    check(net)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_has_stages_of_its_own(copied) -> None:  # type: ignore[no-untyped-def]
    net = LipschitzMLP(3, [5])
    check(net)
    other = copied(net)
    with torch.no_grad():
        other[0].weight.mul_(0.1)
    check(other)
    check(net)
    assert not torch.allclose(net(X), other(X))


def test_stages_go_with_their_chain() -> None:
    net = LipschitzMLP(3, [5])
    check(net)
    before = len(chains._BUILT)
    del net
    gc.collect()
    assert len(chains._BUILT) < before
