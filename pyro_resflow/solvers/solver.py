"""The base class of fixed-point solvers: the interface that blocks use."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ..linearization import Linearizable, as_linearizable, flatten_batch, resolve_event_dim
from .convergence import FixedPointError
from .implicit import implicit_solution
from .iteration import FixedPointIteration
from .tolerance import Iterative, Unsolved


class FixedPointSolver(Iterative, ABC):
    r"""Solve x + g(x) = y for a contraction g.

    This is the base class of all fixed-point solvers. A subclass implements :meth:`solve`, which
    runs an iteration on a flattened batch. It then works in every block, and has gradients.

    The call ``solver(net, y, event_dim=None)`` flattens the batch dimensions of y, shape
    ``(*batch, *event)``, and returns x, same shape as y. Its derivative is
    :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`; the backward pass solves a system
    with :math:`(I+J)^T` in a Krylov space and stores no iterates. Derivatives of all orders, in
    both modes and by ``torch.func`` follow in the same way.

    Args:
        tolerance: largest residual of an entry, relative to the largest entry of y or 1; default
            2e-7 in float32 (and below) and 2e-11 in float64. The error of x is up to 1/(1 - L)
            times as large.
        max_iterations: largest number of network evaluations.
        unsolved: ``"raise"`` an error for the batch if a sample does not reach the tolerance, or
            return ``"nan"`` for such samples, and for samples of y that are not finite. No
            gradient flows through these samples.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive, or another
            ``unsolved``.
        ConvergenceError: when called, if samples do not reach the tolerance; it names them.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> from pyro_resflow.solvers import FixedPointSolver
        >>> from pyro_resflow.transforms import Residual
        >>> class Damped(FixedPointSolver):
        ...     '''Banach's iteration with steps of 0.9 times their length.'''
        ...
        ...     def solve(self, iteration):
        ...         while not iteration.done:
        ...             if iteration.exhausted:
        ...                 raise iteration.failure()
        ...             iteration.move(iteration.x + 0.9 * iteration.residual)
        ...         return iteration.x
        >>> t = Residual(LipschitzMLP(3), solver=Damped())
        >>> x = torch.randn(7, 3)
        >>> torch.allclose(t.inv(t(x)), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        *,
        tolerance: float | None = None,
        max_iterations: int = 1000,
        unsolved: Unsolved = "raise",
    ) -> None:
        super().__init__(tolerance=tolerance, max_iterations=max_iterations, unsolved=unsolved)

    def __call__(
        self, net: nn.Module | Linearizable, y: Tensor, event_dim: int | None = None
    ) -> Tensor:
        flat, _ = flatten_batch(y, resolve_event_dim(net, event_dim))
        network = as_linearizable(net)
        if self.unsolved == "raise" or y.is_meta:
            return implicit_solution(self, network, flat).reshape(y.shape)
        self.refuse_torch_func()
        finite = flat.flatten(1).isfinite().all(1)
        attempt = _SamplewiseAttempt(self)
        given = torch.where(_for_entries(finite, flat), flat, 0)
        x = implicit_solution(attempt, network, given)
        solved = finite if attempt.failed is None else finite & ~attempt.failed
        return torch.where(_for_entries(solved, flat), x, torch.nan).reshape(y.shape)

    @abstractmethod
    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """Run the iteration to its end.

        Args:
            iteration: the points and their residuals, of shape ``(N, D)``; advance it by
                :meth:`FixedPointIteration.move` until it is ``done``, and raise its ``failure()``
                once it is ``exhausted``.

        Returns:
            x, shape ``(N, D)``.
        """


class _SamplewiseAttempt:
    """A solver for one call, which records the samples that it cannot solve."""

    def __init__(self, solver: FixedPointSolver) -> None:
        self.solver = solver
        self.tolerance_for = solver.tolerance_for
        self.max_iterations = solver.max_iterations
        self.failed: Tensor | None = None

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """The solution; for unsolved samples, the point of the smallest residual."""
        try:
            return self.solver.solve(iteration)
        except FixedPointError as error:
            self.failed = error.failed
            return torch.where(iteration.settled[:, None], iteration.x, iteration.best_x)


def _for_entries(samples: Tensor, x: Tensor) -> Tensor:
    """A mask of samples, ``(N,)``, as one that broadcasts with ``(N, *event)``."""
    return samples.reshape(-1, *[1] * (x.dim() - 1))
