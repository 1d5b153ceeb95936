"""Monotone transforms: Cayley transforms of a contraction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...arguments import checked
from ...linearization import Negative, as_linearizable
from ...logdet import LOG_CAYLEY, LogDetEstimator
from ...nn import LipschitzMLP
from ...solvers import FixedPointSolver
from .calls import Network, estimated, solved
from .contraction_transform import ContractionTransform


class Monotone(ContractionTransform):
    r"""The monotone transform of a contraction g: :math:`x \mapsto y = \sqrt 2\,w - x`.

    w solves :math:`w + g(w) = \sqrt 2\,x`. The inverse is :math:`x = \sqrt 2\,w - y`, where w
    solves :math:`w - g(w) = \sqrt 2\,y`, so that both directions iterate. At w,

    .. math:: \frac{dy}{dx} = (I - J)(I + J)^{-1}, \qquad
              \log\Big|\det\frac{dy}{dx}\Big| = -2\,\mathrm{tr}\,\mathrm{artanh}\,J
              = -2 \sum_{k\ \mathrm{odd}} \frac{\mathrm{tr} J^k}{k}.

    If g has the Lipschitz constant L, the transform stretches distances by factors between
    (1 - L)/(1 + L) and (1 + L)/(1 - L). For a residual transform these are 1 - L and 1 + L.

    Args:
        net: g, any module from ``(N, *event)`` to ``(N, *event)`` with Lipschitz constant below 1.
        event_dim: number of event dimensions; default ``net.event_dim`` if there is one, else 1.
        logdet: estimator of the log-determinant, one of :mod:`pyro_resflow.logdet`; default: see
            :class:`Residual`.
        solver: solver of both directions, see :mod:`pyro_resflow.solvers`; default ``Anderson()``.
        cache_size: 0 or 1.

    Raises:
        ConvergenceError: in either direction, if the solver does not converge, for instance
            because g is not a contraction.

    Reference:
        Ahn, Kim, Hong and Kim, Invertible Monotone Operators for Normalizing Flows, 2022.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> from pyro_resflow.transforms import Monotone
        >>> t = Monotone(LipschitzMLP(2))
        >>> x = torch.randn(5, 2)
        >>> y, ladj = t.call_and_ladj(x)
        >>> torch.allclose(t.inv(y), x, atol=1e-5)
        True
    """

    @property
    def passes(self) -> tuple[str, str]:
        """How a call and the inverse are computed: both iterate."""
        solver = type(self.solver).__name__
        return solver, solver

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self._solve("x", x, self.net)
        return math.sqrt(2) * w - x, self._ladj(w)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        w = self._solve("y", y, self._negative)
        return math.sqrt(2) * w - y, self._ladj(w)

    def _call(self, x: Tensor) -> Tensor:
        return math.sqrt(2) * self._solve("x", x, self.net) - x

    def _inverse(self, y: Tensor) -> Tensor:
        return math.sqrt(2) * self._solve("y", y, self._negative) - y

    @property
    def _negative(self) -> Network:
        return Negative(as_linearizable(self.net))

    def _solve(self, name: str, x: Tensor, net: Network) -> Tensor:
        self._check(name, x, autocast=False)
        return solved(self.solver, net, math.sqrt(2) * x, self._event_dim)

    def _ladj(self, w: Tensor) -> Tensor:
        """The log-determinant at w; its gradient also flows through the solution w."""
        return estimated(self.logdet, self.net, w, self._event_dim, LOG_CAYLEY)[1]


@checked(LipschitzMLP)
def monotone(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    *,
    logdet: LogDetEstimator | None = None,
    solver: FixedPointSolver | None = None,
    **network: Any,
) -> Monotone:
    """A monotone transform of vectors.

    Args:
        input_dim: size of the vectors.
        hidden_dims: widths of the hidden layers; default ``[64, 64]``.
        logdet: see :class:`Monotone`.
        solver: see :class:`Monotone`.
        network: further arguments of :class:`pyro_resflow.nn.LipschitzMLP`.

    Example:
        >>> import torch
        >>> from pyro.distributions.transforms import iterated
        >>> from pyro_resflow.transforms import monotone
        >>> iterated(2, monotone, 3)(torch.randn(5, 3)).shape
        torch.Size([5, 3])
    """
    net = LipschitzMLP(input_dim, hidden_dims if hidden_dims is not None else (64, 64), **network)
    return Monotone(net, logdet=logdet, solver=solver)
