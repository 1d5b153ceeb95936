"""An unbiased estimate where an ELBO is trained, and the exact log-determinant elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from ..callers import is_inside_linear_bound
from ..differentiation import saving_hooks
from ..linearization import Linearizable
from .estimator import LogDetEstimator
from .exact import Exact
from .functions import SpectralFunction
from .krylov import Krylov


class EstimatedInElbo(LogDetEstimator):
    r"""An estimate where Pyro trains an ELBO, and another estimator, by default exact, elsewhere.

    An ELBO is linear in the log-density of the guide, so that an unbiased estimate leaves its
    gradient with respect to reparametrized samples unbiased, and costs less than the full Jacobian
    in more than about 16 dimensions. Importance weights, Markov chains and plots need the exact
    value.

    The estimate is used with gradients enabled inside the methods ``loss_and_grads`` and
    ``differentiable_loss`` of ``Trace_ELBO``, ``TraceMeanField_ELBO`` and ``TraceGraph_ELBO``:
    in the steps of ``SVI``, and in ``Trace_ELBO()(model, guide)``. Subclasses of these bounds,
    compiled ones among them, other objectives, activation checkpointing, ``elbo.loss`` and
    ``SVI.evaluate_loss`` use the other estimator. An estimate is differentiable once.

    Args:
        estimate: the estimator inside an ELBO; default :class:`Krylov`.
        elsewhere: the estimator of all other calls; default :class:`Exact`.

    Example:
        >>> import torch
        >>> from pyro_resflow import residual_flow
        >>> from pyro_resflow.logdet import EstimatedInElbo
        >>> from pyro_resflow.transforms import is_deterministic
        >>> flow = residual_flow(20, logdet=EstimatedInElbo())
        >>> is_deterministic(flow)
        True
    """

    def __init__(
        self,
        estimate: LogDetEstimator | None = None,
        elsewhere: LogDetEstimator | None = None,
    ) -> None:
        self.estimate = estimate if estimate is not None else Krylov()
        self.elsewhere = elsewhere if elsewhere is not None else Exact()

    def chosen(self) -> LogDetEstimator:
        return (self.estimate if _trains_an_elbo() else self.elsewhere).chosen()

    @property
    def is_deterministic(self) -> bool:
        """Whether two calls at the same point, from here, give the same value."""
        return self.chosen().is_deterministic

    def value_and_trace(
        self, net: Linearizable, x: Tensor, function: SpectralFunction
    ) -> tuple[Tensor, Tensor]:
        return self.chosen().value_and_trace(net, x, function)


def _trains_an_elbo() -> bool:
    """Whether a bound takes a gradient step.

    Activation checkpointing, which saves by hooks, runs a pass again in a backward pass, which may
    belong to another thread without the bound among its callers.
    """
    return torch.is_grad_enabled() and not saving_hooks() and is_inside_linear_bound()
