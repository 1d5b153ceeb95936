"""Long runs keep memory, graphs and norms bounded, and the benchmark measures them correctly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import soak
from benchmarks.contraction import LongPowerIteration
from pyro_resflow.logdet import Krylov
from pyro_resflow.nn import LipschitzMLP
from pyro_resflow.transforms import Residual


def test_growth_is_that_of_the_resident_memory() -> None:
    kept: list[Tensor] = []
    size = 64 * 2**20  # above what malloc ever takes from memory that was freed before
    before = soak.resident()
    grown = soak.growth(lambda: kept.append(torch.ones(size // 4)), calls=5, warm_up=2)
    # from two of them to five, up to a tenth
    assert grown == pytest.approx(3 * size / (before + 2 * size), rel=0.1)


def test_a_graph_that_is_kept_is_counted() -> None:
    block = Residual(LipschitzMLP(3, [8]), logdet=Krylov())
    before = soak.live_graphs()
    value = block(torch.randn(5, 3))
    assert soak.live_graphs() > before
    del value
    block.clear_cache()
    assert soak.live_graphs() == before


def test_excess_is_that_of_the_largest_singular_value() -> None:
    net = LipschitzMLP(6, [7]).double()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(10)
    net(torch.randn(1, 6, dtype=torch.float64))
    measured = LongPowerIteration(net, iterations=2000)
    layers = measured.layers
    assert len(layers) == 2
    for name, norm in measured.norms().items():
        truth = torch.linalg.matrix_norm(layers[name].effective_weight(), 2).item()
        assert norm == pytest.approx(truth, rel=1e-9)
    name, layer = next(iter(layers.items()))
    layer.u.div_(1.02)  # as if the norm had been found too small
    layer.norm_state.measured = None
    assert measured.excess().layer == name
    assert measured.excess().relative == pytest.approx(0.02, abs=2e-3)


@pytest.mark.slow
def test_memory_does_not_grow_over_training_steps() -> None:
    torch.manual_seed(0)
    grown, graphs = soak.training()
    assert grown < 0.05
    assert graphs == 0


@pytest.mark.slow
def test_memory_does_not_grow_over_scores() -> None:
    torch.manual_seed(0)
    assert soak.scoring() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_every_layer_stays_a_contraction(seed: int) -> None:
    torch.manual_seed(seed)
    excess, step = soak.contraction()
    assert excess.relative < 0.01, (excess, step)
