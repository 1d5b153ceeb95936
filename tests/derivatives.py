"""Derivatives by torch or finite differences, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


def reference_jvp(function: Function, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """function(x) and its Jacobian times each of v, shape (S, *x.shape); differentiable."""
    pairs = [torch.autograd.functional.jvp(function, x, row, create_graph=True) for row in v]
    return pairs[0][0], torch.stack([tangent for _, tangent in pairs])


def jacobian(function: Function, x: Tensor) -> Tensor:
    """The Jacobian of each sample as a matrix: x of (N, *event) gives (N, D, D)."""
    x = x.detach().requires_grad_()
    entries = function(x).flatten(1).sum(0)  # no sample depends on another
    rows = [torch.autograd.grad(entry, x, retain_graph=True)[0].flatten(1) for entry in entries]
    return torch.stack(rows, dim=1)


def weighted_gradients(
    outputs: Iterable[Tensor], weights: Iterable[Tensor], inputs: Iterable[Tensor]
) -> list[Tensor]:
    """Gradients of the sum of outputs times weights; zeros where an input has no part in it."""
    total = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    return list(torch.autograd.grad(total, list(inputs), **options))


@torch.no_grad()
def central_differences(
    value: Callable[[], Tensor], tensor: Tensor, step: float = 1e-5, entries: int = 6
) -> tuple[Tensor, Tensor]:
    """Derivatives of a scalar by a few entries of a tensor that is perturbed in place.

    Returns:
        The flat indices of the entries and the derivatives by them.
    """
    indices = torch.randperm(tensor.numel())[:entries]
    differences = []
    for index in indices:
        entry = tensor.view(-1)[index]
        start = entry.clone()
        entry.copy_(start + step)
        above = value()
        entry.copy_(start - step)
        below = value()
        entry.copy_(start)
        differences.append((above - below) / (2 * step))
    return indices, torch.stack(differences)


def check_gradients(
    value: Callable[[], Tensor],
    inputs: Sequence[Tensor],
    *,
    rtol: float,
    atol: float,
    entries: int = 6,
) -> None:
    """Autograd's derivatives of a scalar are those by central differences.

    The latter are good to the square of their step, and to the error of the value divided by it.
    """
    gradients = torch.autograd.grad(value(), inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        indices, differences = central_differences(value, tensor, entries=entries)
        found = gradient.flatten()[indices]
        torch.testing.assert_close(found, differences, rtol=rtol, atol=atol)


def gradient(function: Function, x: Tensor) -> Tensor:
    """The gradient of a scalar function, by torch's engine."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def hessian_by_differences(function: Function, x: Tensor, step: float = 1e-5) -> Tensor:
    """The Hessian of a scalar function of a vector, from differences of its gradients."""
    steps = step * torch.eye(len(x), dtype=x.dtype)
    pairs = [(gradient(function, x + each), gradient(function, x - each)) for each in steps]
    return torch.stack([(above - below) / (2 * step) for above, below in pairs])
