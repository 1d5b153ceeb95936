"""The whole Jacobian of a network at a batch: in closed form, or from products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..differentiation import added
from ..linearization import Linearization

KEPT_ENTRIES = 2**22
"""Entries that are kept from the forward to the backward pass at most, 16 MiB in float32 for each
block; more than these are computed again."""


class FullJacobian(Protocol):
    """A transposed Jacobian, and the derivatives of value and Jacobian."""

    rows: Tensor
    """The derivatives of all outputs by each input, shape ``(N, D, D)``."""

    entries: int
    """The number of entries that it keeps for :meth:`pulled`."""

    def pulled(
        self, value_cotangent: Tensor, rows_cotangent: Tensor, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """Pull cotangents of value and rows back to x and the coefficients; can be called once."""


class JacobianByProducts:
    """The transposed Jacobian from products with the unit vectors.

    Args:
        linearization: of the network at the batch. Its derivatives can be taken once.
        again: linearizes the network once more, for each further chunk.
        chunk_size: unit vectors taken at once; ``None`` for all.
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
        weighted = rows_cotangent.movedim(1, 0).reshape(-1, *value_cotangent.shape)
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
    """The Jacobian by the way that a linearization offers itself, else by products.

    Args:
        linearization: of the network at the batch. It is used up.
    """
    offered = getattr(linearization, "full_jacobian", None)
    found: FullJacobian | None = offered() if callable(offered) else None
    return JacobianByProducts(linearization) if found is None else found


def unit_vectors(x: Tensor, chunk_size: int | None) -> Iterator[Tensor]:
    """The unit vectors of every sample of x, ``(D, N, *event)``, in chunks."""
    size = x.shape[1:].numel()
    units = identity(size, x.dtype, x.device).view(size, 1, *x.shape[1:])
    yield from units.expand(size, *x.shape).split(chunk_size or max(1, size))


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The identity matrix, not to be written to."""
    return torch.eye(size, dtype=dtype, device=device)
