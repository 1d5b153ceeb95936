"""Estimators from the Krylov space of the Jacobian: the default."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arnoldi import ArnoldiBasis, log1p_corner, solve_first
from .autograd import Estimate, Memory, Vjp
from .estimator import RouletteEstimator
from .probes import Probe
from .tails import Geometric, Tail


class Krylov(RouletteEstimator):
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

    def estimate(self, vjp: Vjp, probes: Tensor) -> Estimate:
        steps = _KrylovSteps(vjp, probes)
        extra = self.tail.draw(self.probe.host_generator())
        for _ in range(self.terms + extra):
            steps.extend()
        iterates = [steps.iterate(self.terms + j) for j in range(extra + 1)]
        weights = iterates[0].value.new_tensor(telescoped_weights(self.tail, extra))
        return steps.weighted(iterates, weights)


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
        steps = _KrylovSteps(vjp, probes)
        iterates, settled_at = self._until_settled(steps)
        extra = self.tail.draw(self.probe.host_generator())
        for _ in range(extra):
            steps.extend()
            iterates.append(steps.iterate(len(steps.basis)))
        return steps.weighted(iterates, self._weights(settled_at, extra, iterates))

    def _until_settled(self, steps: _KrylovSteps) -> tuple[list[_Iterate], Tensor]:
        """The iterates up to the last sample to settle, and where each did, shape ``(B,)``."""
        steps.extend()
        iterates = [steps.iterate(1)]
        settled_at = torch.full_like(iterates[0].value, self.terms, dtype=torch.long)
        for k in range(2, self.terms + 1):
            steps.extend()
            iterates.append(steps.iterate(k))
            change = (iterates[-1].value - iterates[-2].value).abs()
            settled_at = torch.where(change <= self.tolerance, settled_at.clamp(max=k), settled_at)
            if steps.basis.last.is_meta or bool((settled_at <= k).all()):
                break
        return iterates, settled_at

    def _weights(self, settled_at: Tensor, extra: int, iterates: list[_Iterate]) -> Tensor:
        """Each sample's weight of each iterate, shape ``(B, number)``: its own roulette."""
        table = iterates[0].value.new_tensor(telescoped_weights(self.tail, extra))
        steps = torch.arange(1, len(iterates) + 1, device=settled_at.device)
        beyond = steps - settled_at[:, None]
        inside = (beyond >= 0) & (beyond <= extra)
        return torch.where(inside, table[beyond.clamp(0, extra)], 0)


class _Iterate(NamedTuple):
    """q_k, shape ``(B,)``, and the coefficients of w_k in the basis, shape ``(B, k)``."""

    value: Tensor
    coefficients: Tensor


class _KrylovSteps:
    """The Krylov space of J^T and the probes, and the estimate after each of its steps."""

    def __init__(self, vjp: Vjp, probes: Tensor) -> None:
        self.vjp = vjp
        self.shape = probes.shape
        self.basis = ArnoldiBasis(probes.flatten(2).flatten(0, 1))

    def extend(self) -> None:
        """One more product."""
        self.basis.extend(self.vjp(self.basis.last.reshape(self.shape)).flatten(2).flatten(0, 1))

    def iterate(self, k: int) -> _Iterate:
        """Value and coefficients from the first k products."""
        hessenberg = self.basis.hessenberg(k)
        value = self.basis.norm.square() * log1p_corner(hessenberg)
        return _Iterate(value, solve_first(hessenberg))

    def weighted(self, iterates: list[_Iterate], weights: Tensor) -> Estimate:
        """The weighted sum of iterates, weights of shape ``(number,)`` or ``(B, number)``."""
        values = torch.stack([iterate.value for iterate in iterates], dim=1)
        coefficients = torch.stack([self._padded(i.coefficients) for i in iterates], dim=1)
        adjoint = self.basis.combine((weights[..., None] * coefficients).sum(1))
        value = (weights * values).sum(1)
        return Estimate(value.reshape(self.shape[:2]), adjoint.reshape(self.shape))

    def _padded(self, coefficients: Tensor) -> Tensor:
        missing = len(self.basis) - coefficients.shape[-1]
        return torch.nn.functional.pad(coefficients, (0, missing))


def telescoped_weights(tail: Tail, extra: int) -> list[float]:
    r"""Weights of the iterates :math:`q_m, \dots, q_{m+N}` in the roulette's sum.

    :math:`q_m + \sum_{k=1}^N (q_{m+k} - q_{m+k-1})/P(N \ge k)`, collected by iterate; they sum
    to 1.

    Args:
        tail: distribution of N.
        extra: the N that was drawn.
    """
    steps = [1.0, *(1 / tail.survival(k) for k in range(1, extra + 1)), 0.0]
    return [steps[j] - steps[j + 1] for j in range(extra + 1)]
