"""The spectral norm, from powers of the Gram matrix or from a Krylov space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap

import torch
from torch import Tensor

from .directions import generic_direction, unit, with_generic_share
from .divided import Measured
from .groups import OperatorGroup, is_on_domain, near_and_far
from .lanczos import by_eigh, by_squaring, largest_eigenvectors
from .operator_norm import OperatorNorm, adjoint_flat, apply_flat
from .operators import GRAM_STEPS, LinearOperator, grouped
from .squaring import GramPower

BELONG_WITHIN = 1e-4
"""Largest relative error at which one vector of a pair counts as the image of the other: far
above the rounding of a product in float32, far below the change from another weight."""

Cycle = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]
"""Maps vectors and a number of products to better vectors, their values, and the increase of
these in the last step."""

HEADROOM = 2
"""Margin between a norm and the fourth root of the largest number, for rounding in products."""


class SingularVectors(tuple[tuple[Tensor, Tensor], ...]):
    """The leading singular vectors u and v of each operator, one of them as long as the norm.

    Args:
        group: the operators.
        near: vectors of length 1, ``(L, n)``.
        far: their images, ``(L, m)``.
        sigma: the norms, ``(L,)``.
    """

    group: OperatorGroup
    near: Tensor
    far: Tensor
    sigma: Tensor

    def __new__(
        cls, group: OperatorGroup, near: Tensor, far: Tensor, sigma: Tensor
    ) -> SingularVectors:
        pairs = zip(near.unbind(), far.unbind(), group.on_domain, strict=True)
        found = super().__new__(cls, [(f, n) if direct else (n, f) for n, f, direct in pairs])
        found.group, found.near, found.far, found.sigma = group, near, far, sigma
        return found


class SpectralNorm(OperatorNorm):
    r"""The largest singular value :math:`\sigma(A) = \max_v |Av|_2/|v|_2`.

    It is measured from :math:`A^T A`, or from :math:`A A^T` if that is smaller. For a matrix with
    a side of at most 64, the power method runs with the 256th power of that product, see
    :mod:`.squaring`. For any other operator, the Lanczos process takes several times fewer
    products than power iteration, which converges slowly at the end and leaves the norm too low.
    The measured norm is a lower bound; :meth:`upper_bound` is certified.

    Both iterations start from the vector of the last update plus a share of a generic one, because
    the last vector may have become orthogonal to the leading singular vector. They stop when the
    last step of a cycle increases the value by less than the tolerance. The Lanczos process
    departs from the textbook in two places:

    - it restarts from the best vector after :attr:`cycle` products, so that memory and the small
      eigenvalue problem stay small;
    - its basis is orthogonalized in full, see :mod:`.lanczos`.

    Args:
        coefficient: see :class:`OperatorNorm`.
        tolerance: see :class:`OperatorNorm`. With ``None`` an update reads no value from the
            device. Weights that are not finite, or too large to be squared, then raise no error,
            and the effective weight is nan.
        max_iterations: see :class:`OperatorNorm`.

    Reference:
        Miyato et al., Spectral Normalization for GANs, 2018 (power iteration); Gouk et al., 2018
        (convolutions); Golub and Kahan, 1965.
    """

    cycle = 12
    """Products in one Krylov space; the next space starts from the best vector of the last. Two
    steps with a power of the Gram matrix count as this many products."""

    def __init__(
        self,
        coefficient: float = 0.98,
        *,
        tolerance: float | None = 1e-5,
        max_iterations: int = 200,
    ) -> None:
        super().__init__(coefficient, tolerance=tolerance, max_iterations=max_iterations)

    @property
    def marks_failure(self) -> bool:
        """Whether a norm that is not finite becomes nan, in place of an error."""
        return self.tolerance is None

    def kind(self) -> tuple[object, ...]:
        return (type(self), *self.settings())

    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.iterate_together([operator], [u], [v])[0]

    @torch.no_grad()
    def iterate_together(
        self, operators: Sequence[LinearOperator], us: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> SingularVectors:
        group = grouped(operators)
        # 1. Start from the vectors of the last update and a share of a generic direction.
        start = [
            v if on_domain else u for u, v, on_domain in zip(us, vs, group.on_domain, strict=True)
        ]
        vectors = torch.stack(start)
        if self.marks_failure:  # the vectors of a failed measurement are nan
            vectors = vectors.nan_to_num(0, 0, 0)
        vectors = with_generic_share(vectors)
        # 2. Repeat cycles of products, each from the best vectors so far, until all settle.
        cycle = _power_cycle(group) or self._krylov_cycle(operators)
        spent = 0
        while spent < self.max_iterations:
            steps = min(self.cycle, self.max_iterations - spent, vectors.shape[1])
            vectors, values, rise = cycle(vectors, steps)
            spent += steps
            if vectors.is_meta or self._settled(values, rise):
                break
        # 3. A weight of zero maps its vector to zero: replace it, as no iteration leaves zero.
        vanished = (vectors == 0).all(1, keepdim=True)
        near = torch.where(vanished, generic_direction(vectors[0]), unit(vectors))
        # 4. The far vector is the image of the near one, and its length is the norm.
        far = group.across(near)
        sigma = self.value(near, far)
        if self.marks_failure:
            sigma = torch.where(sigma.isfinite(), sigma, torch.nan)
            far = torch.where(sigma.isfinite()[:, None], far, torch.nan)
        elif not far.is_meta and not math.isfinite(sigma.sum()):
            raise RuntimeError("a norm is not finite")
        return SingularVectors(group, near, far, sigma)

    def _settled(self, values: Tensor, rise: Tensor) -> bool:
        if self.tolerance is None:
            return False
        # values are squares of norms, so that their relative change is twice that of the norms
        return bool((rise <= 2 * self.tolerance * values.abs()).all())

    def _krylov_cycle(self, operators: Sequence[LinearOperator]) -> Cycle:
        """The Lanczos process with the Gram maps."""
        gram = grouped(_brought_into_range(operators)).gram
        # eigh reads its error codes on the host
        ritz = by_squaring if self.tolerance is None else by_eigh
        return partial(largest_eigenvectors, gram, ritz=ritz)

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        return (operator.weight * self.gradient(operator, u, v)).sum()

    @torch.no_grad()
    def gradient(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm's gradient with respect to the weight: that of u^T A v at unit vectors."""
        outer = operator.outer((u.view(1, *operator.codomain), v.view(1, *operator.domain)))
        return outer / self.value(u, v).clamp_min(torch.finfo(v.dtype).tiny)

    @torch.no_grad()
    def measured(
        self, operators: Sequence[LinearOperator], us: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> list[Measured]:
        """The contraction factors of operators and the gradients of their norms, at u and v."""
        group = grouped(operators)
        near, far = near_and_far(group.on_domain, us, vs)
        return self.measured_at(SingularVectors(group, near, far, self.value(near, far)))

    @torch.no_grad()
    def measured_at(self, found: SingularVectors) -> list[Measured]:
        """The contraction factors of operators and the gradients of their norms."""
        sigma, c = found.sigma, self.coefficient
        contractions = c / sigma.clamp_min(c)
        inverses = torch.where(sigma > c, 1 / sigma, 0)
        scale = sigma.clamp_min(torch.finfo(sigma.dtype).tiny).reciprocal()
        gradients = found.group.outers(found.near * scale[:, None], found.far)
        each = zip(contractions.unbind(), inverses.unbind(), gradients, strict=True)
        return list(starmap(Measured, each))

    @torch.no_grad()
    def belong(self, operator: LinearOperator, u: Tensor, v: Tensor) -> bool:
        # step 4 of the iteration has made one vector the image of the other
        if is_on_domain(operator.weight):
            found, image = u, apply_flat(operator, v)
        else:
            found, image = v, adjoint_flat(operator, u)
        difference = torch.linalg.vector_norm(found - image)
        return bool(difference <= BELONG_WITHIN * torch.linalg.vector_norm(image))

    @staticmethod
    def value(u: Tensor, v: Tensor) -> Tensor:
        """The norm at vectors of an iteration, ``(*, out)`` and ``(*, in)``."""
        return torch.linalg.vector_norm(u, dim=-1) * torch.linalg.vector_norm(v, dim=-1)

    def upper_bound(self, operator: LinearOperator, steps: int = GRAM_STEPS) -> Tensor:
        return operator.spectral_bound(steps)


def _power_cycle(group: OperatorGroup) -> Cycle | None:
    """The power method with a power of the Gram matrices; ``None`` if these are large."""
    matrices = group.gram_matrices()
    if matrices is None:
        return None
    powers = GramPower(matrices)
    return lambda vectors, _: powers.cycle(vectors)


def _brought_into_range(operators: Sequence[LinearOperator]) -> Sequence[LinearOperator]:
    """Divide operators by powers of two if the fourth powers of their norms could overflow.

    The Lanczos process squares the lengths of products with A^T A. An operator in range is divided
    by 1: to decide on the host whether any is out of range would synchronise with an accelerator.
    """
    weights = [operator.weight for operator in operators]
    # a norm of order infinity would take fifteen times as long
    largest = torch.stack([weight.abs().amax() for weight in weights])
    # the Frobenius norm bounds the norm of a matrix; times the kernel's side, of a convolution
    factor = weights[0].numel() ** 0.5 * (weights[0].shape[-1] if weights[0].dim() > 2 else 1)
    bound = (torch.finfo(largest.dtype).max) ** 0.25 / HEADROOM / factor
    exponents = torch.where(largest > bound, torch.frexp(largest).exponent, 0)
    scales = torch.ldexp(torch.ones_like(largest), exponents)
    divided = torch._foreach_div(weights, scales.unbind())
    return [each.with_weight(w) for each, w in zip(operators, divided, strict=True)]
