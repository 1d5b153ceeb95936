r"""The batched Arnoldi process, and the small dense problems that it leaves.

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
"""Units of rounding of a product's length: a rest below them is rounding, and the space complete.
Each of the two sweeps over a few vectors leaves a unit or two."""

SMALL_ROOT = 0.5
"""Beyond this root the artanh goes by the logarithm of 1 - x, which is known better than x near
1."""


class ArnoldiBasis:
    r"""An orthonormal Krylov basis per sample, grown by one product with A at a time.

    The textbook's process, with three departures: it runs for a batch of samples at once; it
    orthogonalizes by two sweeps of classical Gram-Schmidt, each two products of matrices, in place
    of one sweep of modified Gram-Schmidt; and it does not stop where a sample's space is
    exhausted.

    Args:
        start: b, shape ``(B, D)``. Half-precision input is promoted to float32.

    Where a sample's Krylov space is exhausted (the next vector vanishes up to rounding), its
    further basis vectors and the matching rows and columns of H are zero. The sample's results are
    exact from then on and stay so, while the rest of the batch goes on.

    Attributes:
        norm: \|b\|, shape ``(B,)``.
        vectors: the basis, each of shape ``(B, D)``.
        last: the newest of them: the next product is A times this.
    """

    def __init__(self, start: Tensor) -> None:
        start = start.to(torch.promote_types(start.dtype, torch.float32))
        self.norm = torch.linalg.vector_norm(start, dim=-1)
        self.last = torch.where(self.norm[:, None] > 0, start / self.norm[:, None], 0)
        self.vectors = [self.last]

    def extend(self, product: Tensor) -> Tensor:
        """Grow the basis by the product A ``self.last``, shape ``(B, D)``.

        Returns:
            The new column of H, shape ``(B, k + 1)`` after k products: the last entry is below
            the diagonal.
        """
        product = product.to(self.last.dtype)
        size = torch.linalg.vector_norm(product, dim=-1)
        basis = torch.stack(self.vectors, dim=1)
        # 1. take the overlap with the basis away; the rest is not quite orthogonal to it
        column = torch.bmm(basis, product[..., None])
        rest = torch.baddbmm(product[..., None], basis.mT, column, alpha=-1)
        # 2. a second sweep restores orthogonality to rounding
        overlap = torch.bmm(basis, rest)
        rest = torch.baddbmm(rest, basis.mT, overlap, alpha=-1).squeeze(-1)
        # 3. normalize; a rest of nothing but rounding becomes zero, not a random direction
        norm = torch.linalg.vector_norm(rest, dim=-1)
        exhausted = norm <= EXHAUSTED * torch.finfo(norm.dtype).eps * size
        inverse = norm.clamp_min(torch.finfo(norm.dtype).tiny).reciprocal()
        self.last = rest * inverse.masked_fill(exhausted, 0)[:, None]
        self.vectors.append(self.last)
        # 4. the column of H: both sweeps' overlaps, and the length below the diagonal
        norm = norm.masked_fill(exhausted, 0)
        return torch.cat([(column + overlap).squeeze(-1), norm[:, None]], dim=-1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """The vector |b| V c, shape ``(B, D)``, from coefficients c of shape ``(B, k)``."""
        basis = torch.stack(self.vectors[: coefficients.shape[-1]], dim=1)
        return torch.bmm((coefficients * self.norm[:, None])[:, None], basis).squeeze(1)


class ShiftedSystems:
    r"""The systems :math:`(I + tH)\,x = e_1` for some t, as H grows column by column.

    Factorized as I + tH = L U without pivoting. That is stable here, because the symmetric part of
    I + tH is positive definite for a contraction. The factors of k columns are the leading part of
    those of k + 1, and so are :math:`y = L^{-1} e_1` and :math:`z = U^{-T} e_1`: nothing is
    factorized twice. The corner entry of the inverse for the first k columns is
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
        """Take the next column of H, shape ``(B, k + 1)``, its entry below the diagonal last."""
        entries = (self.shifts[..., None] * column).unbind(-1)
        # 1. the column of U: L is 1 on its diagonal and has one entry below, for H is Hessenberg
        upper = [entries[0]]
        for entry, minus_below in zip(entries[1:], self._minus_below, strict=False):
            upper.append(torch.addcmul(entry, minus_below, upper[-1]))
        pivot = upper[-1] = upper[-1] + 1
        minus_pivot = -pivot
        # 2. the next entries of y and z, by substitution
        if self.y:
            overlap = self.z[0] * upper[0]
            for z, u in zip(self.z[1:], upper[1:-1], strict=True):
                overlap = torch.addcmul(overlap, z, u)
            self.z.append(overlap / minus_pivot)
            self.y.append(self._minus_below[-1] * self.y[-1])
        else:
            self.z.append(pivot.reciprocal())
            self.y.append(torch.ones_like(pivot))
        # 3. the next entry of L, negated
        self._minus_below.append(entries[-1] / minus_pivot)
        self.upper.append(upper)

    def solve(self, weights: Sequence[Tensor | float]) -> list[Tensor]:
        r"""The entries of :math:`\sum_k s_k (x^{(k)} - x^{(k-1)})`, one for each column.

        :math:`x^{(k)} = U_k^{-1} y_k` solves the system of the first k columns; its increments are
        the columns of :math:`U^{-1}` times y.

        Args:
            weights: s, a number or a tensor of shape ``(B,)`` for each column.
        """
        size = len(self.y)
        solution: list[Tensor] = []  # from the last entry to the first
        for i in reversed(range(size)):
            left = weighted(self.y[i], weights[i])
            for j, x in enumerate(solution):
                left = torch.addcmul(left, self.upper[size - 1 - j][i], x, value=-1)
            solution.append(left / self.upper[i][i])
        return solution[::-1]


