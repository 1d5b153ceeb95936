r"""The batched Arnoldi process, and the small dense problems that it leads to.

From a start vector b and products with a matrix A, the process builds an orthonormal basis V of
the Krylov space span(b, Ab, A^2 b, ...) and the Hessenberg matrix :math:`H = V^T A V`. Functions
of A applied to b then reduce to functions of the small H:
:math:`f(A)\,b \approx |b|\,V f(H) e_1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .quadrature import log_quadrature

EXHAUSTED = 10
"""Units of rounding of a product's length. A rest below them is rounding alone, and the Krylov
space is exhausted. Each of the two sweeps over a few vectors leaves a unit or two."""


class ArnoldiBasis:
    r"""An orthonormal Krylov basis per sample, grown by one product with A at a time.

    It departs from the textbook process in three ways: it runs on a batch of samples at once; it
    orthogonalizes by two sweeps of modified Gram-Schmidt, in place of one; and it does not stop
    where a sample's space is exhausted. The sweeps take one basis vector at a time, because torch
    takes much longer for a batched product with one vector for each sample.

    Args:
        start: b, shape ``(B, D)``. Half-precision input is promoted to float32.

    Where a sample's Krylov space is exhausted (the next vector vanishes up to rounding), its
    further basis vectors and the matching rows and columns of H are zero. The sample's results are
    exact from then on and stay so, while the rest of the batch goes on.

    Attributes:
        norm: \|b\|, shape ``(B,)``.
        vectors: the basis, each of shape ``(B, D)``.
        last: the newest basis vector; the next product is A times this vector.
    """

    def __init__(self, start: Tensor) -> None:
        start = start.to(torch.promote_types(start.dtype, torch.float32))
        norm = torch.linalg.vector_norm(start, dim=1, keepdim=True)
        self.norm = norm.squeeze(1)
        self.last = start / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        self.vectors = [self.last]

    def extend(self, product: Tensor) -> Tensor:
        """Grow the basis by the product A ``self.last``, shape ``(B, D)``.

        Returns:
            The new column of H, shape ``(B, k + 1)`` after k products; its last entry is below
            the diagonal.
        """
        product = product.to(self.last.dtype)
        size = torch.linalg.vector_norm(product, dim=1, keepdim=True)
        # 1. subtract the overlap with the basis; the rest is not quite orthogonal to it
        column, rest = self._orthogonalized(product)
        # 2. a second sweep restores orthogonality to rounding
        overlaps, rest = self._orthogonalized(rest)
        # 3. normalize; a rest that is only rounding becomes zero, not a random direction
        norm = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        exhausted = norm <= EXHAUSTED * torch.finfo(norm.dtype).eps * size
        inverse = norm.clamp_min(torch.finfo(norm.dtype).tiny).reciprocal_()
        self.last = rest * inverse.masked_fill_(exhausted, 0)
        self.vectors.append(self.last)
        # 4. the column of H: both sweeps' overlaps, and the length below the diagonal
        entries = [first + second for first, second in zip(column, overlaps, strict=True)]
        return torch.cat([*entries, norm.masked_fill_(exhausted, 0)], dim=1)

    def _orthogonalized(self, rest: Tensor) -> tuple[list[Tensor], Tensor]:
        """The overlaps with the basis vectors, each ``(B, 1)``, and the vectors without them."""
        overlaps: list[Tensor] = []
        for vector in self.vectors:
            overlaps.append((vector * rest).sum(1, keepdim=True))
            rest = torch.addcmul(rest, vector, overlaps[-1], value=-1)
        return overlaps, rest

    def last_column(self, product: Tensor) -> Tensor:
        """The next column of H without the entry below the diagonal, shape ``(B, k)``.

        It does not extend the basis and takes far fewer operations. Use it for the last product.

        Args:
            product: A ``self.last``, shape ``(B, D)``.
        """
        product = product.to(self.last.dtype)
        overlaps: list[Tensor] = []
        for vector in self.vectors:
            overlaps.append((vector * product).sum(1, keepdim=True))
        return torch.cat(overlaps, dim=1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """The vector |b| V c, shape ``(B, D)``, from coefficients c of shape ``(B, k)``."""
        first, *rest = (coefficients * self.norm[:, None]).split(1, dim=1)
        total = first * self.vectors[0]
        for coefficient, vector in zip(rest, self.vectors[1:], strict=False):
            total.addcmul_(coefficient, vector)
        return total


class ShiftedSystems:
    r"""The systems :math:`(I + tH)\,x = e_1` for some t, as H grows column by column.

    The factorization I + tH = L U needs no pivoting, because the symmetric part of I + tH is
    positive definite for a contraction. The factors of k columns are the leading part of
    those of k + 1 columns. The same holds for :math:`y = L^{-1} e_1` and :math:`z = U^{-T} e_1`,
    so that nothing is factorized twice. The corner entry of the inverse for the first k columns is
    :math:`\sum_{j \le k} z_j y_j`.

    Args:
        shifts: t, shape ``(T, 1)``.

    Shapes: all entries are ``(T, B)``.
    """

    def __init__(self, shifts: Tensor) -> None:
        self.shifts = shifts
        self.upper: list[list[Tensor]] = []
        self.y: list[Tensor] = []
        self.z: list[Tensor] = []
        self._minus_below: list[Tensor] = []

    def extend(self, column: Tensor) -> None:
        """Add the next column of H, shape ``(B, k + 1)``, whose last entry is below the diagonal.

        The last column may come without that entry.
        """
        # contiguous entries: passes over every third number would be several times slower
        entries = (self.shifts * column.mT.contiguous()[:, None]).unbind()
        # 1. the column of U: L is 1 on its diagonal and has one entry below, as H is Hessenberg
        upper = [entries[0]]
        for entry, minus_below in zip(entries[1:], self._minus_below, strict=False):
            upper.append(entry.addcmul_(minus_below, upper[-1]))
        pivot = upper[-1].add_(1)
        minus_pivot = -pivot
        # 2. the next entries of y and z, by substitution
        if self.y:
            overlap = self.z[0] * upper[0]
            for z, u in zip(self.z[1:], upper[1:-1], strict=True):
                overlap.addcmul_(z, u)
            self.z.append(overlap.div_(minus_pivot))
            self.y.append(self._minus_below[-1] * self.y[-1])
        else:
            self.z.append(pivot.reciprocal())
            self.y.append(torch.ones_like(pivot))
        # 3. the next entry of L, negated
        if len(entries) > len(self.y):
            self._minus_below.append(entries[-1].div_(minus_pivot))
        self.upper.append(upper)

    def solve(self, weights: Sequence[Tensor | float], shifts: int | None = None) -> list[Tensor]:
        r"""The entries of :math:`\sum_k s_k (x^{(k)} - x^{(k-1)})`, one for each column.

        :math:`x^{(k)} = U_k^{-1} y_k` solves the system of the first k columns; its increments are
        the columns of :math:`U^{-1}` times y.

        Args:
            weights: s, a number or a tensor of shape ``(B,)`` for each column.
            shifts: number of shifts, the first ones, whose systems are solved; default: all.
        """
        size = len(self.y)
        solution: list[Tensor] = []  # from the last entry to the first
        for i in reversed(range(size)):
            left, weight = self.y[i][:shifts], weights[i]
            if isinstance(weight, Tensor) or weight != 1.0:
                left = left * weight
            for j, x in enumerate(solution):
                left = torch.addcmul(left, self.upper[size - 1 - j][i][:shifts], x, value=-1)
            solution.append(left / self.upper[i][i][:shifts])
        return solution[::-1]


class LogarithmAndInverse:
    r"""Increments of :math:`e_1^T \log(I + H)\,e_1` and of :math:`(I + H)^{-1} e_1` as H grows.

    For a sum of logarithms :math:`f(z) = \sum_i s_i \log(1 + t_i z)`, these are the increments of
    :math:`e_1^T f(H)\,e_1` and of :math:`f'(H)\,e_1 = \sum_i s_i t_i (I + t_i H)^{-1} e_1`.

    :math:`\log(I+H) = \int_0^1 (I - (I+tH)^{-1})\,dt/t` is computed by a quadrature whose error is
    at the level of rounding for every H of norm below 1, see :mod:`pyro_resflow.quadrature`. The
    systems of all nodes, and those of the derivative, are factorized together.

    Args:
        like: gives dtype and device.
        terms: the pairs :math:`(s_i, t_i)`, with :math:`|t_i| \le 1`.
    """

    def __init__(self, like: Tensor, terms: Sequence[tuple[float, float]] = ((1.0, 1.0),)) -> None:
        self._rule = _rule(tuple(terms), like.dtype, like.device)
        self._systems = ShiftedSystems(self._rule.shifts)

    def extend(self, column: Tensor) -> Tensor:
        """Add the next column of H, ``(B, k + 1)``; return the logarithm's increment, ``(B,)``.

        The last column may come without its entry below the diagonal.
        """
        self._systems.extend(column)
        if len(self._systems.y) == 1:  # for one column the logarithm is known
            return self._rule.signs @ torch.log1p(self._rule.ends * column[:, 0])
        # the increments of the corner entries of the inverses of I + tH
        return self._rule.minus_weights @ (self._systems.z[-1] * self._systems.y[-1])

    def inverse(self, weights: Sequence[Tensor | float]) -> Tensor:
        """The weighted sum of the increments of the inverse's first column, shape ``(B, k)``."""
        factors = self._rule.factors
        entries = self._systems.solve(weights, len(factors))
        return weighted_sum(torch.stack(entries, dim=-1).unbind(), factors)


