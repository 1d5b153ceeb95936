"""The full Jacobian of a network at a batch: in closed form, or from products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..differentiation import added
from ..linearization import Linearization

KEPT_ENTRIES = 2**22
"""Largest number of entries that a block keeps from the forward to the backward pass: 16 MiB in
float32. The backward pass computes a larger Jacobian again."""


class FullJacobian(Protocol):
    """A transposed Jacobian, and the derivatives of value and Jacobian."""

    rows: Tensor
    """For each input, the derivatives of all outputs with respect to it, shape ``(N, D, D)``."""

    entries: int
    """The number of entries kept for :meth:`pulled`."""

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Pull back the cotangents of value and rows to x and the coefficients; call it once."""


class JacobianByProducts:
    """The transposed Jacobian from products with the unit vectors.

    Args:
        linearization: the network's linearization at the batch; :meth:`pulled` uses it up.
        again: linearizes the network again, for each further chunk.
        chunk_size: number of unit vectors taken at once; ``None`` for all.
    """

    entries = 0

    def __init__(
        self,
        linearization: Linearization,
        again: Callable[[], Linearization] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self.linearization: Linearization | None = linearization
        self.again = again
        self.chunk_size = chunk_size
        units = unit_vectors(linearization.value, chunk_size)
        columns = torch.cat([linearization.jvp(chunk) for chunk in units])
        self.rows = columns.flatten(2).movedim(1, 0)

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """See :meth:`FullJacobian.pulled`."""
        inputs = rows_cotangent.shape[1]  # torch cannot infer it for an empty batch
        weighted = rows_cotangent.movedim(1, 0).reshape(inputs, *value_cotangent.shape)
        parts = []
        for units in unit_vectors(value_cotangent, self.chunk_size):
            linearization, self.linearization = self.linearization, None
            if linearization is None:
                assert self.again is not None  # for the type checker
                linearization = self.again()
            part, weighted = weighted[: len(units)], weighted[len(units) :]
            parts.append(linearization.dual_vjp(units, value_cotangent, part, needed))
            value_cotangent = torch.zeros_like(value_cotangent)  # counts once
        return [added(each) for each in zip(*parts, strict=True)]


def full_jacobian(linearization: Linearization) -> FullJacobian:
    """The linearization's own ``full_jacobian`` if it has one, else the Jacobian from products.

    Args:
        linearization: the network's linearization at the batch; do not use it afterwards.
    """
    offered = getattr(linearization, "full_jacobian", None)
    found: FullJacobian | None = offered() if callable(offered) else None
    return JacobianByProducts(linearization) if found is None else found


def transposed_jacobian(linearization: Linearization) -> Tensor:
    """The transposed Jacobian, shape ``(N, D, D)``, where no derivatives are needed.

    It is the linearization's own ``transposed_jacobian`` if it has one.

    Args:
        linearization: the network's linearization at the batch; do not use it afterwards.
    """
    offered = getattr(linearization, "transposed_jacobian", None)
    rows: Tensor = offered() if callable(offered) else full_jacobian(linearization).rows
    return rows


def unit_vectors(x: Tensor, chunk_size: int | None) -> Iterator[Tensor]:
    """The unit vectors of every sample of x, ``(D, N, *event)``, in chunks."""
    size = x.shape[1:].numel()
    units = identity(size, x.dtype, x.device).view(size, 1, *x.shape[1:])
    yield from units.expand(size, *x.shape).split(chunk_size or max(1, size))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The identity matrix, which is shared: do not write to it."""
    return torch.eye(size, dtype=dtype, device=device)
