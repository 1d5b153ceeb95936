"""Estimators from the Krylov space of the Jacobian: the default."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arnoldi import ArnoldiBasis, log1p_corner, solve_first
from .autograd import Estimate, Memory, Vjp
from .estimator import StochasticEstimator, at_least
from .probes import Probe
from .tails import Geometric, Tail


class Krylov(StochasticEstimator):
    r"""Unbiased log-determinant by Arnoldi's method and Russian roulette.

    n products give an orthonormal basis V of span(e, J^T e, ..., (J^T)^{n-1} e) and the Hessenberg
    matrix :math:`H_n`, and with them

    .. math:: q_n = |e|^2\, e_1^T \log(I + H_n)\, e_1, \qquad
              w_n = |e|\, V (I + H_n)^{-1} e_1.

    Both converge to :math:`e^T\log(I+J)e` and :math:`(I+J)^{-T}e` much faster than the power
    series. A random number N of products beyond the first m makes them unbiased,

    .. math:: q = q_m + \sum_{k=1}^{N} \frac{q_{m+k} - q_{m+k-1}}{P(N \ge k)},

    and likewise w: the sum telescopes in expectation to the limit.

    Args:
        terms: m, products always taken.
        tail: distribution of N; default ``Geometric(0.5)``, one more product on average. Use
            ``NoTail()`` for a plain truncation.
        probe: see :class:`StochasticEstimator`.
        num_probes: see :class:`StochasticEstimator`.
        memory: see :class:`StochasticEstimator`.

    Reference:
        Saad, Iterative Methods for Sparse Linear Systems, 2003, section 6.3 (Arnoldi); Chen et
        al., Residual Flows, 2019, equation 6 (roulette).

    Example:
        >>> import torch
        >>> from pyro_resflow.logdet import Krylov
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> g, logdet = Krylov(terms=3)(LipschitzMLP(2), torch.randn(7, 2))
        >>> logdet.shape
        torch.Size([7])
    """

    def __init__(
        self,
        terms: int = 2,
        *,
        tail: Tail | None = None,
        probe: Probe | None = None,
        num_probes: int = 1,
        memory: Memory = "recompute",
    ) -> None:
        super().__init__(probe=probe, num_probes=num_probes, memory=memory)
        self.terms = at_least("terms", terms, 1)
        self.tail = tail if tail is not None else Geometric(0.5)

    def estimate(self, vjp: Vjp, probes: Tensor) -> Estimate:
        basis = ArnoldiBasis(probes.flatten(2).flatten(0, 1))
        for _ in range(self.terms):
            _extend(basis, vjp, probes.shape)
        value, coefficients = _functions(basis, self.terms)
        return self._roulette(basis, vjp, probes, value, coefficients)

    def _roulette(
        self, basis: ArnoldiBasis, vjp: Vjp, probes: Tensor, value: Tensor, coefficients: Tensor
    ) -> Estimate:
        """Add a random number of further steps to the value and adjoint found so far."""
        last_value, last_coefficients = value, coefficients
        for k in range(1, self.tail.draw(self.probe.host_generator()) + 1):
            _extend(basis, vjp, probes.shape)
            new_value, new_coefficients = _functions(basis, len(basis))
            survival = self.tail.survival(k)
            value = value + (new_value - last_value) / survival
            step = new_coefficients - _padded(last_coefficients)
            coefficients = _padded(coefficients) + step / survival
            last_value, last_coefficients = new_value, new_coefficients
        adjoint = basis.combine(coefficients).reshape(probes.shape)
        return Estimate(value.reshape(probes.shape[:2]), adjoint)


class AdaptiveKrylov(Krylov):
    r"""Krylov steps until the value settles, then roulette: for evaluation.

    A sample's value has settled at step k when :math:`|q_k - q_{k-1}| \le` ``tolerance``. The
    decision looks only at what has been computed, so the roulette that follows keeps the estimate
    unbiased; it looks at each sample alone, so a sample's estimate does not depend on its batch.
    The batch goes on until its last sample has settled.

    Args:
        tolerance: in nats, per residual block.
        max_terms: the largest number of products before the roulette.
        tail: see :class:`Krylov`; default ``Geometric(0.1)``.
        probe: see :class:`StochasticEstimator`.
        num_probes: see :class:`StochasticEstimator`.
        memory: see :class:`StochasticEstimator`.
    """

    def __init__(
        self,
        tolerance: float = 1e-3,
        *,
        max_terms: int = 50,
        tail: Tail | None = None,
        probe: Probe | None = None,
        num_probes: int = 1,
        memory: Memory = "recompute",
    ) -> None:
        super().__init__(
            max_terms,
            tail=tail if tail is not None else Geometric(0.1),
            probe=probe,
            num_probes=num_probes,
            memory=memory,
        )
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected a positive number of nats, got {tolerance}.")
        self.tolerance = tolerance

    def estimate(self, vjp: Vjp, probes: Tensor) -> Estimate:
        basis = ArnoldiBasis(probes.flatten(2).flatten(0, 1))
        _extend(basis, vjp, probes.shape)
        value, coefficients = _functions(basis, 1)
        settled = torch.zeros_like(value, dtype=torch.bool)
        while len(basis) < self.terms and not bool(settled.all()):
            _extend(basis, vjp, probes.shape)
            new_value, new_coefficients = _functions(basis, len(basis))
            coefficients = torch.where(
                settled[:, None], _padded(coefficients), new_coefficients
            )
            change = (new_value - value).abs()
            value = torch.where(settled, value, new_value)
            settled = settled | (change <= self.tolerance)
        return self._roulette(basis, vjp, probes, value, coefficients)


def _extend(basis: ArnoldiBasis, vjp: Vjp, shape: torch.Size) -> None:
    basis.extend(vjp(basis.last.reshape(shape)).flatten(2).flatten(0, 1))


def _functions(basis: ArnoldiBasis, steps: int) -> tuple[Tensor, Tensor]:
    """q_k, shape ``(B,)``, and the coefficients of w_k in the basis, shape ``(B, k)``."""
    hessenberg = basis.hessenberg(steps)
    return basis.norm.square() * log1p_corner(hessenberg), solve_first(hessenberg)


def _padded(coefficients: Tensor) -> Tensor:
    return torch.nn.functional.pad(coefficients, (0, 1))
