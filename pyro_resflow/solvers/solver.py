"""What a block asks of a solver of fixed points."""

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

    The base of all solvers. One of your own implements :meth:`solve`, which runs an iteration over
    a flattened batch; it then works in every block, and has gradients of its own.

    Calling it as ``solver(net, y, event_dim=None)`` flattens the batch dimensions of y, shape
    ``(*batch, *event)``, and returns x of the shape of y. With respect to y
    and the parameters of g, :math:`dx = (I + J)^{-1}(dy - \partial_\theta g\, d\theta)`; the
    backward pass solves with :math:`(I+J)^T` in a Krylov space and keeps none of the iterations.
    Derivatives of all orders, of both modes and of ``torch.func`` follow in the same way.

    Args:
        tolerance: largest residual of an entry, relative to the largest entry of y or 1; default
            2e-7 in float32 (and below) and 2e-11 in float64. The error of x is up to 1/(1 - L)
            times as large.
        max_iterations: largest number of network evaluations.
        unsolved: what becomes of samples for which the tolerance is not reached: ``"raise"`` an
            error for the batch, or ``"nan"`` in their place, and in that of samples of y that are
            not finite. No gradient comes from those.

    Raises:
        ValueError: for a tolerance or a number of iterations that is not positive, or another
            ``unsolved``.
        ConvergenceError: when called, if the tolerance is not reached; it says for which samples.

    Example:
        >>> import torch
        >>> from pyro_resflow.nn import LipschitzMLP
        >>> from pyro_resflow.solvers import FixedPointSolver
        >>> from pyro_resflow.transforms import Residual
        >>> class Damped(FixedPointSolver):
        ...     '''Banach's iteration by steps of 0.9 of their length.'''
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
    """A solver for one call, which goes on without the samples that it cannot solve."""

    def __init__(self, solver: FixedPointSolver) -> None:
        self.solver = solver
        self.tolerance_for = solver.tolerance_for
        self.max_iterations = solver.max_iterations
        self.failed: Tensor | None = None

    def solve(self, iteration: FixedPointIteration) -> Tensor:
        """What the solver finds; where it fails, the point of the smallest residual."""
        try:
            return self.solver.solve(iteration)
        except FixedPointError as error:
            self.failed = error.failed
            return torch.where(iteration.settled[:, None], iteration.x, iteration.best_x)


def _for_entries(samples: Tensor, x: Tensor) -> Tensor:
    """A mask of samples, ``(N,)``, as one that broadcasts with ``(N, *event)``."""
    return samples.reshape(-1, *[1] * (x.dim() - 1))
