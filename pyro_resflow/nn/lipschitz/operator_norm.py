r"""The base class of operator norms, and products of an operator with flat vectors.

A norm object is a strategy: it determines which norm of a layer is bounded, by which coefficient,
and how the norm is measured. Its only state is its learnable orders; the vectors of the iteration
belong to the layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...rebuilding import Rebuildable
from .operators import GRAM_STEPS, LinearOperator


class OperatorNorm(Rebuildable, nn.Module):
    """A norm that bounds layers, and how it is measured.

    Args:
        coefficient: the largest norm that a layer may have, in (0, 1).
        tolerance: relative change of the measured norm at which the iteration stops; ``None``
            always takes ``max_iterations`` steps, so that an accelerator need not synchronise
            for each check.
        max_iterations: largest number of applications of the operator in one update.

    Raises:
        ValueError: for a coefficient outside (0, 1) or no iterations.
    """

    def __init__(
        self, coefficient: float, *, tolerance: float | None, max_iterations: int
    ) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            raise ValueError(
                f"coefficient: expected 0 < coefficient < 1, got {coefficient}; a residual block "
                "is invertible if its Lipschitz constant is below 1."
            )
        if max_iterations < 1:
            raise ValueError(
                f"max_iterations: expected an integer of at least 1, got {max_iterations}."
            )
        self.coefficient = coefficient
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    @property
    def marks_failure(self) -> bool:
        """Whether the vectors of a norm that is not finite are nan; by default an error is raised.

        The error would need a value from the device.
        """
        return False

    def iterate(self, operator: LinearOperator, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Update the vectors: u of shape ``(out,)``, v of shape ``(in,)``."""
        raise NotImplementedError

    def settings(self) -> tuple[object, ...]:
        """The settings that determine a layer's effective weight."""
        return self.coefficient, self.tolerance, self.max_iterations

    def orders(self) -> tuple[Tensor, ...]:
        """The tensors other than the weight that the norm depends on; by default none."""
        return ()

    def kind(self) -> tuple[object, ...]:
        """A key that is equal for norms that can be measured together; by default unique."""
        return (id(self),)

    def iterate_together(
        self, operators: Sequence[LinearOperator], us: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """:meth:`iterate` for several operators that all have one shape or its transpose."""
        return [self.iterate(*each) for each in zip(operators, us, vs, strict=True)]

    def sigma(self, operator: LinearOperator, u: Tensor, v: Tensor) -> Tensor:
        """The norm at the vectors u and v, a scalar, differentiable in the weight."""
        raise NotImplementedError

    def belong(self, operator: LinearOperator, u: Tensor, v: Tensor) -> bool:
        """Whether the vectors can result from an update of this operator, up to rounding."""
        return True

    def upper_bound(self, operator: LinearOperator, steps: int = GRAM_STEPS) -> Tensor:
        """A certified upper bound of the norm, a scalar."""
        raise NotImplementedError


def apply_flat(operator: LinearOperator, v: Tensor) -> Tensor:
    """A v on flat vectors, shape ``(in,)`` to ``(out,)``."""
    return operator.apply(v.view(1, *operator.domain)).flatten()


def adjoint_flat(operator: LinearOperator, u: Tensor) -> Tensor:
    """A^T u on flat vectors, shape ``(out,)`` to ``(in,)``."""
    return operator.adjoint(u.view(1, *operator.codomain)).flatten()
