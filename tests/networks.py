"""Networks for the tests of estimators, solvers and linearizations.

``NETWORKS[name](lipschitz)`` returns a network of that Lipschitz constant, in the default dtype,
with its event shape. Its raw weights are far above the coefficient, so that every layer sits at
it, and positive, so that the layers stretch the same direction: the Jacobian comes near the
constant (random signs would leave a tenth of it). Power iteration runs to convergence; then the
gradient with respect to a weight, for which singular vectors count as constants, is that of finite
differences.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pyro_resflow.nn import (
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzLinear,
    LipschitzMLP,
    SpectralNorm,
)

VECTOR = torch.Size([4])
IMAGE = torch.Size([2, 4, 4])


def converged_norm(coefficient: float) -> SpectralNorm:
    """A spectral norm whose power iteration goes on until it stands still."""
    return SpectralNorm(coefficient, tolerance=1e-15, max_iterations=2000)


@torch.no_grad()
def activate_constraints(net: nn.Module, *, bias: float) -> nn.Module:
    """Make the raw weights large and positive, and add to the biases, in place."""
    for layer in net.modules():
        if isinstance(layer, LipschitzLayer):
            layer.weight.abs_().mul_(8)
            layer.bias.add_(bias)
    return net


def mlp(lipschitz: float) -> tuple[nn.Module, torch.Size]:
    norm = converged_norm(lipschitz ** (1 / 3))
    return activate_constraints(LipschitzMLP(VECTOR[0], [16, 16], norm=norm), bias=1.0), VECTOR


def conv_net(lipschitz: float) -> tuple[nn.Module, torch.Size]:
    norm = converged_norm(lipschitz ** (1 / 3))
    return activate_constraints(LipschitzConvNet(IMAGE, [6, 6], norm=norm), bias=1.0), IMAGE


def dense_net_vector(lipschitz: float) -> tuple[nn.Module, torch.Size]:
    return _dense_net(VECTOR, growth=8, lipschitz=lipschitz), VECTOR


def dense_net_image(lipschitz: float) -> tuple[nn.Module, torch.Size]:
    return _dense_net(IMAGE, growth=4, lipschitz=lipschitz), IMAGE


def _dense_net(event_shape: torch.Size, *, growth: int, lipschitz: float) -> nn.Module:
    # at equal weights of input and features, a dense layer of coefficient c has the constant
    # sqrt((1 + c^2) / 2): two of them with c^2 = lipschitz have (1 + lipschitz) / 2 together
    inner = converged_norm(lipschitz**0.5)
    last = converged_norm(2 * lipschitz / (1 + lipschitz))
    net = LipschitzDenseNet(event_shape, depth=2, growth=growth, norm=[inner, inner, last])
    return activate_constraints(net, bias=1.0)


def plain_module(lipschitz: float) -> tuple[nn.Module, torch.Size]:
    """A user's module, with none of our methods."""
    norm = converged_norm(lipschitz ** (1 / 2))
    first, last = LipschitzLinear(VECTOR[0], 16, norm), LipschitzLinear(16, VECTOR[0], norm)
    return activate_constraints(nn.Sequential(first, nn.Tanh(), last), bias=0.0), VECTOR


NETWORKS: dict[str, Callable[[float], tuple[nn.Module, torch.Size]]] = {
    "mlp": mlp,
    "conv_net": conv_net,
    "dense_net_vector": dense_net_vector,
    "dense_net_image": dense_net_image,
    "plain_module": plain_module,
}
