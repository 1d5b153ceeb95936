"""Base classes of transforms by a contraction."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import constraints

from ...linearization import known_event_shape, resolve_event_dim
from ...logdet import LogDetEstimator, default_logdet
from ...solvers import Anderson, FixedPointSolver
from ..core.checks import check_dtype, check_event_shape
from ..core.determinism import EstimatesLogDet
from ..core.one_pass_transform import OnePassTransform
from .calls import Network


class HoldsContraction(EstimatesLogDet, nn.Module):
    """A module with a contraction g, a log-determinant estimator and a solver.

    Subclasses call :meth:`_set_contraction` in their constructor, after that of ``nn.Module``.
    """

    net: nn.Module
    solver: FixedPointSolver

    def _set_contraction(
        self,
        net: object,
        event_dim: int | None,
        logdet: LogDetEstimator | None,
        solver: FixedPointSolver | None,
    ) -> None:
        self.net = net  # type: ignore[assignment]
        self._event_dim = resolve_event_dim(net, event_dim)
        self._event_shape = known_event_shape(net, self._event_dim)
        self.logdet = logdet if logdet is not None else default_logdet(self._event_shape)
        self.solver = solver if solver is not None else Anderson()

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        """Real tensors with ``event_dim`` event dimensions."""
        return constraints.independent(constraints.real, self._event_dim)

    codomain = domain

    @property
    def passes(self) -> tuple[str, str]:
        """How a call and the inverse are computed: the inverse iterates."""
        return "one pass", type(self.solver).__name__

    def _check(self, name: str, x: Tensor, *, autocast: bool) -> None:
        """Check the dtype and the shape of an input; for ``autocast`` see ``check_dtype``."""
        if self._event_shape is not None:
            check_event_shape(name, x, self._event_shape)
        check_dtype(name, x, self.net, autocast=autocast)


class ContractionTransform(HoldsContraction, OnePassTransform):
    """Base class of transforms by a contraction g.

    Args:
        net: g, any module from ``(N, *event)`` to ``(N, *event)`` with Lipschitz constant below 1.
        event_dim: number of event dimensions; default ``net.event_dim`` if it exists, else 1.
        logdet: estimator of the log-determinant, see :mod:`pyro_resflow.logdet`. The default is
            ``Exact()`` if ``net`` declares an event shape of at most 8 entries, else ``Krylov()``.
        solver: fixed-point solver, see :mod:`pyro_resflow.solvers`; default ``Anderson()``.
        cache_size: 0 or 1.

    Raises:
        TypeError: if ``logdet`` is not a :class:`pyro_resflow.logdet.LogDetEstimator` or
            ``solver`` is not a :class:`pyro_resflow.solvers.FixedPointSolver`.
    """

    def __init__(
        self,
        net: Network,
        *,
        event_dim: int | None = None,
        logdet: LogDetEstimator | None = None,
        solver: FixedPointSolver | None = None,
        cache_size: int = 1,
    ) -> None:
        super().__init__(cache_size=cache_size)
        self._set_contraction(net, event_dim, logdet, solver)