class LogarithmAndInverse:
    r"""Increments of :math:`e_1^T \log(I + H)\,e_1` and of :math:`(I + H)^{-1} e_1` as H grows.

    Or, for a sum of logarithms :math:`f(z) = \sum_i s_i \log(1 + t_i z)`, of
    :math:`e_1^T f(H)\,e_1` and of :math:`f'(H)\,e_1 = \sum_i s_i t_i (I + t_i H)^{-1} e_1`.

    One column and two have closed forms. From the third on,
    :math:`\log(I+H) = \int_0^1 (I - (I+tH)^{-1})\,dt/t` by a quadrature whose error is that of
    rounding for every H of norm below 1, see :mod:`pyro_resflow.quadrature`. Its systems begin
    with the third column, so that an estimate of two columns solves none.

    Args:
        like: gives dtype and device.
        terms: the pairs :math:`(s_i, t_i)`, with :math:`|t_i| \le 1`.
    """

    def __init__(self, like: Tensor, terms: Sequence[tuple[float, float]] = ((1.0, 1.0),)) -> None:
        self._factors = [s * t for s, t in terms]
        self._rule = _rule(tuple(terms), like.dtype, like.device)
        self._ends = ShiftedSystems(self._rule.ends)
        self._inside: ShiftedSystems | None = None
        self._columns: list[Tensor] = []

    def extend(self, column: Tensor) -> Tensor:
        """Take the next column of H, shape ``(B, k + 1)``; the logarithm's increment, ``(B,)``."""
        self._columns.append(column)
        self._ends.extend(column)
        if len(self._columns) == 1:
            return self._rule.weights @ torch.log1p(self._rule.ends * column[:, 0])
        if len(self._columns) == 2:
            return self._rule.weights @ self._second_increments()
        return self._rule.minus_weights @ self._corners()

    def _corners(self) -> Tensor:
        """The increments of the corner entries of the inverses of I + tH, shape ``(T, B)``."""
        if self._inside is None:
            self._inside = ShiftedSystems(self._rule.nodes)
            for column in self._columns[:-1]:
                self._inside.extend(column)
        self._inside.extend(self._columns[-1])
        return self._inside.z[-1] * self._inside.y[-1]

    def _second_increments(self) -> Tensor:
        r"""The second increment of each logarithm, shape ``(terms, B)``.

        Of a 2 x 2 matrix W with half the trace :math:`\tau`, determinant d and
        :math:`r = \sqrt{\tau^2 - d}`,
        :math:`\log W = \tfrac12 \log d + (W - \tau I)\,\mathrm{artanh}(r/\tau)/r`; where r is
        imaginary, artanh becomes arctan.
        """
        first, second = self._columns
        t = self._rule.ends
        pivots = self._ends.upper[0][0], self._ends.upper[1][1]  # d is their product
        half_trace = 1 + t * (first[:, 0] + second[:, 1]) / 2
        half_difference = t * (first[:, 0] - second[:, 1]) / 2
        square = half_difference.square() + t * t * (first[:, 1] * second[:, 0])
        normalized = half_difference / half_trace
        quotient = _artanh_quotient(
            square / half_trace.square(), pivots[0] * pivots[1] / half_trace.square()
        )
        return (pivots[1] / pivots[0]).log() / 2 + normalized * quotient

    def inverse(self, weights: Sequence[Tensor | float]) -> Tensor:
        """The weighted sum of the increments of the inverse's first column, shape ``(B, k)``."""
        columns = torch.stack(self._ends.solve(weights), dim=-1)
        return weighted_sum(columns.unbind(), self._factors)


def _artanh_quotient(square: Tensor, complement: Tensor) -> Tensor:
    r""":math:`\mathrm{artanh}(\sqrt{x})/\sqrt{x}` for x < 1; arctan for negative x.

    Args:
        square: x.
        complement: 1 - x, known better than x where x is near 1.
    """
    root = square.abs().sqrt().clamp_min(torch.finfo(square.dtype).tiny)
    near_one = torch.log1p(root) - complement.log() / 2
    near_zero = torch.atanh(root.clamp(max=SMALL_ROOT))
    artanh = torch.where(square > SMALL_ROOT**2, near_one, near_zero)
    return torch.where(square > 0, artanh, torch.atan(root)) / root


def weighted(x: Tensor, weight: Tensor | float) -> Tensor:
    """x times a weight; x itself if that is 1.0."""
    return x if isinstance(weight, float) and weight == 1.0 else x * weight


def weighted_sum(values: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
    """The sum of values, each times its weight; at least one."""
    total = weighted(values[0], weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + weighted(value, weight)
    return total


class _Rule(NamedTuple):
    """The integrals of a sum of logarithms.

    Attributes:
        ends: the t of each logarithm, shape ``(terms, 1)``.
        weights: the s of each logarithm, shape ``(terms,)``.
        nodes: of all integrals, shape ``(T, 1)``.
        minus_weights: of the nodes, negated and divided by t, shape ``(T,)``.
    """

    ends: Tensor
    weights: Tensor
    nodes: Tensor
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
        weights=s,
        nodes=(t[:, None] * nodes).reshape(-1, 1),
        minus_weights=(-s[:, None] * weights / nodes).flatten(),
    )
