from __future__ import annotations

import pytest
import torch

from pyro_resflow.nn import InducedNorm, LipschitzLayer, LipschitzMLP
from tests.networks import NETWORKS
from tests.versions import torch_is

# traces as torch.compile does for a device, but runs the graph as it is: no compiler is needed
OPTIONS = {"fullgraph": True, "backend": "aot_eager"}


@pytest.mark.skipif(not torch_is("2.7"), reason="torch.compile of a network needs torch 2.7")
@pytest.mark.parametrize("name", ["mlp", "conv_net", "dense_net_vector", "induced"])
def test_networks_compile_whole_and_follow_their_weights(name: str) -> None:
    torch.compiler.reset()
    if name == "induced":
        norms = InducedNorm.chain(2)
        for norm in norms:
            norm.tolerance, norm.max_iterations = 1e-15, 2000
        net, event_shape = LipschitzMLP(4, [8], norm=norms), (4,)
    else:
        net, event_shape = NETWORKS[name](0.9)
    net.double()
    x = torch.randn(5, *event_shape, dtype=torch.float64)
    v = torch.randn(2, *x.shape, dtype=torch.float64)
    forward, dual = torch.compile(net, **OPTIONS), torch.compile(net.dual, **OPTIONS)
    optimizer = torch.optim.SGD(net.parameters(), 1e-2)
    for _ in range(2):
        y = forward(x)
        torch.testing.assert_close(y, net(x))
        torch.testing.assert_close(dual(x, v), net.dual(x, v))
        optimizer.zero_grad()
        y.square().sum().backward()
        compiled = [p.grad.clone() for p in net.parameters()]
        optimizer.zero_grad()
        net(x).square().sum().backward()
        torch.testing.assert_close(compiled, [p.grad for p in net.parameters()])
        optimizer.step()
    with torch.no_grad():
        next(m for m in net.modules() if isinstance(m, LipschitzLayer)).weight.mul_(3)
        torch.testing.assert_close(forward(x), net(x))
