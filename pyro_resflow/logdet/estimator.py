"""The base class of log-determinant estimators: the interface that blocks use."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..linearization import Linearizable, as_linearizable, flatten_batch, resolve_event_dim
from ..rebuilding import Rebuildable
from .functions import LOG_ONE_PLUS, SpectralFunction


class LogDetEstimator(Rebuildable, ABC):
    r"""An estimator of :math:`\mathrm{tr} f(J_g(x))`; for f = log(1 + z), of log|det(I + J_g(x))|.

    This is the base class of all estimators. A subclass implements :meth:`value_and_trace` for a
    flattened batch, and then works in every block: :class:`pyro_resflow.transforms.Residual` uses
    the logarithm, :class:`pyro_resflow.transforms.Monotone` another f. An estimator should be
    unbiased, or document its bias. Gradients must reach x and ``net.coefficients()``.

    The call ``estimator(net, x, event_dim=None, function=LOG_ONE_PLUS)`` flattens the batch
    dimensions of x, shape ``(*batch, *event)``, and returns g(x), same shape as x, and the trace,
    shape ``batch``.

    Example:
        >>> import torch
        >>> from pyro_resflow.logdet import LogDetEstimator
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> from pyro_resflow.transforms import Monotone, Residual
        >>> class FirstOrder(LogDetEstimator):
        ...     '''f'(0) tr J, which is tr f(J) up to terms of second order.'''
        ...
        ...     is_deterministic = True
        ...
        ...     def value_and_trace(self, net, x, function):
        ...         at_x = net.linearize(x)
        ...         units = torch.eye(x.shape[1])[:, None].expand(-1, *x.shape)
        ...         trace = (units * at_x.jvp(units)).sum((0, 2))
        ...         return at_x.value, function.derivative_coefficient(0) * trace
        >>> x = torch.randn(7, 3)
        >>> for kind in (Residual, Monotone):
        ...     y, ladj = kind(LipschitzMLP(3), logdet=FirstOrder()).call_and_ladj(x)
        >>> ladj.shape
        torch.Size([7])
    """

    @property
    def is_deterministic(self) -> bool:
        """Whether two calls at the same point give the same value.

        HMC, NUTS and importance weights refuse other estimators. A deterministic subclass sets the
        class attribute ``is_deterministic = True``.
        """
        return False

    def chosen(self) -> LogDetEstimator:
        """The estimator that computes the result of a call from here; usually this one itself."""
        return self

    @abstractmethod
    def value_and_trace(
        self, net: Linearizable, x: Tensor, function: SpectralFunction
    ) -> tuple[Tensor, Tensor]:
        """g(x) and tr f(J_g(x)) for a flat batch.

        Args:
            net: g, with ``linearize(x)`` for products with its Jacobian, see
                :class:`pyro_resflow.linearization.Linearizable`.
            x: shape ``(N, *event)``.
            function: f.

        Returns:
            g(x), shape ``(N, *event)``, and the trace of each sample, shape ``(N,)``.
        """

    def __call__(
        self,
        net: nn.Module | Linearizable,
        x: Tensor,
        event_dim: int | None = None,
        function: SpectralFunction = LOG_ONE_PLUS,
    ) -> tuple[Tensor, Tensor]:
        """g(x), same shape as x, and tr f(J_g(x)), shape ``x.shape[:-event_dim]``.

        Args:
            net: g.
            x: shape ``(*batch, *event)``.
            event_dim: number of event dimensions; default ``net.event_dim``, else 1.
            function: f; default log(1 + z), whose trace is log|det(I + J_g(x))|.
        """
        flat, batch_shape = flatten_batch(x, resolve_event_dim(net, event_dim))
        g, trace = self.value_and_trace(as_linearizable(net), flat, function)
        return g.reshape(x.shape), trace.reshape(batch_shape)
