"""Several threads that use one transform at the same time."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_resflow import residual
from pyro_resflow.logdet import Exact
from pyro_resflow.nn import InducedNorm, LipschitzMLP
from pyro_resflow.transforms import Residual
from pyro_resflow.transforms.core import cache
from tests.threads import at_once, eager_switching
from tests.transforms.registry import TRANSFORMS

# Not inverse_of_pyros: where torch calls one of Pyro's transforms directly, it finds there what
# was last evaluated in any thread. Inside a Compose of ours it is guarded.
NAMES = [
    "compose_with_pyros",
    "image_flow",
    "multiscale",
    "residual_conv",
    "residual_dense_net",
    "residual_flow",
    "residual_flow_density",
    "residual_module",
]


@pytest.fixture(name="eager_switching")
def _eager_switching() -> Iterator[None]:
    with eager_switching():
        yield


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def test_threads_that_score_one_tensor_have_a_graph_each() -> None:
    block = residual(2, [8], fast="density", logdet=Exact())
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [block])
    y = torch.randn(5, 2)
    here = flow.log_prob(y)
    there = in_another_thread(lambda: flow.log_prob(y))
    here.sum().backward()
    there.sum().backward()


def test_a_thread_takes_no_log_determinant_that_another_has_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = residual(2, [8], logdet=Exact())
    x, other = torch.randn(5, 2), 3 * torch.randn(5, 2)
    y = block(x)
    hold = cache.Conditions.hold

    def disturbed(self: Any, *given: list[Any]) -> bool:
        """Another thread is given the processor while this one looks at its cache."""
        holds = hold(self, *given)
        monkeypatch.setattr(cache.Conditions, "hold", hold)
        in_another_thread(lambda: block(other))
        return holds

    monkeypatch.setattr(cache.Conditions, "hold", disturbed)
    found = block.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(found, block.call_and_ladj(x)[1])


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_one_thread(name: str) -> None:
    """From the first call after the weights have changed, which measures their norms."""
    case = TRANSFORMS[name]
    transform = case.build()
    alone = copy.deepcopy(transform)
    batches = [transform._call(case.draw(3, *case.event_shape)).detach() for _ in range(3)]

    def score(transform: Transform, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            x = transform.inv(y)
            return x, transform.log_abs_det_jacobian(x, y)

    expected = [score(alone, y) for y in batches]
    for parameter in getattr(transform, "parameters", tuple)():
        torch.autograd.graph.increment_version(parameter)  # as if it had been written to

    def score_all(first: int) -> list[tuple[Tensor, Tensor]]:
        return [score(transform, batches[(first + i) % 3]) for i in range(3)]

    found = at_once([lambda first=first: score_all(first) for first in range(3)])
    for first, results in enumerate(found):
        for i, result in enumerate(results):
            torch.testing.assert_close(result, expected[(first + i) % 3], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("name", ["spectral", "induced", "module"])
def test_each_thread_has_its_own_gradients(name: str) -> None:
    if name == "module":
        block = TRANSFORMS["residual_module"].build()
    else:
        norm = InducedNorm.chain(2) if name == "induced" else None
        block = Residual(LipschitzMLP(3, [8], norm=norm), logdet=Exact())
    batches = [torch.randn(5, 3) for _ in range(3)]

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = block(x)
        loss = y.square().sum() + block.log_abs_det_jacobian(x, y).sum()
        loss.backward(inputs=[x])
        assert x.grad is not None
        return x.grad

    expected = [gradient(x) for x in batches]
    for _ in range(3):
        found = at_once([lambda x=x: gradient(x) for x in batches])
        torch.testing.assert_close(found, expected)
