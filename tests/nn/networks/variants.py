"""Small networks of every kind, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyro_resflow.nn import (
    ELU,
    CLipSwish,
    CPila,
    GatedLipschitzMLP,
    InducedNorm,
    LipschitzConvNet,
    LipschitzDenseNet,
    LipschitzLayer,
    LipschitzMLP,
    LipSwish,
    Pila,
    Softplus,
    Tanh,
)
from tests.networks import IMAGE, NETWORKS, activate_constraints

CHAINS = {name: make for name, make in NETWORKS.items() if name != "plain_module"}


def event_dims(net: nn.Module) -> int:
    return getattr(net, "event_dim", 1)


def mlp(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzMLP(3, [6, 4], **options), (3,)


def conv_net(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzConvNet(IMAGE, [3], kernel_sizes=[3, 1], **options), IMAGE


def dense_net(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzDenseNet(3, depth=2, growth=4, **options), (3,)


def dense_image_net(**options) -> tuple[nn.Module, Sequence[int]]:
    return LipschitzDenseNet(IMAGE, depth=1, growth=4, **options), IMAGE


VARIANTS: dict[str, Callable[[], tuple[nn.Module, Sequence[int]]]] = {
    **{
        f"mlp {phi.__name__}": lambda phi=phi: mlp(activation=phi)
        for phi in (LipSwish, ELU, Tanh, Softplus, Pila, CLipSwish, CPila)
    },
    "mlp preactivation": lambda: mlp(preactivation=True),
    "mlp concatenated preactivation": lambda: mlp(preactivation=True, activation=CPila),
    "mlp induced": lambda: mlp(norm=InducedNorm.chain(3, order=1.7)),
    "gated mlp": lambda: (GatedLipschitzMLP(3, [6, 4]), (3,)),
    "gated mlp CLipSwish": lambda: (GatedLipschitzMLP(3, [6], activation=CLipSwish), (3,)),
    "gated mlp without hidden layers": lambda: (GatedLipschitzMLP(3, []), (3,)),
    "mlp without hidden layers": lambda: (LipschitzMLP(3, []), (3,)),
    **{
        f"conv_net {phi.__name__}": lambda phi=phi: conv_net(activation=phi)
        for phi in (LipSwish, ELU, Tanh, Softplus, Pila)
    },
    "conv_net CLipSwish": lambda: conv_net(activation=lambda: CLipSwish(-3)),
    "conv_net CPila": lambda: conv_net(activation=lambda: CPila(-3)),
    "conv_net without preactivation": lambda: conv_net(preactivation=False),
    "conv_net induced": lambda: conv_net(norm=InducedNorm.chain(2, order=1.7)),
    "dense_net CLipSwish": dense_net,
    "dense_net CPila": lambda: dense_net(activation=CPila),
    "dense_net Tanh": lambda: dense_net(activation=lambda dim: Tanh()),
    "dense_net with a stem": lambda: dense_net(stem=5),
    "dense_net image CLipSwish": dense_image_net,
    "dense_net image CPila": lambda: dense_image_net(activation=CPila),
    "dense_net image LipSwish": lambda: dense_image_net(activation=lambda dim: LipSwish()),
}


def settled(net: nn.Module) -> nn.Module:
    """In double precision, its constraints active and its power iteration done."""
    activate_constraints(net.double(), bias=0.3)
    for layer in net.modules():
        if isinstance(layer, LipschitzLayer):
            layer.update()
    return net
