"""Loaded networks agree with normflows, which has its own copy of the reference's code.

Its networks have the layers and names of the reference implementation, so that their weights load
like those of a checkpoint.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_resflow.checkpoints.reference.counterparts import (
    Counterpart,
    LayerCounterpart,
    SwishCounterpart,
)
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import LipschitzConvNet, LipschitzLayer, LipschitzMLP, SpectralNorm
from pyro_resflow.nn.lipschitz.update import trust_norms
from pyro_resflow.transforms import Residual

nf = pytest.importorskip("normflows")

COEFFICIENT = 0.9


def copied(theirs: nn.Module, ours: nn.Sequential) -> None:
    """Give our network their weights, activations and measured norms."""
    state: dict[str, Tensor] = {}
    for i, (layer, their_layer) in enumerate(zip(ours, theirs.net, strict=True)):
        kind = LayerCounterpart if isinstance(layer, LipschitzLayer) else SwishCounterpart
        part: Counterpart = kind("", str(i), layer)
        there = {name: each.detach().double() for name, each in their_layer.state_dict().items()}
        state |= {f"{i}.{name}": value for name, value in part.converted(there).items()}
    ours.load_state_dict(state)
    trust_norms(ours)  # theirs come from fewer iterations than ours would take


def vector_networks(size: int) -> tuple[nn.Module, LipschitzMLP]:
    theirs = nf.nets.LipschitzMLP([size, 16, 16, size], COEFFICIENT, init_zeros=False)
    ours = LipschitzMLP(size, [16, 16], norm=SpectralNorm(COEFFICIENT), preactivation=True)
    return theirs, ours


def image_networks() -> tuple[nn.Module, LipschitzConvNet]:
    theirs = nf.nets.LipschitzCNN([2, 6, 6, 2], [3, 1, 3], COEFFICIENT, init_zeros=False)
    theirs(torch.rand(1, 2, 4, 4))  # which makes its vectors
    ours = LipschitzConvNet((2, 4, 4), [6, 6], norm=SpectralNorm(COEFFICIENT))
    return theirs, ours


NETWORKS = {
    "2": lambda: vector_networks(2),
    "5": lambda: vector_networks(5),
    "image": image_networks,
}


@pytest.fixture(params=sorted(NETWORKS))
def networks(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    """Their network and ours with its weights, steep enough to be normalised, and points."""
    theirs, ours = NETWORKS[request.param]()
    with torch.no_grad():
        for layer in theirs.net:
            if hasattr(layer, "compute_weight"):
                nn.init.orthogonal_(layer.weight, gain=4.0)
                layer.compute_weight(update=True, n_iterations=50)
    copied(theirs, ours.double())
    shape = (2, 4, 4) if request.param == "image" else (int(request.param),)
    return theirs.double().eval(), ours, torch.randn(7, *shape, dtype=torch.float64)


def test_the_same_network(networks: tuple[nn.Module, nn.Module, Tensor]) -> None:
    theirs, ours, x = networks
    assert (theirs(x) - ours(x)).abs().max() < 1e-6 < ours(x).abs().max()


def test_the_same_exact_log_determinant(networks: tuple[nn.Module, nn.Module, Tensor]) -> None:
    theirs, ours, x = networks
    block = nf.flows.Residual(theirs, reverse=False).eval()
    transform = Residual(ours, logdet=Exact())
    y, ladj = transform.call_and_ladj(x)
    if x.shape[1:] == (2,):  # for which it has the determinant, in evaluation mode
        their_y, their_ladj = block.forward(x)
    else:
        their_y = block.iresblock(x)
        jacobians = [torch.autograd.functional.jacobian(block.iresblock, p[None]) for p in x]
        matrices = torch.stack(jacobians).reshape(len(x), x[0].numel(), -1)
        their_ladj = torch.linalg.slogdet(matrices)[1]
    assert (y - their_y).abs().max() < 1e-6
    torch.testing.assert_close(ladj, their_ladj, rtol=1e-5, atol=1e-7)
    assert ladj.abs().max() > 0.01
