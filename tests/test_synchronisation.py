"""A training step reads no value from its device, so that an accelerator need not wait.

A dispatch mode refuses every operation that returns values to the host. Roulettes draw their
number of terms there; here they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_resflow import residual_flow
from pyro_resflow.distributions import Dequantized
from pyro_resflow.flows import ConvBlock, ResidualFlow
from pyro_resflow.logdet import Exact, Krylov, RussianRoulette
from pyro_resflow.nn import LipschitzConvNet, SpectralNorm
from pyro_resflow.transforms import Compose, Inverse, Residual, UniformDequantization

READS = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.nonzero",
    "aten._linalg_eigh",  # reads its error codes
    "aten.linalg_inv_ex",
}


@pytest.fixture(autouse=True)
def _without_validation() -> Iterator[None]:
    """Pyro's checks of arguments read values too."""
    with pyro.validation_enabled(False):
        yield


class ValueReadError(RuntimeError):
    """An operation returned a value to the host."""


class ReadsNothing(TorchDispatchMode):
    """Raises for operations that return values to the host."""

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if str(function).rpartition(".")[0] in READS:
            raise ValueReadError(str(function))
        return function(*args, **(kwargs or {}))


class Given:
    """A tail whose numbers are given in advance."""

    def __init__(self) -> None:
        self.numbers: Iterator[int] = cycle([0, 2, 1])

    def draw(self, generator: torch.Generator | None) -> int:
        return next(self.numbers)

    def survival(self, j: int) -> float:
        return 3.0**-j


def without_tolerance(flow: nn.Module) -> nn.Module:
    """Measure all norms of a flow by a fixed number of iterations."""
    for norm in flow.modules():
        if isinstance(norm, SpectralNorm):
            norm.tolerance, norm.max_iterations = None, 12
    return flow


def image_blocks(logdet: Krylov) -> nn.Module:
    blocks = [Residual(LipschitzConvNet((1, 4, 4), (9, 9)), logdet=logdet) for _ in range(2)]
    return Inverse(Compose(blocks))


def loss_of(flow: nn.Module, event_shape: Sequence[int]) -> Callable[[], Tensor]:
    base = dist.Normal(torch.zeros(*event_shape), 1.0).to_event(len(event_shape))
    density = dist.TransformedDistribution(base, [flow])
    x = torch.randn(16, *event_shape)
    return lambda: -density.log_prob(x).mean()


FLOWS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "vectors_exact": (lambda: residual_flow(3, 2, [8], fast="density", logdet=Exact()), (3,)),
    "vectors_krylov": (
        lambda: residual_flow(12, 2, [8], fast="density", logdet=Krylov(tail=Given())),
        (12,),
    ),
    "wide_vectors": (
        lambda: residual_flow(70, 2, [80], fast="density", logdet=Krylov(tail=Given())),
        (70,),
    ),
    "vectors_roulette": (
        lambda: residual_flow(3, 2, [8], fast="density", logdet=RussianRoulette(tail=Given())),
        (3,),
    ),
    "images_krylov": (lambda: image_blocks(Krylov(tail=Given())), (1, 4, 4)),
    "images_keep": (lambda: image_blocks(Krylov(tail=Given(), memory="keep")), (1, 4, 4)),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_training_step_reads_nothing(name: str) -> None:
    build, event_shape = FLOWS[name]
    flow = without_tolerance(build())
    loss = loss_of(flow, event_shape)
    optimizer = torch.optim.SGD(flow.parameters(), 1e-2)
    loss().backward()  # the first batch initialises normalizations and fills caches
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        with ReadsNothing():
            loss().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_a_step_of_dequantized_images_reads_nothing() -> None:
    flow = ResidualFlow(
        (1, 4, 4), (1, 1), network=ConvBlock(9), end_blocks=0, logdet=Krylov(tail=Given())
    )
    without_tolerance(flow)
    d = Dequantized(flow.distribution(), UniformDequantization(8), 8)
    images = torch.randint(8, (32, 1, 4, 4))
    optimizer = torch.optim.SGD(flow.parameters(), 1e-2)
    d.bits_per_dim(images).mean().backward()
    optimizer.step()
    with ReadsNothing():
        d.bits_per_dim(images).mean().backward()


def test_a_tolerance_reads_values() -> None:
    flow = image_blocks(Krylov(tail=Given()))
    with pytest.raises(ValueReadError), ReadsNothing():
        loss_of(flow, (1, 4, 4))()


def test_sampling_and_scoring_the_sample_compares_values_once() -> None:
    """Code of the user may write to weights between the two."""
    flow = without_tolerance(residual_flow(3, 2, [8], logdet=Exact()))
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    density = dist.TransformedDistribution(base, [flow])
    density.rsample((5,))  # fills caches
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.1)
    with ReadsNothing():
        z = density.rsample((5,))
    with pytest.raises(ValueReadError, match="equal"), ReadsNothing():
        density.log_prob(z)
