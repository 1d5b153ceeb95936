"""Transforms inside torch.utils.checkpoint, which runs them again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Transform
from torch.utils.checkpoint import checkpoint

from pyro_resflow.logdet import Exact, Krylov
from pyro_resflow.transforms import ChannelHalves, LogisticMixtureMap
from tests.transforms.contractions import contraction, density, point
from tests.transforms.registry import coupling
from tests.versions import torch_is

# before torch 2.8 a flow cannot tell that it is checkpointed: then the gradient is right, or torch
# raises a CheckpointError or an error about a graph that was freed
REFUSES = contextlib.nullcontext() if torch_is("2.8") else contextlib.suppress(RuntimeError)

LOSSES: dict[str, Callable[[Transform, Tensor], Tensor]] = {
    "log-density": lambda t, x: density(t, 2).log_prob(x).sum(),
    "value": lambda t, x: t(x).pow(3).sum(),
    "inverse": lambda t, x: t.inv(x).pow(3).sum(),
    "log-determinant": lambda t, x: t.log_abs_det_jacobian(x, t(x)).sum(),
}
CASES: dict[str, Callable[[], Transform]] = {
    "exact": lambda: contraction("sampling", 2, Exact()),
    "chunks": lambda: contraction("density", 2, Exact(chunk_size=1)),
    "krylov": lambda: contraction("density", 2, Krylov()),
    "keep": lambda: contraction("sampling", 2, Krylov(memory="keep")),
    "monotone": lambda: contraction("monotone", 2, Exact()),
    "module": lambda: contraction("module", 2, Exact()),
    "mixture": lambda: coupling(ChannelHalves((2,)), LogisticMixtureMap(2)).double(),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_without(name: str) -> None:
    transform = CASES[name]()
    x = point(2, 4).requires_grad_()
    tensors = [x, *transform.parameters()]
    for loss in LOSSES.values():

        def function(x: Tensor, loss: Callable[..., Tensor] = loss) -> Tensor:
            return loss(transform, x)

        torch.manual_seed(1)
        expected = torch.autograd.grad(function(x), tensors, allow_unused=True)
        torch.manual_seed(1)
        for tensor in tensors:
            tensor.grad = None
        with REFUSES:
            checkpoint(function, x, use_reentrant=False).backward()
            found = [tensor.grad for tensor in tensors]
            torch.testing.assert_close(found, list(expected))


def test_a_pass_outside_is_not_used_inside() -> None:
    transform = contraction("sampling", 2, Exact())
    x = point(2, 4).requires_grad_()
    outside = transform(x)
    inside = checkpoint(lambda x: transform(x).sum(), x, use_reentrant=False)
    (expected,) = torch.autograd.grad(outside.sum(), x)
    with REFUSES:
        inside.backward()
        torch.testing.assert_close(x.grad, expected)
