r"""Operator norms by power iteration, and certified upper bounds of them.

A norm object is a strategy: it says which norm a layer is held to, how it is measured and what
the coefficient is. It keeps no state of its own but the orders it learns; the vectors of the
iteration are the layer's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .operators import LinearOperator


def _checked_coefficient(coefficient: float) -> float:
    if not 0 < coefficient < 1:
        raise ValueError(
            "coefficient: a residual block is invertible for a Lipschitz constant below 1; "
            f"expected 0 < coefficient < 1, got {coefficient}."
        )
    return coefficient


class SpectralNorm(nn.Module):
    r"""The largest singular value :math:`\sigma(A) = \max_v |Av|_2/|v|_2`.

    Power iteration alternates :math:`u = Av/|Av|`, :math:`v = A^Tu/|A^Tu|`, starting from the
    vectors of the last update, until :math:`\sigma = u^TAv` grows by less than ``tolerance``,
    relatively. It is a lower bound; :meth:`upper_bound` is certified.

    Args:
        coefficient: the Lipschitz constant that layers are held to, in (0, 1).
        tolerance: relative change of sigma at which the iteration stops; ``None`` always takes
            ``max_iterations`` steps, which spares an accelerator one synchronisation a step.
        max_iterations: the largest number of iterations of one update.

    Raises:
        ValueError: for a coefficient outside (0, 1).

    Reference:
        Miyato et al., Spectral Normalization for GANs, 2018; Gouk et al., 2018 (convolutions).
    """

    def __init__(
        self,
        coefficient: float = 0.98,
        *,
        tolerance: float | None = 1e-3,
        max_iterations: int = 200,
    ) -> None:
        super().__init__()
        self.coefficient = _checked_coefficient(coefficient)
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def dual_output(self, y: Tensor) -> Tensor:
        """The functional u of unit dual norm with u y = norm of y; same shape as y."""
        return _unit(y, 2.0)

    def dual_input(self, z: Tensor) -> Tensor:
        """The unit vector v with z v = dual norm of z; same shape as z."""
        return _unit(z, 2.0)

    @torch.no_grad()
    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Update the vectors: u of shape ``(out,)``, v of shape ``(in,)``."""
        last = 0.0
        for _ in range(self.max_iterations):
            v = self.dual_input(operator.adjoint(u))
            y = operator.apply(v)
            u = self.dual_output(y)
            if y.is_meta:
                break
            if self.tolerance is not None:
                sigma = float(torch.dot(u, y))
                if abs(sigma - last) <= self.tolerance * sigma:
                    break
                last = sigma
        return u, v

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm at the vectors u and v, a scalar, differentiable in the weight."""
        return torch.dot(u, operator.apply(v))

    def upper_bound(self, operator: LinearOperator, steps: int = 10) -> Tensor:
        """A certified upper bound of the norm, a scalar."""
        return operator.spectral_bound(steps)


class InducedNorm(SpectralNorm):
    r"""The mixed norm :math:`\|A\|_{p\to q} = \max_v |Av|_q/|v|_p` with learnable orders.

    Measured by the nonlinear power method, :math:`u = \psi_q(Av)`, :math:`v = \psi_{p^*}(A^Tu)`,
    with :math:`\psi_r(y) = \mathrm{sign}(y)|y|^{r-1}/|y|_r^{r-1}` and :math:`1/p + 1/p^* = 1`.
    An order is stored as the logit of its reciprocal, so any real parameter means an order in
    (1, infinity). :meth:`chain` makes the norms of a whole network, each layer's q being the next
    one's p and the last q the first p, which is what bounds the composition in one norm.

    Args:
        domain: p, a number above 1, or the logit of 1/p as a parameter to share.
        codomain: q, the same.
        coefficient: the Lipschitz constant that layers are held to, in (0, 1).
        tolerance: as for :class:`SpectralNorm`.
        max_iterations: as for :class:`SpectralNorm`.

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
        tolerance: float | None = 1e-3,
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

    def dual_output(self, y: Tensor) -> Tensor:
        return _unit(y, self.codomain)

    def dual_input(self, z: Tensor) -> Tensor:
        return _unit(z, _conjugate(self.domain))

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm at the vector v, differentiable in the weight and in both orders."""
        return _vector_norm(operator.apply(v), self.codomain) / _vector_norm(v, self.domain)

    @torch.no_grad()
    def upper_bound(self, operator: LinearOperator, steps: int = 10) -> Tensor:
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
