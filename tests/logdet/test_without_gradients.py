"""Without gradients, an estimator gives the same numbers by fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.operations import OperationCounter
from pyro_resflow.logdet import LOG_CAYLEY, LOG_ONE_PLUS, Exact, LogDetEstimator, SpectralFunction
from pyro_resflow.nn.stages.tangents import CHUNK_ENTRIES
from tests.logdet.registry import CASES
from tests.nn.networks.variants import VARIANTS, event_dims


def compare(
    estimator: LogDetEstimator,
    net: nn.Module,
    x: torch.Tensor,
    function: SpectralFunction,
    is_shorter: bool = True,
) -> None:
    found = []
    counts = []
    estimator(net, x, event_dims(net), function)  # measures norms, and computes quadratures
    for with_gradients in (False, True):
        torch.manual_seed(0)
        with torch.set_grad_enabled(with_gradients), OperationCounter() as counter:
            value, trace = estimator(net, x, event_dims(net), function)
        assert value.requires_grad == trace.requires_grad == with_gradients
        found.append((value.detach(), trace.detach()))
        counts.append(counter.counts.total())
    torch.testing.assert_close(*found)
    assert not is_shorter or counts[0] <= counts[1]


@pytest.mark.parametrize("function", [LOG_ONE_PLUS, LOG_CAYLEY], ids=["log", "cayley"])
@pytest.mark.parametrize("name", CASES)
def test_estimates_are_the_same(name: str, function: SpectralFunction) -> None:
    net, event_shape = VARIANTS["mlp LipSwish"]()
    compare(CASES[name].make(), net, torch.randn(5, *event_shape), function)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_exact_log_determinant_is_the_same(name: str) -> None:
    net, event_shape = VARIANTS[name]()
    compare(Exact(), net, torch.randn(5, *event_shape), LOG_ONE_PLUS)


def test_a_batch_of_several_chunks_keeps_its_order() -> None:
    net, event_shape = VARIANTS["mlp LipSwish"]()
    x = torch.randn(2 * CHUNK_ENTRIES // (3 * 6) + 5, *event_shape)
    compare(Exact(), net, x, LOG_ONE_PLUS, is_shorter=False)
