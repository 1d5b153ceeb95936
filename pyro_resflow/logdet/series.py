"""Estimators from the power series of the logarithm."""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import Estimate, Memory, Vjp
from .functions import LOG_ONE_PLUS, SpectralFunction
from .probes import Probe
from .stochastic import RouletteEstimator
from .tails import NoTail


class RussianRoulette(RouletteEstimator):
    r"""Unbiased power series: fixed terms, then a random number of reweighted ones.

    .. math:: q = \sum_{k=1}^{m+N} \frac{(-1)^{k+1}}{k}\,\frac{e^T J^k e}{p_k}, \qquad
              w = \sum_{k=0}^{m+N} \frac{(-1)^k}{p_k} (J^T)^k e,

    with :math:`p_k = 1` for :math:`k \le m` and :math:`P(N \ge k - m)` beyond. Both are unbiased,
    because each term is divided by the probability of reaching it. Another
    :class:`SpectralFunction` of J replaces the coefficients by its own.

    Args:
        terms: m, the number of terms that are always taken.
        tail: distribution of N; default ``Geometric(0.5)``. ``Poisson(2)`` with ``terms=2`` is the
            published setting, whose variance is formally infinite.
        probe: see :class:`StochasticEstimator`.
        num_probes: see :class:`StochasticEstimator`.
        memory: see :class:`StochasticEstimator`.

    Reference:
        Chen et al., Residual Flows for Invertible Generative Modeling, 2019, equations 6 and 8.

    Example:
        >>> import torch
        >>> from pyro_resflow.logdet import RussianRoulette
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> g, logdet = RussianRoulette()(LipschitzMLP(2), torch.randn(7, 2))
        >>> logdet.shape
        torch.Size([7])
    """

    def estimate(
        self, vjp: Vjp, probes: Tensor, function: SpectralFunction = LOG_ONE_PLUS
    ) -> Estimate:
        extra = self.tail.draw(self.probe.host_generator())
        power = probes
        adjoint = function.derivative_coefficient(0) * probes
        value = probes.new_zeros(probes.shape[:2])
        for k in range(1, self.terms + extra + 1):
            power = vjp(power)
            term = power if k <= self.terms else power / self.tail.survival(k - self.terms)
            inner = (term * probes).flatten(2).sum(-1)
            value = value + function.derivative_coefficient(k - 1) * inner / k
            adjoint = torch.add(adjoint, term, alpha=function.derivative_coefficient(k))
        return Estimate(value, adjoint)


class PowerSeries(RussianRoulette):
    r"""The power series truncated after m terms: biased, with less variance.

    :math:`q = \sum_{k=1}^m \frac{(-1)^{k+1}}{k} e^T J^k e`; the error is below
    :math:`-D\,(\log(1-L) + \sum_{k\le m} L^k/k)` for a Lipschitz constant L in D dimensions. The
    gradient is that of the adjoint series truncated at the same power, :math:`k \le m`.

    Args:
        terms: m.
        probe: see :class:`StochasticEstimator`.
        num_probes: see :class:`StochasticEstimator`.
        memory: see :class:`StochasticEstimator`.

    Reference:
        Behrmann et al., Invertible Residual Networks, 2019, equation 4 and theorem 3.
    """

    def __init__(
        self,
        terms: int = 5,
        *,
        probe: Probe | None = None,
        num_probes: int = 1,
        memory: Memory = "recompute",
    ) -> None:
        super().__init__(terms, tail=NoTail(), probe=probe, num_probes=num_probes, memory=memory)
