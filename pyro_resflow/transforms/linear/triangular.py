"""A correlated affine transform of vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...precision import full_precision
from ..core.checks import check_dtype, check_event_shape
from ..core.one_pass_transform import OnePassTransform


class TriangularAffine(OnePassTransform):
    r"""Correlated scale and shift, :math:`y = e^s \odot (I + N)\,x + b`.

    N is strictly lower triangular. It maps standard normal vectors to any multivariate normal
    distribution, and starts as the identity.

    Args:
        num_features: D. The transform has D (D + 3) / 2 parameters.
        cache_size: 0 or 1.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import TriangularAffine
        >>> TriangularAffine(3)(torch.ones(7, 3)).shape
        torch.Size([7, 3])
    """

    def __init__(self, num_features: int, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.num_features = num_features
        self.log_scale = nn.Parameter(torch.zeros(num_features))
        self.shift = nn.Parameter(torch.zeros(num_features))
        self.below_diagonal = nn.Parameter(torch.zeros(num_features * (num_features - 1) // 2))

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return constraints.real_vector

    codomain = domain

    def unit_triangle(self) -> Tensor:
        """I + N, shape ``(D, D)``."""
        size, device = self.num_features, self.shift.device
        row, column = torch.tril_indices(size, size, -1, device=device)
        unit = torch.eye(size, dtype=self.shift.dtype, device=device)
        return unit.index_put((row, column), self.below_diagonal)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(x), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), self._ladj(y)

    def _call(self, x: Tensor) -> Tensor:
        check_event_shape("x", x, (self.num_features,))
        check_dtype("x", x, self, autocast=False)
        with full_precision(x):  # to match the inverse, whose triangular solve has full precision
            return (x @ self.unit_triangle().mT) * self.log_scale.exp() + self.shift

    def _inverse(self, y: Tensor) -> Tensor:
        check_event_shape("y", y, (self.num_features,))
        check_dtype("y", y, self)
        right = (y - self.shift) * (-self.log_scale).exp()
        columns = right.reshape(-1, self.num_features).mT
        solved = torch.linalg.solve_triangular(
            self.unit_triangle(), columns, upper=False, unitriangular=True
        )
        return solved.mT.reshape(y.shape)

    def _ladj(self, x: Tensor) -> Tensor:
        return self.log_scale.sum().expand(x.shape[:-1])
