"""Mixed norms with learnable orders, by the nonlinear power method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .directions import nonzero, with_generic_share
from .operator_norm import OperatorNorm, adjoint_flat, apply_flat
from .operators import GRAM_STEPS, LinearOperator


class InducedNorm(OperatorNorm):
    r"""The mixed norm :math:`\|A\|_{p\to q} = \max_v |Av|_q/|v|_p` with learnable orders.

    The nonlinear power method measures it: :math:`u = \psi_q(Av)`, :math:`v = \psi_{p^*}(A^Tu)`,
    with :math:`\psi_r(y) = \mathrm{sign}(y)|y|^{r-1}/|y|_r^{r-1}` and :math:`1/p + 1/p^* = 1`.
    An order is stored as the logit of its reciprocal, so that every real value of the parameter
    gives an order in (1, infinity). :meth:`chain` makes the norms of a whole network: each layer's
    q is the next layer's p, and the last q is the first p. The product of such norms bounds the
    composition of the layers.

    Args:
        domain: p, a number above 1; or the logit of 1/p, a parameter that norms can share.
        codomain: q, in the same form.
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
        """The vector u of dual norm 1 whose product u^T y is the norm of y; same shape as y."""
        return _unit(y, self.codomain)

    def dual_input(self, z: Tensor) -> Tensor:
        """The vector v of norm 1 whose product z^T v is the dual norm of z; same shape as z."""
        return _unit(z, _conjugate(self.domain))

    @torch.no_grad()
    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        sigma = u.new_zeros(())
        u = with_generic_share(u[None])[0]  # as in step 1 of the spectral norm
        for _ in range(self.max_iterations):
            v = self.dual_input(adjoint_flat(operator, u))
            y = apply_flat(operator, v)
            u = self.dual_output(y)
            last, sigma = sigma, torch.dot(u, y)
            if y.is_meta or self._settled(sigma, last):
                break
        return nonzero(u), nonzero(v)

    def _settled(self, new: Tensor, last: Tensor) -> bool:
        """Whether the measured norm has stopped changing."""
        return self.tolerance is not None and bool((new - last).abs() <= self.tolerance * new)

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm at the vector v, differentiable in the weight and in both orders."""
        v = v.clone()  # the next update overwrites it
        return _vector_norm(apply_flat(operator, v), self.codomain) / _vector_norm(v, self.domain)

    @torch.no_grad()
    def upper_bound(self, operator: LinearOperator, steps: int = GRAM_STEPS) -> Tensor:
        r"""The smallest of three certified bounds of the norm, a scalar.

        By the Euclidean norm, :math:`m^{(1/q-1/2)_+} n^{(1/2-1/p)_+} \sigma(A)`; by rows,
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
    r"""The vector :math:`\psi_r(y)`: aligned with y, of dual norm 1."""
    if isinstance(order, float):
        return y / torch.linalg.vector_norm(y, order).clamp_min(torch.finfo(y.dtype).tiny)
    scaled = y / y.abs().max().clamp_min(torch.finfo(y.dtype).tiny)
    powered = scaled.sign() * scaled.abs().pow(order - 1)
    norm = scaled.abs().pow(order).sum().pow(1 - 1 / order)
    return powered / norm.clamp_min(torch.finfo(y.dtype).tiny)
