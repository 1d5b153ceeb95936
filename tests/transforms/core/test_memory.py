"""A pass keeps nothing alive that cannot be reached, by reference counts alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from benchmarks.live_memory import LiveMemory
from pyro_resflow.transforms import AffineMap, ChannelHalves, LogisticMixtureMap
from tests.logdet.registry import CASES, estimator
from tests.transforms.contractions import contraction, point
from tests.transforms.registry import coupling

DIRECTIONS: dict[str, Callable[[Transform, Tensor], object]] = {
    "forward": lambda t, x: t(x),
    "inverse": lambda t, x: t.inv(x),
    "log-determinant": lambda t, x: t.log_abs_det_jacobian(x, t(x)),
}


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def check_nothing_accumulates(transform: Transform, calls: int) -> None:
    """Passes with gradients enabled and without a backward pass leave the last one, if any."""
    for evaluate in DIRECTIONS.values():
        with LiveMemory() as memory:
            inputs, first = [], 0
            for i in range(calls):
                x = point(2, 5).requires_grad_(i % 2 == 0)
                inputs.append(weakref.ref(x))
                evaluate(transform, x)
                del x
                first = first or memory.live
            assert sum(reference() is not None for reference in inputs) <= 1
            assert memory.live <= 2 * first
        transform.clear_cache()
        assert all(reference() is None for reference in inputs)


CALLS = pytest.mark.parametrize("calls", [4, pytest.param(100, marks=pytest.mark.slow)])


@CALLS
@pytest.mark.parametrize("logdet", CASES)
def test_passes_of_each_estimator_do_not_accumulate(logdet: str, calls: int) -> None:
    check_nothing_accumulates(contraction("sampling", 2, estimator(logdet)), calls)


@CALLS
@pytest.mark.parametrize("logdet", ["exact", "krylov keep"])
@pytest.mark.parametrize("name", ["conditional", "monotone", "density", "module"])
def test_passes_of_each_contraction_do_not_accumulate(name: str, logdet: str, calls: int) -> None:
    check_nothing_accumulates(contraction(name, 2, estimator(logdet)), calls)


@CALLS
@pytest.mark.parametrize("elementwise", [AffineMap(), LogisticMixtureMap(2)])
def test_passes_of_couplings_do_not_accumulate(elementwise: torch.nn.Module, calls: int) -> None:
    check_nothing_accumulates(coupling(ChannelHalves((2,)), elementwise).double(), calls)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", ["conditional", "density", "monotone"])
def test_the_last_pass_goes_with_its_transform(name: str, enabled: bool) -> None:
    for logdet in ("exact", "krylov keep"):
        for evaluate in DIRECTIONS.values():
            transform, x = contraction(name, 2, estimator(logdet)), point(2, 5)
            gone = [weakref.ref(transform), weakref.ref(x)]
            with torch.set_grad_enabled(enabled):
                evaluate(transform, x)
            del transform, x
            assert [reference() for reference in gone] == [None, None]
