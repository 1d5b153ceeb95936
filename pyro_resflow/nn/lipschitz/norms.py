r"""Operator norms by iteration, and certified upper bounds of them.

A norm object is a strategy: it says which norm a layer is held to, with which coefficient, and how
the norm is measured. Its only state is the orders that it learns; the vectors of the iteration
belong to the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...fingerprints import random_vector
from ...rebuilding import Rebuildable
from .divided import Measured
from .groups import is_on_domain, near_and_far
from .lanczos import largest_eigenvectors, unit
from .operators import GRAM_STEPS, LinearOperator, grouped

BELONG_WITHIN = 1e-4
"""Relative error with which one vector of a pair is the image of the other: far above the rounding
of a product in float32, far below the change that another weight makes."""

GENERIC_SHARE = 0.1
"""The share of a generic vector, with a component in every direction, in the vector that an
iteration starts from. After a change of the weight the last vector can be orthogonal to the
largest singular vector. With this share a cycle of twelve products finds a singular value that is
larger by 3 %, and removes again what was added."""

SCRAMBLED = 2.0**17
"""The cosine of this times an entry of a unit vector depends on the last digits of the entry: it
takes another sign for each entry, and after each update."""

HEADROOM = 2
"""Between the fourth power of a norm and the largest number, for the rounding in products."""


class OperatorNorm(Rebuildable, nn.Module):
    """A norm that layers are held to, and how it is measured.

    Args:
        coefficient: the Lipschitz constant that layers are held to, in (0, 1).
        tolerance: relative change of the measured norm at which the iteration stops; ``None``
            always takes ``max_iterations`` steps, so that an accelerator need not synchronise
            for each check.
        max_iterations: largest number of applications of the operator in one update.

    Raises:
        ValueError: for a coefficient outside (0, 1) or no iterations.
    """

    def __init__(
        self, coefficient: float, *, tolerance: float | None, max_iterations: int
    ) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            raise ValueError(
                "coefficient: a residual block is invertible for a Lipschitz constant below 1; "
                f"expected 0 < coefficient < 1, got {coefficient}."
            )
        if max_iterations < 1:
            raise ValueError(
                f"max_iterations: expected an integer of at least 1, got {max_iterations}."
            )
        self.coefficient = coefficient
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Update the vectors: u of shape ``(out,)``, v of shape ``(in,)``."""
        raise NotImplementedError

    def settings(self) -> tuple[object, ...]:
        """The numbers that decide how large a layer's effective weight is."""
        return self.coefficient, self.tolerance, self.max_iterations

    def orders(self) -> tuple[Tensor, ...]:
        """The tensors other than the weight that the norm depends on; by default none."""
        return ()

    def kind(self) -> tuple[object, ...]:
        """A key that is equal for norms that can be measured together; by default its own."""
        return (id(self),)

    def iterate_together(
        self, operators: Sequence[LinearOperator], us: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """:meth:`iterate` for several operators, of one shape or of the transposed one."""
        return [self.iterate(*each) for each in zip(operators, us, vs, strict=True)]

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm at the vectors u and v, a scalar, differentiable in the weight."""
        raise NotImplementedError

    def belong(self, operator: LinearOperator, u: Tensor, v: Tensor) -> bool:
        """Whether an update of this operator can have given these vectors, up to rounding."""
        return True

    def upper_bound(self, operator: LinearOperator, steps: int = GRAM_STEPS) -> Tensor:
        """A certified upper bound of the norm, a scalar."""
        raise NotImplementedError


class SpectralNorm(OperatorNorm):
    r"""The largest singular value :math:`\sigma(A) = \max_v |Av|_2/|v|_2`.

    Measured by the Lanczos process on :math:`A^T A`, or on :math:`A A^T` if that is smaller, which
    starts from the vector of the last update. It takes several times fewer products than power
    iteration, whose slow last stretch leaves the norm too low. The measured norm is a lower bound;
    :meth:`upper_bound` is certified. The iteration departs from the textbook in four places:

    - it restarts after :attr:`cycle` products, with the best vector found, so that memory and the
      small eigenvalue problem stay small;
    - its basis is orthogonalized in full, see :mod:`.lanczos`;
    - it starts from the last vector and a share of a generic one, since the last one alone may
      have become orthogonal to the vector that is sought;
    - it stops when the last product of a cycle has raised the value by less than the tolerance.

    Args:
        coefficient: see :class:`OperatorNorm`.
        tolerance: see :class:`OperatorNorm`.
        max_iterations: see :class:`OperatorNorm`.

    Reference:
        Miyato et al., Spectral Normalization for GANs, 2018 (power iteration); Gouk et al., 2018
        (convolutions); Golub and Kahan, 1965.
    """

    cycle = 12
    """Products of one Krylov space; the next one starts from the best vector of the last."""

    def __init__(
        self,
        coefficient: float = 0.98,
        *,
        tolerance: float | None = 1e-5,
        max_iterations: int = 200,
    ) -> None:
        super().__init__(coefficient, tolerance=tolerance, max_iterations=max_iterations)

    def kind(self) -> tuple[object, ...]:
        return (type(self), *self.settings())

    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.iterate_together([operator], [u], [v])[0]

    @torch.no_grad()
    def iterate_together(
        self, operators: Sequence[LinearOperator], us: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        # 1. Scale weights whose norm, to the fourth power, would overflow.
        operators, scales = _brought_into_range(operators)
        group = grouped(operators)
        # 2. Start from the vectors of the last update and a share of a generic direction.
        start = [
            v if on_domain else u for u, v, on_domain in zip(us, vs, group.on_domain, strict=True)
        ]
        vectors = _with_generic_share(torch.stack(start))
        # 3. Repeat cycles of Lanczos steps, each from the best vectors so far, until all settle.
        spent = 0
        while spent < self.max_iterations:
            steps = min(self.cycle, self.max_iterations - spent, vectors.shape[1])
            vectors, values, rise = largest_eigenvectors(group.gram, vectors, steps)
            spent += steps
            if vectors.is_meta or self._settled(values, rise):
                break
        # 4. A weight of zero has mapped its vector to zero: replace it, or it would stay there.
        vanished = (vectors == 0).all(1, keepdim=True)
        near = torch.where(vanished, _generic_direction(vectors[0]), unit(vectors))
        # 5. The vector of the other side is the image, whose length is the norm.
        far = group.across(near) * scales
        pairs = zip(near.unbind(), far.unbind(), group.on_domain, strict=True)
        return [(f, n) if on_domain else (n, f) for n, f, on_domain in pairs]

    def _settled(self, values: Tensor, rise: Tensor) -> bool:
        if self.tolerance is None:
            return False
        # values are squares of norms, so that their relative change is twice that of the norms
        return bool((rise <= 2 * self.tolerance * values.abs()).all())

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        return (operator.weight * self.gradient(operator, u, v)).sum()

    @torch.no_grad()
    def gradient(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm's gradient by the weight, of its shape: that of u A v at unit vectors."""
        outer = operator.outer(u.view(1, *operator.codomain), v.view(1, *operator.domain))
        return outer / self.value(u, v).clamp_min(torch.finfo(v.dtype).tiny)

    @torch.no_grad()
    def measured(
        self, operators: Sequence[LinearOperator], us: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> list[Measured]:
        """The norms of several operators and their gradients, at vectors from an iteration."""
        group = grouped(operators)
        near, far = near_and_far(group.on_domain, us, vs)
        sigma = self.value(near, far)
        c = self.coefficient
        contractions = c / sigma.clamp_min(c)
        inverses = torch.where(sigma > c, 1 / sigma, 0)
        scale = sigma.clamp_min(torch.finfo(sigma.dtype).tiny).reciprocal()
        gradients = group.outers(near * scale[:, None], far)
        found = zip(contractions.unbind(), inverses.unbind(), gradients, strict=True)
        return [Measured(*each) for each in found]

    @torch.no_grad()
    def belong(self, operator: LinearOperator, u: Tensor, v: Tensor) -> bool:
        # step 5 of the iteration has made one vector the image of the other
        if is_on_domain(operator.weight):
            found, image = u, _apply(operator, v)
        else:
            found, image = v, _adjoint(operator, u)
        difference = torch.linalg.vector_norm(found - image)
        return bool(difference <= BELONG_WITHIN * torch.linalg.vector_norm(image))

    @staticmethod
    def value(u: Tensor, v: Tensor) -> Tensor:
        """The norm at vectors from an iteration, ``(*, out)`` and ``(*, in)``."""
        return torch.linalg.vector_norm(u, dim=-1) * torch.linalg.vector_norm(v, dim=-1)

    def upper_bound(self, operator: LinearOperator, steps: int = GRAM_STEPS) -> Tensor:
        return operator.spectral_bound(steps)


def _brought_into_range(
    operators: Sequence[LinearOperator],
) -> tuple[Sequence[LinearOperator], Tensor | float]:
    """Operators whose norms can be raised to the fourth power, and the divisors that made them so.

    The Lanczos process takes the squared length of products with A^T A. The divisors, ``(L, 1)``,
    are powers of two, so that they round nothing.
    """
    weights = [operator.weight for operator in operators]
    if weights[0].is_meta:
        return operators, 1.0
    largest = torch.stack(torch._foreach_norm(weights, torch.inf))
    # the Frobenius norm bounds a matrix's norm, and times the kernel's side a convolution's
    factor = weights[0].numel() ** 0.5 * (weights[0].shape[-1] if weights[0].dim() > 2 else 1)
    if not bool((factor * largest > (torch.finfo(largest.dtype).max) ** 0.25 / HEADROOM).any()):
        return operators, 1.0
    scales = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
    pairs = zip(operators, scales.unbind(), strict=True)
    return [operator.with_weight(operator.weight / scale) for operator, scale in pairs], scales[
        :, None
    ]


def _apply(operator: LinearOperator, v: Tensor) -> Tensor:
    """A v on flat vectors, shape ``(in,)`` to ``(out,)``."""
    return operator.apply(v.view(1, *operator.domain)).flatten()


def _adjoint(operator: LinearOperator, u: Tensor) -> Tensor:
    """A^T u on flat vectors, shape ``(out,)`` to ``(in,)``."""
    return operator.adjoint(u.view(1, *operator.codomain)).flatten()


def _with_generic_share(start: Tensor) -> Tensor:
    """Unit vectors, ``(L, n)``, plus a share of a generic direction, a different one for each.

    The direction is also different after each update, so that an update finds what the last one
    missed. It is a function of the vectors: a run that continues from a file repeats it.
    """
    start = unit(start)
    generic = _generic_direction(start[0]) * torch.cos(SCRAMBLED * start)
    return start + GENERIC_SHARE * generic


def _generic_direction(v: Tensor) -> Tensor:
    """A fixed unit vector of the shape of v, with a component in every direction."""
    return _unit(random_vector(len(v), v.dtype, v.device), 2.0)


def _nonzero(v: Tensor) -> Tensor:
    """v, or a generic direction if v vanished, since an iteration cannot leave zero."""
    return torch.where(v.any(), v, _generic_direction(v))


class InducedNorm(OperatorNorm):
    r"""The mixed norm :math:`\|A\|_{p\to q} = \max_v |Av|_q/|v|_p` with learnable orders.

    Measured by the nonlinear power method, :math:`u = \psi_q(Av)`, :math:`v = \psi_{p^*}(A^Tu)`,
    with :math:`\psi_r(y) = \mathrm{sign}(y)|y|^{r-1}/|y|_r^{r-1}` and :math:`1/p + 1/p^* = 1`.
    An order is stored as the logit of its reciprocal, so any real parameter means an order in
    (1, infinity). :meth:`chain` makes the norms of a whole network, each layer's q being the next
    one's p and the last q the first p, which is what bounds the composition in one norm.

    Args:
        domain: p, a number above 1, or the logit of 1/p as a parameter to share.
        codomain: q, the same.
        coefficient: see :class:`OperatorNorm`.
        tolerance: see :class:`OperatorNorm`.
        max_iterations: see :class:`OperatorNorm`.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, section 3.4.

    Example:
        >>> from pyro_resflow.nn import InducedNorm, LipschitzMLP
        >>> net = LipschitzMLP(2, [16, 16], norm=InducedNorm.chain(3, coefficient=0.9))
    """

    def __init__(
        self,
        domain: float | nn.Parameter = 2.0,
        codomain: float | nn.Parameter = 2.0,
        coefficient: float = 0.98,
        *,
        tolerance: float | None = 1e-5,
        max_iterations: int = 200,
    ) -> None:
        super().__init__(coefficient, tolerance=tolerance, max_iterations=max_iterations)
        self.domain_logit = _order_logit("domain", domain)
        self.codomain_logit = _order_logit("codomain", codomain)

    @classmethod
    def chain(
        cls, layers: int, order: float = 2.0, coefficient: float = 0.98
    ) -> list[InducedNorm]:
        """Norms for a network of ``layers`` linear layers whose orders are learned together."""
        logits = [_order_logit("order", order) for _ in range(layers)]
        return [cls(logits[i], logits[(i + 1) % layers], coefficient) for i in range(layers)]

    @property
    def domain(self) -> Tensor:
        """The order p, a scalar tensor."""
        return 1 / torch.sigmoid(self.domain_logit)

    @property
    def codomain(self) -> Tensor:
        """The order q, a scalar tensor."""
        return 1 / torch.sigmoid(self.codomain_logit)

    def orders(self) -> tuple[Tensor, ...]:
        return self.domain_logit, self.codomain_logit

    def dual_output(self, y: Tensor) -> Tensor:
        """The functional u of unit dual norm with u y = norm of y; same shape as y."""
        return _unit(y, self.codomain)

    def dual_input(self, z: Tensor) -> Tensor:
        """The unit vector v with z v = dual norm of z; same shape as z."""
        return _unit(z, _conjugate(self.domain))

    @torch.no_grad()
    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        sigma = u.new_zeros(())
        u = _with_generic_share(u[None])[0]  # as in step 2 of the spectral norm
        for _ in range(self.max_iterations):
            v = self.dual_input(_adjoint(operator, u))
            y = _apply(operator, v)
            u = self.dual_output(y)
            last, sigma = sigma, torch.dot(u, y)
            if y.is_meta or self._settled(sigma, last):
                break
        return _nonzero(u), _nonzero(v)

    def _settled(self, new: Tensor, last: Tensor) -> bool:
        """Whether the measured norm has stopped changing."""
        return self.tolerance is not None and bool((new - last).abs() <= self.tolerance * new)

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm at the vector v, differentiable in the weight and in both orders."""
        v = v.clone()  # the next update overwrites it
        return _vector_norm(_apply(operator, v), self.codomain) / _vector_norm(v, self.domain)

    @torch.no_grad()
    def upper_bound(self, operator: LinearOperator, steps: int = GRAM_STEPS) -> Tensor:
        r"""The least of three certified bounds of the norm, a scalar.

        Through Euclid, :math:`m^{(1/q-1/2)_+} n^{(1/2-1/p)_+} \sigma(A)`; by rows,
        :math:`|(|A_{i\cdot}|_{p^*})_i|_q`; by columns, :math:`|(|A_{\cdot j}|_q)_j|_{p^*}`.
        """
        p, q = self.domain, self.codomain
        rows = operator.row_norms(_conjugate(p))
        columns = operator.column_norms(q)
        euclidean = (
            operator.spectral_bound(steps)
            * rows.numel() ** (1 / q - 0.5).clamp_min(0)
            * columns.numel() ** (0.5 - 1 / p).clamp_min(0)
        )
        by_rows = _vector_norm(rows, q)
        by_columns = _vector_norm(columns, _conjugate(p))
        return torch.stack([euclidean, by_rows, by_columns]).min()


def _order_logit(name: str, order: float | nn.Parameter) -> nn.Parameter:
    if isinstance(order, nn.Parameter):
        return order
    if not 1 < order < float("inf"):
        raise ValueError(f"{name}: expected a norm's order between 1 and infinity, got {order}.")
    return nn.Parameter(-torch.tensor(order - 1.0).log())


def _conjugate(order: Tensor) -> Tensor:
    return order / (order - 1)


def _vector_norm(y: Tensor, order: Tensor) -> Tensor:
    """The order-norm of a vector, differentiable in the order and safe at zero entries."""
    largest = y.detach().abs().max().clamp_min(torch.finfo(y.dtype).tiny)
    scaled = (y / largest).abs().clamp_min(torch.finfo(y.dtype).eps)
    return largest * scaled.pow(order).sum().pow(1 / order)


def _unit(y: Tensor, order: float | Tensor) -> Tensor:
    r"""The vector :math:`\psi_r(y)`: aligned with y, of unit dual norm."""
    if isinstance(order, float):
        return y / torch.linalg.vector_norm(y, order).clamp_min(torch.finfo(y.dtype).tiny)
    scaled = y / y.abs().max().clamp_min(torch.finfo(y.dtype).tiny)
    powered = scaled.sign() * scaled.abs().pow(order - 1)
    norm = scaled.abs().pow(order).sum().pow(1 - 1 / order)
    return powered / norm.clamp_min(torch.finfo(y.dtype).tiny)