def weighted_sum(values: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
    """The sum of values, each times its weight, for at least one value."""
    total: Tensor | None = None
    for value, weight in zip(values, weights, strict=True):
        if isinstance(weight, Tensor) or weight != 1.0:
            value = value * weight
        total = value if total is None else total + value
    assert total is not None  # for the type checker
    return total


class _Rule(NamedTuple):
    """The integrals of a sum of logarithms.

    Attributes:
        ends: t of each logarithm, shape ``(terms, 1)``.
        signs: s of each logarithm, shape ``(terms,)``.
        factors: s t of each logarithm.
        shifts: the ends, and the nodes of all integrals, shape ``(terms + T, 1)``.
        minus_weights: the weights of the shifts, negated and divided by t, shape
            ``(terms + T,)``; the ends are not nodes and have weight 0.
    """

    ends: Tensor
    signs: Tensor
    factors: tuple[float, ...]
    shifts: Tensor
    minus_weights: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _rule(
    terms: tuple[tuple[float, float], ...], dtype: torch.dtype, device: torch.device
) -> _Rule:
    nodes, weights = log_quadrature(dtype, device)
    s, t = torch.tensor(terms, dtype=dtype, device=device).unbind(1)
    return _Rule(
        ends=t[:, None],
        signs=s,
        factors=tuple(s * t for s, t in terms),
        shifts=torch.cat([t, (t[:, None] * nodes).flatten()])[:, None],
        minus_weights=torch.cat([torch.zeros_like(t), (-s[:, None] * weights / nodes).flatten()]),
    )
