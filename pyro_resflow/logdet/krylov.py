"""Estimators from the Krylov space of the Jacobian, among them the default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..arnoldi import ArnoldiBasis, LogarithmAndInverse, weighted_sum
from .autograd import VALUE_ONLY, Estimate, Memory, Vjp
from .functions import LOG_ONE_PLUS, SpectralFunction
from .probes import Probe
from .stochastic import RouletteEstimator, at_least
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

    and likewise w: in expectation the sum telescopes to the limit. For another
    :class:`SpectralFunction` f, :math:`f(H_n)` replaces the logarithm and :math:`f'(H_n)` the
    inverse.

    Args:
        terms: m, the number of products that are always taken.
        tail: distribution of N; default ``Geometric(1/3)``, half a product more on average. Use
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

    default_ratio = 1 / 3
    """Half a product more on average. The roulette's variance is then negligible beside the
    probe's."""

    def estimate(
        self, vjp: Vjp, probes: Tensor, function: SpectralFunction = LOG_ONE_PLUS
    ) -> Estimate:
        # 1. draw the number of steps before any product is known, as the weights assume
        extra = self.tail.draw(self.probe.host_generator())
        # 2. take the steps of Arnoldi's process
        steps = _KrylovSteps(vjp, probes, function)
        for _ in range(self.terms + extra - 1):
            steps.extend()
        steps.extend(is_last=True)
        # 3. divide the increments of the random steps by the probability of reaching them
        weights = [1.0] * self.terms
        for j in range(1, extra + 1):
            weights.append(1 / self.tail.survival(j))
        return steps.weighted(weights)


SETTLED_RATIO = 0.1
"""A ninth of a product more on average: little is left to add once a value has settled."""


class AdaptiveKrylov(Krylov):
    r"""Krylov steps until the value settles, then roulette: for evaluation.

    A sample's value has settled at step k when :math:`|q_k - q_{k-1}| \le` ``tolerance``. The
    decision depends only on the steps already taken, so that the roulette after it keeps the
    estimate unbiased. It depends on each sample alone, so that a sample's estimate does not depend
    on its batch. The batch continues until its last sample has settled.

    Args:
        tolerance: largest change of a settled value, in nats, per residual block.
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
            at_least("max_terms", max_terms, 1),
            tail=tail if tail is not None else Geometric(SETTLED_RATIO),
            probe=probe,
            num_probes=num_probes,
            memory=memory,
        )
        if not tolerance > 0:
            raise ValueError(f"tolerance: expected a positive number of nats, got {tolerance}.")
        self.tolerance = tolerance

    def estimate(
        self, vjp: Vjp, probes: Tensor, function: SpectralFunction = LOG_ONE_PLUS
    ) -> Estimate:
        # 1. take steps until every sample has settled
        steps = _KrylovSteps(vjp, probes, function)
        settled_at = self._until_settled(steps)
        # 2. take a random number of further steps, drawn once for the batch
        extra = self.tail.draw(self.probe.host_generator())
        for _ in range(extra):
            steps.extend()
        # 3. weight each sample's increments by a roulette that starts where it has settled
        return steps.weighted(self._weights(settled_at, extra, len(steps.increments)))

    def _until_settled(self, steps: _KrylovSteps) -> Tensor:
        """Take steps until all samples have settled; return the step of each, ``(B,)``."""
        steps.extend()
        settled_at = torch.full_like(steps.increments[0], self.terms, dtype=torch.long)
        for k in range(2, self.terms + 1):
            steps.extend()
            settled = (steps.increments[-1] * steps.square).abs() <= self.tolerance
            settled_at = torch.where(settled, settled_at.clamp(max=k), settled_at)
            if settled.is_meta or bool((settled_at <= k).all()):
                break
        return settled_at

    def _weights(self, settled_at: Tensor, extra: int, steps: int) -> list[Tensor]:
        """The weights of each increment, shape ``(B,)``, by each sample's own roulette."""
        survival = [self.tail.survival(j) for j in range(extra + 1)]
        inverse = torch.tensor([1 / p for p in survival], device=settled_at.device)
        weights = []
        for k in range(1, steps + 1):
            beyond = k - settled_at
            weight = inverse[beyond.clamp(0, extra)]
            weights.append(torch.where(beyond <= extra, weight, 0))
        return weights


class _KrylovSteps:
    """The Krylov space of J^T and the probes, and the increments of the estimate.

    Attributes:
        increments: (q_k - q_{k-1}) / |e|^2 for each step, shape ``(B,)``.
        square: |e|^2, shape ``(B,)``.
    """

    def __init__(self, vjp: Vjp, probes: Tensor, function: SpectralFunction) -> None:
        self.vjp = vjp
        self.shape = probes.shape
        self.rows = probes.shape[0] * probes.shape[1], probes.shape[2:].numel()
        self.basis = ArnoldiBasis(probes.reshape(self.rows))
        self.square = self.basis.norm.square()
        self.functions = LogarithmAndInverse(self.basis.norm, function.terms)
        self.increments: list[Tensor] = []

    def extend(self, *, is_last: bool = False) -> None:
        """Take one more product; the last one needs no further basis vector."""
        product = self.vjp(self.basis.last.view(self.shape)).reshape(self.rows)
        column = self.basis.last_column(product) if is_last else self.basis.extend(product)
        self.increments.append(self.functions.extend(column))

    def weighted(self, weights: Sequence[Tensor | float]) -> Estimate:
        """The sum of the increments times weights, each a number or of shape ``(B,)``."""
        value = weighted_sum(self.increments, weights) * self.square
        value = value.view(self.shape[:2])
        if VALUE_ONLY.get():
            return Estimate(value, self.basis.vectors[0].view(self.shape))
        adjoint = self.basis.combine(self.functions.inverse(weights))
        return Estimate(value, adjoint.view(self.shape))
