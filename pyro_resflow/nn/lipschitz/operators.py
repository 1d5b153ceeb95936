"""The linear operators whose norms bound a network's Lipschitz constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ...differentiation import torch_func_is_active
from .convolution import Kernel, kernel_gradient
from .groups import MatrixGroup, OperatorGroup, convolution_group

DENSE_LIMIT = 1024
"""Largest side of a Gram matrix that is formed for a bound: 8 MiB in float64. For larger images
the bound by frequencies is nearly as sharp, because the border is a small part of the image."""

CHUNK = 2**24
"""Complex entries of the frequency matrices that are multiplied at a time: 256 MiB."""

GRAM_STEPS = 10
"""Squarings in a bound. At rank r the bound is at most r^(1/2048) times the norm: 1.0034 times for
r = 1024."""


class LinearOperator(Protocol):
    """The linear map A of a weight, on any number of vectors at once."""

    @property
    def weight(self) -> Tensor:
        """The weight."""

    @property
    def domain(self) -> tuple[int, ...]:
        """The shape of one input."""

    @property
    def codomain(self) -> tuple[int, ...]:
        """The shape of one output."""

    def with_weight(self, weight: Tensor) -> LinearOperator:
        """The same map with another weight of the same shape."""

    def apply(self, v: Tensor) -> Tensor:
        """A v, from shape ``(*batch, *domain)`` to ``(*batch, *codomain)``; differentiable."""

    def adjoint(self, u: Tensor) -> Tensor:
        """A^T u, from shape ``(*batch, *codomain)`` to ``(*batch, *domain)``; differentiable."""

    def outer(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """The gradient of the sum of u^T A v over pairs (u, v) with respect to the weight."""

    @classmethod
    def group(cls, operators: Sequence[Any]) -> OperatorGroup:
        """Group operators of this class that all have one shape or its transpose."""

    def spectral_bound(self, steps: int) -> Tensor:
        """A certified upper bound of the largest singular value."""

    def column_norms(self, order: Tensor) -> Tensor:
        """Upper bounds of the columns' ``order``-norms, shape ``(in,)`` or broadcastable."""

    def row_norms(self, order: Tensor) -> Tensor:
        """Upper bounds of the rows' ``order``-norms, shape ``(out,)`` or broadcastable."""


def grouped(operators: Sequence[LinearOperator]) -> OperatorGroup:
    """Group operators of one class that all have one shape or its transpose."""
    return type(operators[0]).group(operators)


