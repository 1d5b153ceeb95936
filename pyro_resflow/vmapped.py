"""Evaluate a network under ``torch.func.vmap`` as one batch that joins all mapped batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .linearization import AutogradNetwork, Linearizable


class VmappedNetwork(AutogradNetwork):
    """A network that ``torch.func.vmap`` maps over its input and some of its coefficients.

    Solvers and estimators decide by values when to stop, which vmap does not support. They
    therefore receive the joint batch, ``(B * N, *event)``, and this network, which evaluates each
    part of the batch with its own coefficients.

    Args:
        net: the network.
        batch_size: B.
        in_dims: for each coefficient, the dimension that is mapped over, or ``None``.
    """

    def __init__(self, net: Linearizable, batch_size: int, in_dims: Sequence[int | None]) -> None:
        self.mapped = net
        self.batch_size = batch_size
        self.in_dims = tuple(in_dims)

    def __call__(self, x: Tensor) -> Tensor:
        return self.evaluate(x, self.coefficients())

    def coefficients(self) -> tuple[Tensor, ...]:
        return self.mapped.coefficients()

    def evaluate(self, x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
        together = torch.func.vmap(self.mapped.evaluate, in_dims=(0, self.in_dims))
        values: Tensor = together(x.unflatten(0, self.split(x)), tuple(coefficients))
        return values.flatten(0, 1)

    def split(self, x: Tensor) -> tuple[int, int]:
        """B and N, from a tensor of shape ``(B * N, ...)``."""
        return self.batch_size, len(x) // self.batch_size


def folded(x: Tensor, in_dim: int | None, batch_size: int) -> Tensor:
    """Join the mapped batches into one, shape ``(B * N, *event)``.

    Args:
        x: the tensor that ``vmap`` passes to a rule.
        in_dim: the mapped dimension; ``None`` if the tensor is the same for all.
        batch_size: B.
    """
    batches = x.expand(batch_size, *x.shape) if in_dim is None else x.movedim(in_dim, 0)
    return batches.flatten(0, 1)
