"""The invertible 1x1 convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...precision import full_precision
from ..core.checks import check_dtype, check_event_shape
from ..core.one_pass_transform import OnePassTransform


class InvertibleConv1x1(OnePassTransform):
    r"""Mix the channels of every pixel by one invertible matrix W.

    :math:`W = P L (U + \mathrm{diag}(\pm e^s))` with a fixed permutation P, L lower triangular
    with ones on its diagonal and U strictly upper triangular. W starts as a random rotation and
    is invertible for any parameters. For an image of height h and width w the log-determinant is
    :math:`h\,w \sum s`.

    Pyro's ``GeneralizedChannelPermute`` is the same map, but allocates C times its input and has
    no ``with_cache``.

    Args:
        channels: C.
        cache_size: 0 or 1.

    Raises:
        ValueError: when called, if the input has another number of channels.

    Reference:
        Kingma and Dhariwal, Glow, 2018, section 3.2.

    Example:
        >>> import torch
        >>> from pyro_resflow.transforms import InvertibleConv1x1
        >>> x = torch.randn(7, 4, 8, 8)
        >>> y = InvertibleConv1x1(4)(x)
        >>> torch.allclose(y.square().sum(1), x.square().sum(1), atol=1e-4)
        True
    """

    domain = constraints.independent(constraints.real, 3)
    codomain = constraints.independent(constraints.real, 3)

    permutation: Tensor
    diagonal_sign: Tensor

    def __init__(self, channels: int, *, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.channels = channels
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation)
        self.register_buffer("diagonal_sign", diagonal.sign())
        self.log_diagonal = nn.Parameter(diagonal.abs().log())
        # both strict triangles in one matrix
        self.triangles = nn.Parameter(lower.tril(-1) + upper.triu(1))

    def matrix(self) -> Tensor:
        """W, shape ``(C, C)``."""
        lower, upper = self._factors()
        return self.permutation @ lower @ upper

    def inverse_matrix(self) -> Tensor:
        """The inverse of W, shape ``(C, C)``."""
        lower, upper = self._factors()
        solved = torch.linalg.solve_triangular(
            lower, self.permutation.mT, upper=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper, solved, upper=True)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(x), self._ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), self._ladj(y)

    def _call(self, x: Tensor) -> Tensor:
        return self._mix_channels("x", x, self.matrix)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._mix_channels("y", y, self.inverse_matrix)

    def _mix_channels(self, name: str, x: Tensor, matrix: Callable[[], Tensor]) -> Tensor:
        check_event_shape(name, x, (self.channels, *x.shape[-2:]))
        check_dtype(name, x, self, autocast=False)
        with full_precision(x):
            return (matrix() @ x.flatten(-2)).reshape(x.shape)

    def _factors(self) -> tuple[Tensor, Tensor]:
        diagonal = torch.diag(self.diagonal_sign * self.log_diagonal.exp())
        unit = torch.eye(self.channels, dtype=diagonal.dtype, device=diagonal.device)
        return self.triangles.tril(-1) + unit, self.triangles.triu(1) + diagonal

    def _ladj(self, x: Tensor) -> Tensor:
        pixels = x.shape[-2] * x.shape[-1]
        return (self.log_diagonal.sum() * pixels).expand(x.shape[:-3])