@dataclass(frozen=True, eq=False)
class MatrixOperator:
    """The linear map of a matrix.

    Args:
        weight: shape ``(out, in)``.
    """

    weight: Tensor

    @property
    def domain(self) -> tuple[int, ...]:
        return (self.weight.shape[1],)

    @property
    def codomain(self) -> tuple[int, ...]:
        return (self.weight.shape[0],)

    def with_weight(self, weight: Tensor) -> MatrixOperator:
        return MatrixOperator(weight)

    def apply(self, v: Tensor) -> Tensor:
        return v @ self.weight.t()

    def adjoint(self, u: Tensor) -> Tensor:
        return u @ self.weight

    def outer(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        (first_u, first_v), *others = pairs
        total = _rows(first_u).t() @ _rows(first_v)
        for u, v in others:
            total = torch.addmm(total, _rows(u).t(), _rows(v))
        return total

    @classmethod
    def group(cls, operators: Sequence[MatrixOperator]) -> OperatorGroup:
        return MatrixGroup([each.weight for each in operators])

    def spectral_bound(self, steps: int) -> Tensor:
        return gram_bound(self.weight[None], steps)

    def column_norms(self, order: Tensor) -> Tensor:
        return _norms(self.weight, order, (0,))

    def row_norms(self, order: Tensor) -> Tensor:
        return _norms(self.weight, order, (1,))


@dataclass(frozen=True, eq=False)
class ConvolutionOperator:
    """The linear map of a zero-padded convolution of stride 1 on images of one size.

    Args:
        weight: shape ``(out, in, k, k)``, k odd.
        input_size: height and width of the images.
    """

    weight: Tensor
    input_size: tuple[int, int]

    @property
    def domain(self) -> tuple[int, ...]:
        return (self.weight.shape[1], *self.input_size)

    @property
    def codomain(self) -> tuple[int, ...]:
        return (self.weight.shape[0], *self.input_size)

    def with_weight(self, weight: Tensor) -> ConvolutionOperator:
        return ConvolutionOperator(weight, self.input_size)

    @cached_property
    def _direct(self) -> Kernel:
        return Kernel.direct(self.weight)

    @cached_property
    def _adjoint(self) -> Kernel:
        return Kernel.adjoint(self.weight)

    @property
    def _can_keep_kernels(self) -> bool:
        """Whether a kernel of one product serves the next: outside of graphs and transforms."""
        recorded = torch.is_grad_enabled() and self.weight.requires_grad
        return not (recorded or torch_func_is_active() or torch.compiler.is_compiling())

    def apply(self, v: Tensor) -> Tensor:
        kernel = self._direct if self._can_keep_kernels else Kernel.direct(self.weight)
        images = kernel.convolve(_images(v))
        return images if v.dim() == 4 else images.reshape(*v.shape[:-3], *images.shape[1:])

    def adjoint(self, u: Tensor) -> Tensor:
        kernel = self._adjoint if self._can_keep_kernels else Kernel.adjoint(self.weight)
        images = kernel.convolve(_images(u))
        return images if u.dim() == 4 else images.reshape(*u.shape[:-3], *images.shape[1:])

    def outer(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        gradients = (kernel_gradient(_images(u), _images(v), self.weight.shape) for u, v in pairs)
        return reduce(Tensor.add_, gradients)

    @classmethod
    def group(cls, operators: Sequence[ConvolutionOperator]) -> OperatorGroup:
        return convolution_group([each.weight for each in operators], operators[0].input_size)

    def spectral_bound(self, steps: int) -> Tensor:
        """The bound from the Gram matrix if that is small, else from a periodic convolution.

        On a torus of size n + k - 1 no kernel wraps around an image of size n, so that the
        zero-padded operator is a submatrix of the periodic one. The Fourier transform splits the
        periodic operator into one small matrix per frequency. The two norms differ little if the
        border is a small part of the image.
        """
        pixels = self.input_size[0] * self.input_size[1]
        if self.weight.shape[-1] > 1 and min(self.weight.shape[:2]) * pixels <= DENSE_LIMIT:
            return gram_bound(self._gram_matrix()[None], steps).sqrt()
        size = [n + self.weight.shape[-1] - 1 for n in self.input_size]
        matrices = torch.fft.rfft2(self.weight.detach(), s=size).flatten(2).permute(2, 0, 1)
        chunk = max(1, CHUNK // matrices[0].numel())
        return torch.stack([gram_bound(part, steps) for part in matrices.split(chunk)]).max()

    def _gram_matrix(self) -> Tensor:
        """The smaller one of A A^T and A^T A, computed from the unit vectors."""
        weight = self.weight.detach()
        if weight.shape[0] > weight.shape[1]:
            # the adjoint of a zero-padded convolution is the convolution by the flipped kernel
            weight = weight.transpose(0, 1).flip(-2, -1)
        entries = weight.shape[0] * self.input_size[0] * self.input_size[1]
        units = torch.eye(entries, dtype=weight.dtype, device=weight.device)
        images = units.view(entries, weight.shape[0], *self.input_size)
        adjoint = F.conv_transpose2d(images, weight, padding=weight.shape[-1] // 2).flatten(1)
        return adjoint @ adjoint.t()

    def column_norms(self, order: Tensor) -> Tensor:
        columns = _norms(self.weight, order, (0, 2, 3))
        return columns.repeat_interleave(self.input_size[0] * self.input_size[1])

    def row_norms(self, order: Tensor) -> Tensor:
        rows = _norms(self.weight, order, (1, 2, 3))
        return rows.repeat_interleave(self.input_size[0] * self.input_size[1])


def _rows(x: Tensor) -> Tensor:
    """Vectors, ``(*, n)``, as the rows of a matrix."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _images(x: Tensor) -> Tensor:
    """Images, ``(*, C, H, W)``, with one leading dimension."""
    return x if x.dim() == 4 else x.reshape(-1, *x.shape[-3:])


def _norms(weight: Tensor, order: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The ``order``-norms along ``dims``, scaled so that high powers stay in range."""
    largest = weight.abs().amax(dims, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    scaled = torch.linalg.vector_norm(weight / largest, float(order), dim=dims)
    return largest.squeeze(dims) * scaled


def gram_bound(matrices: Tensor, steps: int = GRAM_STEPS) -> Tensor:
    r"""Certified upper bound of the largest singular value of a batch of matrices.

    :math:`\|A\|_2 \le \|G_t\|_F^{2^{-t}}`, where :math:`G_0 = A` and
    :math:`G_{t+1} = G_t^* G_t`. The bound decreases to the singular value, and each step doubles
    the exponent; rescaling keeps the numbers in range.

    Args:
        matrices: shape ``(B, m, n)``, real or complex.
        steps: t.

    Returns:
        The largest bound of the batch, a real scalar.

    Reference:
        Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
        Iteration, 2023, theorem 2 and algorithm 1.
    """
    gram = matrices.detach().to(torch.complex128 if matrices.is_complex() else torch.float64)
    if gram.shape[-2] < gram.shape[-1]:
        gram = gram.mH
    log_scale = gram.new_zeros(gram.shape[0], dtype=torch.float64)
    for _ in range(steps):
        norm = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
        gram = gram / norm[:, None, None]
        log_scale = 2 * (log_scale + norm.log())
        gram = gram.mH @ gram
    norm = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
    return ((log_scale + norm.log()) / 2**steps).exp().max().to(matrices.real.dtype)
