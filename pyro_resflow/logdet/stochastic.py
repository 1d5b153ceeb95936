"""The base classes of the stochastic estimators of log|det(I + J)|."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from torch import Tensor

from ..linearization import Linearizable
from .autograd import Estimate, Memory, Vjp, value_and_logdet
from .estimator import LogDetEstimator
from .functions import LOG_ONE_PLUS, SpectralFunction
from .probes import Probe, Rademacher
from .tails import Geometric, Tail


class StochasticEstimator(LogDetEstimator):
    r"""An estimator that probes the Jacobian with random vectors.

    It averages :math:`e^T f(J) e`, whose expectation is :math:`\mathrm{tr} f(J)`, over probes e of
    covariance I. A subclass implements :meth:`estimate`; gradients follow from its result.

    Args:
        probe: distribution of the probes; default :class:`Rademacher`.
        num_probes: number S of probes averaged per sample; the variance from the probes falls as
            1/S, and the cost of products grows as S.
        memory: ``"recompute"`` (least memory) or ``"keep"`` (one network pass fewer); small blocks
            of vectors that share an estimate keep their features in both modes.

    Raises:
        ValueError: for fewer than one probe or an unknown memory mode.
    """

    def __init__(
        self, *, probe: Probe | None = None, num_probes: int = 1, memory: Memory = "recompute"
    ) -> None:
        self.probe = probe if probe is not None else Rademacher()
        self.num_probes = at_least("num_probes", num_probes, 1)
        if memory not in ("recompute", "keep"):
            raise ValueError(f"memory: expected 'recompute' or 'keep', got {memory!r}.")
        self.memory = memory

    @property
    def is_deterministic(self) -> bool:
        """Whether two calls at the same point give the same value."""
        return self.probe.is_frozen

    def value_and_trace(
        self, net: Linearizable, x: Tensor, function: SpectralFunction
    ) -> tuple[Tensor, Tensor]:
        estimation = partial(self.estimate, function=function)
        return value_and_logdet(net, estimation, self.probe, self.num_probes, self.memory, x)

    @abstractmethod
    def estimate(
        self, vjp: Vjp, probes: Tensor, function: SpectralFunction = LOG_ONE_PLUS
    ) -> Estimate:
        """The value e^T f(J) e and the adjoint f'(J)^T e of each probe e, from products with J^T.

        Args:
            vjp: w -> J^T w on ``(S, N, *event)``.
            probes: shape ``(S, N, *event)``.
            function: f.
        """


class RouletteEstimator(StochasticEstimator):
    """An estimator with a fixed number of terms and a random number of further ones.

    Args:
        terms: number of products with the Jacobian that are always taken.
        tail: distribution of the number of further ones; default ``Geometric(default_ratio)``.
        probe: see :class:`StochasticEstimator`.
        num_probes: see :class:`StochasticEstimator`.
        memory: see :class:`StochasticEstimator`.

    Raises:
        ValueError: for fewer than one term.
    """

    default_ratio = 0.5
    """One further term on average."""

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
        self.tail = tail if tail is not None else Geometric(self.default_ratio)


def at_least(name: str, value: int, least: int) -> int:
    """``value``, checked.

    Raises:
        ValueError: if it is below ``least``.
    """
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value}.")
    return value
